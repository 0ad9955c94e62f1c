"""Experts of mixed quality: what all kinds share, and those for `compose` and `repair`. They see observations only.

- careful: runs, repairs what contradicts the sentence and what crashes, then walks through the readings so that each
  combination comes up once (Gray code), and submits when the visible tests pass
- hasty: submits the first guess
- sloppy: runs, then changes a line at random; after each failure it may give up and submit anyway
- reviewer: takes over after somebody else's first action and goes on as a careful one does

`repair` starts from the program in the prompt, `compose` from a guess of the expert's own.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...core.seeding import derive_seed
from ...envs.tasks.code.operations import source
from ..base import Agent
from .reading import Sentence, guess, read_program, read_sentence

Quality = Literal["careful", "hasty", "sloppy", "reviewer"]
TAKES_OVER_AT = {"reviewer": 1}
"""Turn from which on an expert's actions are its own; the others' always are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How good an expert is."""

    quality: Quality
    slip: float = 0.03
    """Probability per phrase of writing a wrong operation in the first guess."""
    give_up: float = 0.35
    """Probability that a sloppy expert submits after a failed run."""
    misremember: float = 0.1
    """Probability of naming the line to edit as it is not; the environment says so, and the expert does it right."""
    max_turns: int = 10


class MixedExpert:
    """In each episode one of the experts, drawn by the episode's seed.

    Args:
        mix: Share of each quality; shares are normalised.
        max_turns: Turns that an episode has.
        kind: Makes an expert of given habits.
    """

    def __init__(self, mix: Mapping[str, float], max_turns: int, kind: Callable[[Habits], Agent]) -> None:
        self._mix, self._max_turns, self._kind = dict(mix), max_turns, kind

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Draws the expert and has it read the task."""
        rng = random.Random(derive_seed(seed, "which expert"))
        quality = rng.choices(list(self._mix), list(self._mix.values()))[0]
        self._expert = self._kind(Habits(quality=quality, max_turns=self._max_turns))  # type: ignore[arg-type]
        self._expert.reset(observation, info, seed)

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Gives the drawn expert's next action."""
        return self._expert.act(observation, info)


class Expert(ABC):
    """One expert in one episode: what all kinds of experts share.

    A kind says how it reads a task (`_read`) and which actions it takes: the hasty expert's, the one that opens an
    episode, and the next one after an observation.
    """

    def __init__(self, habits: Habits) -> None:
        self.habits = habits

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Reads the task."""
        self._rng = random.Random(derive_seed(seed, "expert", self.habits.quality))
        self._turn = 0
        self._read(observation)

    def reseed(self, seed: int) -> None:
        """Draws differently from here on: for a copy of this expert in a copy of its episode."""
        self._rng = random.Random(derive_seed(seed, "branch", self.habits.quality))

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Gives the next action."""
        self._turn += 1
        first = self._turn == 1
        if self.habits.quality == "hasty":
            return self._hasty_action(first)
        opening = self._opening() if first else None
        if opening is not None:
            return opening
        return "submit" if self._stops(observation, first) else self._next_action(observation)

    def _stops(self, observation: str, first: bool) -> bool:
        """Whether it hands in what stands: a run passed, no more turns are left, or it gives up."""
        passed = observation == "ok" and not first
        refused = observation.startswith("error:")
        last = self._turn >= self.habits.max_turns
        return passed or last or (self._gives_up() and not first and not refused)

    def _gives_up(self) -> bool:
        return self.habits.quality == "sloppy" and self._rng.random() < self.habits.give_up

    @abstractmethod
    def _read(self, observation: str) -> None: ...

    @abstractmethod
    def _hasty_action(self, first: bool) -> str: ...

    @abstractmethod
    def _opening(self) -> str | None:
        """The first action, or None where an episode opens as it goes on."""

    @abstractmethod
    def _next_action(self, observation: str) -> str: ...


class CodeExpert(Expert):
    """An expert for `compose` and `repair`; see the module's docstring."""

    def _read(self, observation: str) -> None:
        self._sentence: Sentence = read_sentence(observation)
        given = read_program(observation.partition("\nf(")[0])
        self._given = bool(given)
        self._lines = given or guess(self._rng, self._sentence, self.habits.slip)
        self._slots = self._sentence.slots(looped=any(line.startswith("for ") for line in given))
        self._flips = 0

    def _opening(self) -> str | None:
        return None if self._given else f"run\n{source(self._lines)}"

    def _hasty_action(self, first: bool) -> str:
        if not self._given:
            return f"submit\n{source(self._lines)}"
        if not first:
            return "submit"
        position = self._random_suspect()
        return self._edit(position, self._other_line(position))

    def _next_action(self, observation: str) -> str:
        if observation.startswith("error: no such line"):
            return self._edit(self._pending, self._wanted)
        position = self._careful_suspect(observation) if self.habits.quality != "sloppy" else self._random_suspect()
        wanted = self._other_line(position)
        room = self._turn <= self.habits.max_turns - 2
        if room and self._rng.random() < self.habits.misremember:
            wrong = [line for line in self._slots[position] if line not in self._lines]
            if wrong:
                self._pending, self._wanted = position, wanted
                return f"edit\n{wrong[0]}\n{self._lines[position]}"
        return self._edit(position, wanted)

    def _edit(self, position: int, wanted: str) -> str:
        old, self._lines[position] = self._lines[position], wanted
        return f"edit\n{old}\n{wanted}"

    def _mistakes(self) -> list[int]:
        """Positions of lines that are no reading of their phrase."""
        return [i for i, line in enumerate(self._lines) if line not in self._slots[i]]

    def _careful_suspect(self, observation: str) -> int:
        mistakes = self._mistakes()
        if mistakes:
            return mistakes[0]
        end = len(self._lines) - 1
        robust = self._slots[end][-1]
        ambiguous = self._sentence.ambiguous[::-1]
        crashed = "Error" in observation.rpartition("\n")[2]
        if self._lines[end] != robust and (self._given or crashed or not ambiguous):
            return end
        if not ambiguous:
            return end
        self._flips += 1
        bit = (self._flips & -self._flips).bit_length() - 1
        return ambiguous[bit % len(ambiguous)]

    def _random_suspect(self) -> int:
        end = len(self._lines) - 1
        fragile = [end] if len(self._slots[end]) > 1 else []
        choices = [*self._sentence.ambiguous, *self._mistakes(), *fragile]
        return self._rng.choice(choices or [end])

    def _other_line(self, position: int) -> str:
        """Another reading of the phrase; for the reduction the robust one (a sloppy expert takes any)."""
        readings, now = self._slots[position], self._lines[position]
        if position == len(self._lines) - 1:
            return self._rng.choice(readings) if self.habits.quality == "sloppy" else readings[-1]
        others = [line for line in readings if line != now]
        return self._rng.choice(others) if others else readings[0]

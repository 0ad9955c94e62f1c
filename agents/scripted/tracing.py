"""Experts of mixed quality for `trace`; they see observations only.

They guess the constants that the code keeps back, follow the code backwards from the wanted value, and hand in or run
what they find.

- careful: runs, keeps to the constants that agree with everything seen so far, and submits when the value is the wanted
  one
- hasty: submits the first guess
- sloppy: runs, learns nothing from it and guesses anew; after each failure it may give up and submit anyway
- reviewer: takes over after somebody else's first action and goes on as a careful one does
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from typing import Any

from ...core.seeding import derive_seed
from ...envs.program_runner import SHOWN_VALUE
from ...envs.tasks.code.operations import Failure, compact, outputs
from ...envs.tasks.code.tracing import read_function
from .experts import Habits
from .reading import read_program

_WANTED = re.compile(r"Find x: f\(x\) == (\S+)\n")
_GOT = re.compile(r"^got (.*)$", re.MULTILINE)


class TraceExpert:
    """One expert in one episode; see the module's docstring."""

    def __init__(self, habits: Habits) -> None:
        self.habits = habits

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Reads the task."""
        self._rng = random.Random(derive_seed(seed, "expert", self.habits.quality))
        match = _WANTED.search(observation)
        if match is None:
            raise ValueError(f"no wanted value in {observation[:80]!r}")
        self._wanted: list[int] | int = json.loads(match[1])
        self._function = read_function(read_program(observation))
        self._choices = list(self._function.choices())
        """Constants that agree with what was seen."""
        self._tried: list[int] = []
        self._turn = 0

    def reseed(self, seed: int) -> None:
        """Draws differently from here on: for a copy of this expert in a copy of its episode."""
        self._rng = random.Random(derive_seed(seed, "branch", self.habits.quality))

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Gives the next action."""
        self._turn += 1
        first = self._turn == 1
        if self.habits.quality == "hasty":
            return f"submit\n{compact(self._guess())}"
        passed = observation == "ok" and not first
        if passed or self._turn >= self.habits.max_turns or (not first and self._gives_up()):
            return "submit"
        if not first and self.habits.quality != "sloppy":
            self._learn(observation)
        self._tried = self._guess()
        return f"run\n{compact(self._tried)}"

    def _gives_up(self) -> bool:
        return self.habits.quality == "sloppy" and self._rng.random() < self.habits.give_up

    def _learn(self, observation: str) -> None:
        """Forgets the constants with which the function would have given something else."""
        match = _GOT.search(observation)
        got = match[1] if match else None
        agreeing = [constants for constants in self._choices if self._shown(constants) == got]
        self._choices = agreeing or self._choices

    def _shown(self, constants: tuple[int, ...]) -> str | None:
        """What a run of the last input would have shown with these constants; None for an exception."""
        (value,) = outputs(self._function.with_constants(constants).shown, [self._tried])
        return None if isinstance(value, Failure) else compact(value)[:SHOWN_VALUE]

    def _guess(self) -> list[int]:
        """An input that is right if the constants are as guessed; now and then one of its numbers is off by one."""
        inputs = [self._function.with_constants(constants).input_for(self._wanted) for constants in self._choices]
        possible = [value for value in inputs if value]
        value = list(self._rng.choice(possible)) if possible else [1, 2, 3]
        if self._rng.random() < self.habits.slip:
            value[self._rng.randrange(len(value))] += self._rng.choice((-1, 1))
        return value

"""Experts of mixed quality for `trace`; they see observations only.

The code keeps constants back, as letters. Whoever knows them follows the code backwards from the wanted value.

- careful: runs the experiment that tells most about the constants, then what it takes for the right input, until the
  value is the wanted one, and submits
- hasty: submits the first guess
- sloppy: runs guesses and learns nothing from them; after each failure it may give up and submit anyway
- reviewer: takes over after somebody else's experiment or guess and goes on as a careful one does
"""

from __future__ import annotations

import functools
import json
import re

from ...envs.program_runner import SHOWN_VALUE
from ...envs.tasks.code.operations import Failure, compact, outputs
from ...envs.tasks.code.tracing import TraceFunction, read_function
from .experts import Expert
from .reading import read_program

_WANTED = re.compile(r"Find x: f\(x\) == (\S+)\n")
_GOT = re.compile(r"^got (.*)$", re.MULTILINE)
EXPERIMENTS = ([0], [1], [1] * 6, [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0])
"""Inputs that show constants; the first one of those that tell most apart is run."""


class TraceExpert(Expert):
    """An expert for `trace`; see the module's docstring."""

    def _read(self, observation: str) -> None:
        match = _WANTED.search(observation)
        if match is None:
            raise ValueError(f"no wanted value in {observation[:80]!r}")
        self._wanted: list[int] | int = json.loads(match[1])
        self._function = read_function(read_program(observation))
        self._choices = list(self._function.choices())
        """Constants that agree with what was seen."""
        self._tried: list[int] = []

    def _hasty_action(self, first: bool) -> str:
        return f"submit\n{compact(self._guess())}"

    def _opening(self) -> str:
        guesses = {"sloppy": 1.0, "reviewer": 0.5}.get(self.habits.quality, 0.0)
        return self._run(self._guess() if self._rng.random() < guesses else experiment(self._function))

    def _next_action(self, observation: str) -> str:
        if self.habits.quality != "sloppy":
            self._learn(observation)
        return self._run(self._guess())

    def _run(self, value: list[int]) -> str:
        self._tried = value
        return f"run\n{compact(value)}"

    def _learn(self, observation: str) -> None:
        """Forgets the constants with which the function would have given something else."""
        match = _GOT.search(observation)
        got = match[1] if match else None
        agreeing = [constants for constants in self._choices if _given(self._function, constants, self._tried) == got]
        self._choices = agreeing or self._choices

    def _guess(self) -> list[int]:
        """An input that is right if the constants are as guessed; now and then one of its numbers is off by one."""
        inputs = [self._function.with_constants(constants).input_for(self._wanted) for constants in self._choices]
        possible = [value for value in inputs if value]
        value = list(self._rng.choice(possible)) if possible else [1, 2, 3]
        if self._rng.random() < self.habits.slip:
            value[self._rng.randrange(len(value))] += self._rng.choice((-1, 1))
        return value


@functools.cache
def _experiment(function: TraceFunction) -> int:
    seen = [{_given(function, constants, value) for constants in function.choices()} for value in EXPERIMENTS]
    return max(range(len(EXPERIMENTS)), key=lambda i: len(seen[i]))


def experiment(function: TraceFunction) -> list[int]:
    """The input that tells most of the constants apart that are kept back."""
    return EXPERIMENTS[_experiment(function)]


def _given(function: TraceFunction, constants: tuple[int, ...], value: list[int]) -> str | None:
    """What a run of an input shows if these are the constants; None for an exception."""
    (given,) = outputs(function.with_constants(constants).shown, [value])
    return None if isinstance(given, Failure) else compact(given)[:SHOWN_VALUE]

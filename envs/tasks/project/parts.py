"""What small programs are put together from: a template, and parts that each add a function and a line that calls it.

A part says in English what it does. One with two readings is ambiguous: only tests can tell which reading is meant.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Constants = tuple[tuple[str, Any], ...]
"""Names of a part's constants and their values."""


@dataclass(frozen=True, slots=True)
class Part:
    """One function of a program.

    Example::

        Part("ship", "t", "t", "shipping is {fee} below {free}", ("t + {fee} if t < {free} else t",),
             {"fee": (3, 9), "free": (15, 30)})
    """

    name: str
    parameters: str
    arguments: str
    """What it is called with, in a line that has `t`, the value so far, and the program's input."""
    phrase: str
    readings: tuple[str, ...]
    """Expressions that the function may return."""
    constants: Mapping[str, tuple[int, int] | str] = field(default_factory=dict[str, tuple[int, int] | str])
    """Range of each number, or the letters that a text is one of."""

    @property
    def ambiguous(self) -> bool:
        """Whether the phrase can be read in two ways."""
        return len(self.readings) > 1

    @property
    def call(self) -> str:
        """The line that calls it."""
        return f"t = {self.name}({self.arguments})"

    def draw(self, rng: random.Random) -> Choice:
        """This part with random constants and a random reading."""
        values = tuple(
            (name, rng.choice(choices) if isinstance(choices, str) else rng.randint(*choices))
            for name, choices in self.constants.items()
        )
        return Choice(self, values, rng.randrange(len(self.readings)))


@dataclass(frozen=True, slots=True)
class Choice:
    """A part with its constants, and the reading that is meant."""

    part: Part
    values: Constants
    reading: int

    @property
    def phrase(self) -> str:
        """The part's phrase with its constants."""
        return self.part.phrase.format(**dict(self.values))

    def lines(self, has_config: bool) -> tuple[str, ...]:
        """The function's line in every reading, with names where constants have a module of their own."""
        return _lines(self.part.name, self.part.readings, self.values, has_config)

    def line(self, has_config: bool) -> str:
        """The function's line in the reading that is meant."""
        return self.lines(has_config)[self.reading]

    def settings(self) -> list[str]:
        """The lines that define its constants in a module of their own."""
        return [f"{_constant(self.part.name, name)} = {_literal(value)}" for name, value in self.values]

    def names(self, has_config: bool) -> list[str]:
        """Constants that the function has to import."""
        return [_constant(self.part.name, name) for name, _ in self.values] if has_config else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A small program: what it starts from, and the parts that can be put into it."""

    name: str
    """Of the program and of its main module."""
    function: str
    parameter: str
    intro: str
    """What the function does without any part."""
    start: str
    """Expression of the value that the parts begin with."""
    end: str = "t"
    """Expression of what the function returns."""
    kind: str
    """Of the input; programs whose inputs are of one kind may turn out to be the same function."""
    middle: str
    """Name of the function, and of the module, that calls some of the parts in larger programs."""
    leaves: tuple[str, str]
    """Modules that the parts' functions are in."""
    draw: Callable[[random.Random], Any]
    """Gives an input."""
    parts: tuple[Part, ...]


@functools.lru_cache(maxsize=50_000)
def _lines(name: str, readings: tuple[str, ...], values: Constants, has_config: bool) -> tuple[str, ...]:
    shown = {key: _constant(name, key) if has_config else _literal(value) for key, value in values}
    return tuple(f"return {reading.format(**shown)}" for reading in readings)


def _constant(part: str, name: str) -> str:
    return f"{part}_{name}".upper()


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)

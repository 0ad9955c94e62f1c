"""The steps that `trace` functions are made of, each with its inverse.

A step takes a list to a list, and its inverse gives a list from which the step makes exactly the given one, if there is
one. Most steps have a constant, which a task may keep back: it is written as a letter then.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

Inverse = Callable[[list[int], int], list[int] | None]
LETTERS = ("k", "m")
"""Names of the constants that are kept back, in the order of their lines."""


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One kind of line: its text, the range of its constant, and how to undo it."""

    template: str
    constants: tuple[int, int] | None
    inverse: Inverse

    @property
    def values(self) -> range:
        """All constants that the line may have; 0 where it has none."""
        low, high = self.constants or (0, 0)
        return range(low, high + 1)


def _accumulated(y: list[int], k: int) -> list[int]:
    return list(itertools.accumulate(y, initial=0))


STEPS: dict[str, TraceStep] = {
    "drop": TraceStep("x = x[{k}:]", (1, 4), lambda y, k: y[:1] * k + y),
    "cut": TraceStep("x = x[:-{k}]", (1, 4), lambda y, k: y + y[-1:] * k),
    "every": TraceStep("x = x[::{k}]", (2, 3), lambda y, k: [v for v in y for _ in range(k)]),
    "rotate": TraceStep("x = x[{k}:] + x[:{k}]", (1, 3), lambda y, k: y[-k:] + y[:-k] if k < len(y) else y),
    "add": TraceStep("x = [v + {k} for v in x]", (2, 9), lambda y, k: [v - k for v in y]),
    "from": TraceStep("x = [{k} - v for v in x]", (2, 9), lambda y, k: [k - v for v in y]),
    "multiply": TraceStep(
        "x = [v * {k} for v in x]", (2, 9), lambda y, k: [v // k for v in y] if all(v % k == 0 for v in y) else None
    ),
    "reverse": TraceStep("x = x[::-1]", None, lambda y, k: y[::-1]),
    "differences": TraceStep("x = [b - a for a, b in zip(x, x[1:])]", None, _accumulated),
}
REDUCTIONS: dict[str, str] = {
    "none": "return x",
    "sum": "return sum(x)",
    "max": "return max(x)",
    "last": "return x[-1]",
}
"""Last lines; a list of one item has that item as its sum, its greatest and its last."""
CONSTANT_NAMES = tuple(name for name, step in STEPS.items() if step.constants)


@dataclass(frozen=True, slots=True)
class TraceFunction:
    """A function as its steps, their constants (None: kept back) and its last line."""

    names: tuple[str, ...]
    constants: tuple[int | None, ...]
    reduction: str

    @property
    def shown(self) -> list[str]:
        """The body's lines, with letters for the constants that are kept back."""
        letters = iter(LETTERS)
        marks = [next(letters) if constant is None else constant for constant in self.constants]
        return self._lines(marks)

    def without(self, kept: Collection[str]) -> TraceFunction:
        """The function with the constants of these steps kept back."""
        pairs = zip(self.names, self.constants, strict=True)
        constants = tuple(None if name in kept else constant for name, constant in pairs)
        return TraceFunction(self.names, constants, self.reduction)

    def with_constants(self, constants: Sequence[int]) -> TraceFunction:
        """The function with these in the places of those that are kept back, in order."""
        given = iter(constants)
        filled = tuple(next(given) if constant is None else constant for constant in self.constants)
        return TraceFunction(self.names, filled, self.reduction)

    def choices(self) -> Iterator[tuple[int, ...]]:
        """All values that the constants kept back may have."""
        kept = [STEPS[name].values for name, c in zip(self.names, self.constants, strict=True) if c is None]
        return itertools.product(*kept)

    def input_for(self, wanted: list[int] | int) -> list[int] | None:
        """An input for which the function, all of whose constants are known, gives the wanted value, if it has one."""
        value: list[int] | None = wanted if isinstance(wanted, list) else [wanted]
        for name, constant in zip(self.names[::-1], self.constants[::-1], strict=True):
            value = STEPS[name].inverse(value, constant or 0) if value else None
        return value

    def _lines(self, marks: Sequence[int | str]) -> list[str]:
        steps = [STEPS[name].template.format(k=mark) for name, mark in zip(self.names, marks, strict=True)]
        return [*steps, REDUCTIONS[self.reduction]]


def read_function(lines: Sequence[str]) -> TraceFunction:
    """Reads a body as `TraceFunction.shown` writes it.

    Raises:
        ValueError: A line is of no kind.
    """
    read = [_read_step(line) for line in lines[:-1]]
    reduction = next((name for name, line in REDUCTIONS.items() if line == lines[-1]), None)
    if reduction is None:
        raise ValueError(f"unknown last line {lines[-1]!r}")
    return TraceFunction(tuple(name for name, _ in read), tuple(constant for _, constant in read), reduction)


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    found: list[tuple[str, re.Pattern[str]]] = []
    for name, step in STEPS.items():
        escaped = re.escape(step.template)
        first, *others = escaped.split(re.escape("{k}"))
        rest = "".join(f"(?P=k){part}" if i else f"(?P<k>[0-9]+|[a-z]){part}" for i, part in enumerate(others))
        found.append((name, re.compile(first + rest)))
    return found


@functools.cache
def _read_step(line: str) -> tuple[str, int | None]:
    for name, pattern in _patterns():
        if match := pattern.fullmatch(line):
            mark = match["k"] if "k" in match.groupdict() else "0"
            return name, int(mark) if mark.isdigit() else None
    raise ValueError(f"unknown line {line!r}")

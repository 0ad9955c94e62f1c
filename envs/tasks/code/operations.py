"""The vocabulary of list operations that the code families are built from: phrases, readings, reductions.

A phrase with two readings is ambiguous: "drop 2 items" may mean from the front or from the back, and only tests can
tell. A reduction with two readings has an edge case (the empty list) that its first reading gets wrong.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Operation:
    """One step on a list: its English phrase, the range of its constant, and one code line per reading."""

    phrase: str
    constants: tuple[int, int] | None
    readings: tuple[str, ...]

    @property
    def ambiguous(self) -> bool:
        """Whether the phrase can be read in two ways."""
        return len(self.readings) > 1


def _operation(phrase: str, *readings: str, constants: tuple[int, int] | None = None) -> Operation:
    return Operation(phrase, constants, readings)


OPERATIONS: dict[str, Operation] = {
    "sort": _operation("sort it", "x = sorted(x)", "x = sorted(x)[::-1]"),
    "drop": _operation("drop {k} items", "x = x[{k}:]", "x = x[:-{k}]", constants=(1, 3)),
    "take": _operation("take {k} items", "x = x[:{k}]", "x = x[-{k}:]", constants=(2, 4)),
    "every": _operation("take every second item", "x = x[::2]", "x = x[1::2]"),
    "rotate": _operation("rotate by {k}", "x = x[{k}:] + x[:{k}]", "x = x[-{k}:] + x[:-{k}]", constants=(1, 3)),
    "dedupe": _operation("remove duplicates", "x = list(dict.fromkeys(x))", "x = sorted(set(x))"),
    "above": _operation(
        "keep values above {k}", "x = [v for v in x if v > {k}]", "x = [v for v in x if v >= {k}]", constants=(2, 6)
    ),
    "below": _operation(
        "keep values below {k}", "x = [v for v in x if v < {k}]", "x = [v for v in x if v <= {k}]", constants=(4, 8)
    ),
    "differences": _operation(
        "take differences", "x = [b - a for a, b in zip(x, x[1:])]", "x = [a - b for a, b in zip(x, x[1:])]"
    ),
    "add": _operation("add {k}", "x = [v + {k} for v in x]", constants=(2, 9)),
    "multiply": _operation("multiply by {k}", "x = [v * {k} for v in x]", constants=(2, 9)),
    "negate": _operation("negate", "x = [-v for v in x]"),
    "square": _operation("square", "x = [v * v for v in x]"),
    "even": _operation("keep even values", "x = [v for v in x if v % 2 == 0]"),
    "odd": _operation("keep odd values", "x = [v for v in x if v % 2]"),
    "reverse": _operation("reverse it", "x = x[::-1]"),
}
REDUCTIONS: dict[str, Operation] = {
    "none": _operation("return it", "return x"),
    "sum": _operation("sum it", "return sum(x)"),
    "len": _operation("count it", "return len(x)"),
    "max": _operation("find the max", "return max(x)", "return max(x, default=0)"),
    "min": _operation("find the min", "return min(x)", "return min(x, default=0)"),
    "first": _operation("get the first item", "return x[0]", "return x[0] if x else 0"),
    "last": _operation("get the last item", "return x[-1]", "return x[-1] if x else 0"),
}
"""The last reading of a reduction is the right one; an earlier one crashes on the empty list."""

LOOPS: dict[str, tuple[str, ...]] = {
    "sum": ("t = 0", "for v in x:", "    t = t + v", "return t"),
    "len": ("t = 0", "for v in x:", "    t = t + 1", "return t"),
    "max": ("t = x[0] if x else 0", "for v in x:", "    t = v if v > t else t", "return t"),
    "min": ("t = x[0] if x else 0", "for v in x:", "    t = v if v < t else t", "return t"),
}
"""Reductions that can also be written as a loop."""

OPERATION_NAMES = tuple(OPERATIONS)
REDUCTION_NAMES = tuple(REDUCTIONS)
AMBIGUOUS_NAMES = tuple(name for name, operation in OPERATIONS.items() if operation.ambiguous)
PLAIN_NAMES = tuple(name for name, operation in OPERATIONS.items() if not operation.ambiguous)


@functools.cache
def lines_of(name: str, constant: int) -> tuple[str, ...]:
    """All readings of an operation as code lines."""
    return tuple(reading.format(k=constant) for reading in OPERATIONS[name].readings)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a program, with its constant and the reading that was chosen."""

    name: str
    constant: int
    reading: int

    @property
    def line(self) -> str:
        """The code line of this step."""
        return self.lines[self.reading]

    @property
    def lines(self) -> tuple[str, ...]:
        """The code lines of all readings of this step."""
        return lines_of(self.name, self.constant)


def source(body: Sequence[str]) -> str:
    """Source of `f` from the lines of its body."""
    return "\n".join(["def f(x):", *(f"    {line}" for line in body)])


def program(steps: Sequence[Step], reduction: str, reading: int = -1) -> str:
    """Source of `f`: one line per step and a return line; `reading=-1` is the reduction's right reading."""
    return source([*(step.line for step in steps), REDUCTIONS[reduction].readings[reading]])


def sentence(steps: Sequence[Step], reduction: str) -> str:
    """The task in English: "Take x, drop 2 items, then find the max."."""
    phrases = [OPERATIONS[step.name].phrase.format(k=step.constant) for step in steps]
    return f"Take x, {', '.join(phrases)}, then {REDUCTIONS[reduction].phrase}."


def draw_step(rng: random.Random, name: str) -> Step:
    """A step with a random constant and a random reading."""
    operation = OPERATIONS[name]
    constant = rng.randint(*operation.constants) if operation.constants else 0
    return Step(name, constant, rng.randrange(len(operation.readings)))


def compact(value: Any) -> str:
    """JSON without spaces: how values are shown to agents."""
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(separators=(",", ":"))


def draw_inputs(rng: random.Random, count: int, longest: int) -> list[list[int]]:
    """Lists of 4 to `longest` digits; the last one is empty."""
    digits = [[int(10 * rng.random()) for _ in range(4 + int((longest - 3) * rng.random()))] for _ in range(count - 1)]
    return [*digits, []]


class Failure(str):
    """Stands for the output of a program that raised; its text is the exception's type."""

    __slots__ = ()


Stage = Callable[[Any], Any]


@functools.cache
def stage(text: str) -> Stage:
    """Lines of our own templates as a function of `x`; used to make tasks, never for code that an agent wrote."""
    if text.startswith("x = ") or text.startswith("return "):
        expression = text.removeprefix("x = ").removeprefix("return ")
        return eval(f"lambda x: {expression}")
    names: dict[str, Any] = {}
    exec("\n".join(["def f(x):", *(f"    {line}" for line in text.split("\n"))]), names)
    return names["f"]


def stages(body: Sequence[str]) -> list[Stage]:
    """A function's body as stages that each take the value of the one before; the last gives the result."""
    split = next(i for i, line in enumerate(body) if not line.startswith("x = "))
    return [stage(line) for line in [*body[:split], "\n".join(body[split:])]]


def outputs(body: Sequence[str], inputs: Sequence[Any]) -> list[Any]:
    """What a program of our own lines gives on each input."""
    chain = stages(body)
    results: list[Any] = []
    for value in inputs:
        try:
            for act in chain:
                value = act(value)
        except Exception as error:
            value = Failure(type(error).__name__)
        results.append(value)
    return results


def agrees(chain: Sequence[Stage], inputs: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether a program gives the wanted output on every input; stops at the first that it does not."""
    for value, want in zip(inputs, wanted, strict=True):
        try:
            for act in chain:
                value = act(value)
        except Exception:
            return False
        if value != want:
            return False
    return True

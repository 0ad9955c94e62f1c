"""What experts read in an observation: the sentence's phrases, a program's lines, whether a run passed.

Experts never see a task's secret part; everything they know comes from these texts.
"""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass

from ...envs.tasks.code.operations import LOOPS, OPERATIONS, REDUCTIONS, Operation, lines_of

_SENTENCE = re.compile(r"Take x, (.+), then (.+)\.")


@dataclass(frozen=True, slots=True)
class Sentence:
    """The phrases of a task."""

    phrases: tuple[tuple[str, int], ...]
    """(operation, constant) for each step."""
    reduction: str

    @property
    def ambiguous(self) -> list[int]:
        """Positions of the phrases that can be read in two ways."""
        return [i for i, (name, _) in enumerate(self.phrases) if OPERATIONS[name].ambiguous]

    def slots(self, looped: bool = False) -> list[tuple[str, ...]]:
        """For each line of a body that obeys the sentence, all ways to write it; the reduction may be a loop."""
        steps = [lines_of(name, constant) for name, constant in self.phrases]
        if looped and self.reduction in LOOPS:
            return [*steps, *((line.strip(),) for line in LOOPS[self.reduction])]
        return [*steps, REDUCTIONS[self.reduction].readings]


def _pattern(operation: Operation) -> re.Pattern[str]:
    return re.compile(re.escape(operation.phrase).replace(re.escape("{k}"), r"(\d+)") + r"\Z")


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    return [(name, _pattern(operation)) for name, operation in OPERATIONS.items()]


@functools.cache
def _phrase(text: str) -> tuple[str, int]:
    for name, pattern in _patterns():
        if match := pattern.match(text):
            return name, int(match[1]) if match.groups() else 0
    raise ValueError(f"unknown phrase {text!r}")


def read_sentence(text: str) -> Sentence:
    """Finds "Take x, ..., then ...." in an observation and reads its phrases."""
    match = _SENTENCE.search(text)
    if match is None:
        raise ValueError(f"no task sentence in {text[:80]!r}")
    phrases = tuple(_phrase(part) for part in match[1].split(", "))
    reduction = next(name for name, operation in REDUCTIONS.items() if operation.phrase == match[2])
    return Sentence(phrases, reduction)


def read_program(text: str) -> list[str]:
    """The lines of the program in an observation, without indentation and without its `def` line."""
    _, _, body = text.partition("def f(x):\n")
    lines: list[str] = []
    for line in body.split("\n"):
        if not line.startswith("    "):
            break
        lines.append(line.strip())
    return lines


def guess(rng: random.Random, sentence: Sentence, slip: float) -> list[str]:
    """A random reading of every phrase; with probability `slip` per phrase another operation altogether."""
    lines: list[str] = []
    for name, constant in sentence.phrases:
        if rng.random() < slip:
            name = rng.choice(list(OPERATIONS))
            constants = OPERATIONS[name].constants
            constant = rng.randint(*constants) if constants else 0
        readings = lines_of(name, constant)
        lines.append(readings[rng.randrange(len(readings))])
    return [*lines, rng.choice(REDUCTIONS[sentence.reduction].readings)]

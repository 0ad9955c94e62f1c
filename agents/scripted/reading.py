"""What experts read in an observation: the sentence's phrases, a program's lines, whether a run passed.

Experts never see a task's secret part; everything they know comes from these texts.
"""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass

from ...envs.tasks.code.operations import OPERATIONS, REDUCTIONS, Operation, Step

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

    @property
    def fragile(self) -> bool:
        """Whether the reduction has an edge case that one reading gets wrong."""
        return len(REDUCTIONS[self.reduction].readings) > 1

    def lines_of(self, position: int) -> list[str]:
        """All readings of one phrase as code."""
        if position == len(self.phrases):
            return list(REDUCTIONS[self.reduction].readings)
        name, constant = self.phrases[position]
        return [Step(name, constant, r).line for r in range(len(OPERATIONS[name].readings))]


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


def source(lines: list[str]) -> str:
    """A program from its lines."""
    return "\n".join(["def f(x):", *(f"    {line}" for line in lines)])


def guess(rng: random.Random, sentence: Sentence, slip: float) -> list[str]:
    """A random reading of every phrase; with probability `slip` per phrase another operation altogether."""
    lines: list[str] = []
    for name, constant in sentence.phrases:
        if rng.random() < slip:
            name = rng.choice(list(OPERATIONS))
            constants = OPERATIONS[name].constants
            constant = rng.randint(*constants) if constants else 0
        lines.append(Step(name, constant, rng.randrange(len(OPERATIONS[name].readings))).line)
    return [*lines, rng.choice(REDUCTIONS[sentence.reduction].readings)]

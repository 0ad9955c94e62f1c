"""Task family `compose`: write `f(x)` from an English sentence whose phrases are ambiguous.

The sentence cannot be solved by reading it: only the tests know which reading is meant. An agent that runs a guess and
reads got/want can tell the readings apart before it submits; one that does not must guess, and at most half of the
readings are right. Splits share no sequence of operations and reduction, and no function: programs that give the same
on all of `PROBES` belong to one split, whatever they look like.

Levels: (depth, ambiguous phrases) = 1: (1, 1), 2: (2, 1), 3: (2, 2), 4: (3, 1), 5: (3, 2), 6: (4, 2), 7: (4, 3).
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from ....core.seeding import derive_seed
from ....core.tasks import Split, Task, task_id_of
from .operations import (
    AMBIGUOUS_NAMES,
    PLAIN_NAMES,
    REDUCTION_NAMES,
    REDUCTIONS,
    Failure,
    Step,
    agrees,
    draw_inputs,
    draw_step,
    outputs,
    program,
    sentence,
    stage,
)

SHAPES: dict[int, tuple[int, int]] = {1: (1, 1), 2: (2, 1), 3: (2, 2), 4: (3, 1), 5: (3, 2), 6: (4, 2), 7: (4, 3)}
"""Level -> (operations, ambiguous ones among them)."""
VISIBLE, HIDDEN = 4, 10
MAX_GUESS = 0.5
"""At most this share of all readings may pass the hidden tests."""
PROBES: tuple[list[int], ...] = tuple(draw_inputs(random.Random("probes"), 30, 6))
"""Inputs of the tasks' own kind, which tell functions apart."""
_SALT = 154
"""Level 1 has few programs; this salt leaves (90, 8, 24) of them to train, validation and held-out."""
MIN_DISTINCT = 6
"""Among the expected outputs at least so many must differ, or the task says too little."""


class ComposeFamily:
    """Generates `compose` tasks; a subclass may have other levels."""

    name = "compose"
    shapes: Mapping[int, tuple[int, int]] = SHAPES
    levels = tuple(SHAPES)

    def generate(self, seed: int, split: Split, level: int) -> Task:
        """Gives the task of this seed; draws until one is in the split, decidable, and not too easy to guess."""
        rng = random.Random(derive_seed("compose", split, level, seed))
        depth, ambiguous = self.shapes[level]
        while True:
            names = rng.sample(AMBIGUOUS_NAMES, ambiguous) + rng.sample(PLAIN_NAMES, depth - ambiguous)
            rng.shuffle(names)
            reduction = rng.choice(REDUCTION_NAMES)
            if split_of(names, reduction) != split:
                continue
            steps = [draw_step(rng, name) for name in names]
            if split_of_function([*(step.line for step in steps), REDUCTIONS[reduction].readings[-1]]) != split:
                continue
            tests = _decidable_tests(rng, steps, reduction)
            if tests is not None:
                visible, hidden = tests
                return Task(
                    task_id=task_id_of(self.name, split, level, seed),
                    family=self.name,
                    split=split,
                    level=level,
                    prompt=sentence(steps, reduction),
                    public={"entry_point": "f", "tests": visible, "depth": depth, "ambiguous": ambiguous},
                    secret={"tests": hidden, "reference": program(steps, reduction)},
                )


def split_of(names: Sequence[str], reduction: str) -> Split:
    """The split that a sequence of operations belongs to: 20 % held-out, 10 % validation, the rest train."""
    return _split_of_text("|".join([*names, reduction]), heldout=2, validation=1)


def split_of_function(lines: Sequence[str]) -> Split:
    """The split that a function belongs to by what it does: 30 % held-out, 20 % validation, the rest train."""
    return _split_of_text(f"{_SALT}{outputs(lines, PROBES)}", heldout=3, validation=2)


def _split_of_text(text: str, heldout: int, validation: int) -> Split:
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    bucket = int.from_bytes(digest, "big") % 10
    return "heldout" if bucket < heldout else "validation" if bucket < heldout + validation else "train"


def telling(wanted: Sequence[Any]) -> bool:
    """Whether expected outputs say enough: nothing raises, and enough of them differ."""
    return not any(isinstance(value, Failure) for value in wanted) and len(set(map(repr, wanted))) >= MIN_DISTINCT


def _decidable_tests(
    rng: random.Random, steps: Sequence[Step], reduction: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Visible and hidden tests, or None when the visible ones do not decide the reading or a guess is too good."""
    inputs = [*draw_inputs(rng, VISIBLE + 1, 5), *draw_inputs(rng, HIDDEN + 1, 5)]
    n_visible = VISIBLE + 1
    endings = REDUCTIONS[reduction].readings
    wanted = outputs([*(step.line for step in steps), endings[-1]], inputs)
    if not telling(wanted):
        return None
    visible, hidden = (inputs[:n_visible], wanted[:n_visible]), (inputs[n_visible:], wanted[n_visible:])
    right = total = 0
    for lines in itertools.product(*(step.lines for step in steps), endings):
        total += 1
        chain = [stage(line) for line in lines]
        if agrees(chain, *visible):
            if not agrees(chain, *hidden):
                return None
            right += 1
    if right > MAX_GUESS * total:
        return None
    cases = [{"args": [value], "expected": expected} for value, expected in zip(inputs, wanted, strict=True)]
    return cases[:n_visible], cases[n_visible:]

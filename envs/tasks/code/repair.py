"""Task family `repair`: a function with injected bugs, the sentence that it should obey, and a failing test.

Some bugs contradict the sentence (a wrong constant, operator or comparison, a missing edge case); others are the wrong
reading of an ambiguous phrase, which only running can tell. Splits share no sequence of operations and reduction.

Levels: (operations, bugs) = 1: (2, 1), 2: (3, 1), 3: (4, 1), 4: (4, 2).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from ....core.seeding import derive_seed
from ....core.tasks import Split, Task, task_id_of
from .compose import MIN_DISTINCT, split_of
from .operations import (
    FAILED,
    OPERATION_NAMES,
    OPERATIONS,
    REDUCTION_NAMES,
    REDUCTIONS,
    Step,
    compact,
    draw_inputs,
    draw_step,
    outputs,
    program,
    sentence,
)

SHAPES: dict[int, tuple[int, int]] = {1: (2, 1), 2: (3, 1), 3: (4, 1), 4: (4, 2)}
"""Level -> (operations, injected bugs)."""
VISIBLE, HIDDEN = 4, 10

_SWAPS = (
    (" + ", " - "),
    (" * ", " + "),
    (" >= ", " <= "),
    (" > ", " < "),
    (" <= ", " >= "),
    (" < ", " > "),
    ("% 2 == 0", "% 2"),
    ("b - a", "b + a"),
    ("-v", "v"),
    ("[::-1]", "[::1]"),
    ("sum(x)", "max(x, default=0)"),
    ("max(", "min("),
    ("min(", "max("),
    ("x[0]", "x[-1]"),
    ("x[-1]", "x[0]"),
)
"""What a wrong operator looks like: the first text that occurs may be replaced by the second."""


class RepairFamily:
    """Generates `repair` tasks."""

    name = "repair"
    levels = tuple(SHAPES)

    def generate(self, seed: int, split: Split, level: int) -> Task:
        """Gives the task of this seed; draws until the bugs show in the visible and in the hidden tests."""
        rng = random.Random(derive_seed("repair", split, level, seed))
        depth, bugs = SHAPES[level]
        while True:
            names, reduction = rng.sample(OPERATION_NAMES, depth), rng.choice(REDUCTION_NAMES)
            if split_of(names, reduction) != split:
                continue
            steps = [draw_step(rng, name) for name in names]
            right = [*(step.line for step in steps), REDUCTIONS[reduction].readings[-1]]
            wrong = _inject(rng, steps, reduction, right, bugs)
            tests = _telling_tests(rng, right, wrong)
            if wrong and tests:
                visible, hidden, failure = tests
                broken = "\n".join(["def f(x):", *(f"    {line}" for line in wrong)])
                public = {"entry_point": "f", "tests": visible, "program": broken, "bugs": bugs}
                return Task(
                    task_id=task_id_of(self.name, split, level, seed),
                    family=self.name,
                    split=split,
                    level=level,
                    prompt=f"Fix f: {sentence(steps, reduction)}\n{broken}\n{failure}",
                    public=public,
                    secret={"tests": hidden, "reference": program(steps, reduction)},
                )


def _inject(
    rng: random.Random, steps: Sequence[Step], reduction: str, right: Sequence[str], bugs: int
) -> list[str] | None:
    """The lines of the program with `bugs` of them broken; None when one of the drawn lines cannot be."""
    wrong = list(right)
    for position in rng.sample(range(len(right)), bugs):
        step = steps[position] if position < len(steps) else None
        candidates = [line for line in _broken(step, reduction, right[position]) if line != right[position]]
        if not candidates:
            return None
        wrong[position] = rng.choice(candidates)
    return wrong


def _broken(step: Step | None, reduction: str, line: str) -> list[str]:
    """Ways to get one line wrong: another reading, a constant off by one, a wrong operator."""
    swapped = [line.replace(old, new, 1) for old, new in _SWAPS if old in line][:1]
    if step is None:
        return [*REDUCTIONS[reduction].readings[:-1], *swapped]
    readings = [step.with_reading(r).line for r in range(len(OPERATIONS[step.name].readings))]
    nudged = [Step(step.name, step.constant + d, step.reading).line for d in (-1, 1) if step.constant + d > 0]
    return [*readings, *nudged, *swapped]


def _telling_tests(
    rng: random.Random, right: Sequence[str], wrong: Sequence[str] | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str] | None:
    """Tests that the right program passes and the broken one fails, visibly and hidden; and the first failure."""
    if wrong is None:
        return None
    inputs = [*draw_inputs(rng, VISIBLE + 1, 6), *draw_inputs(rng, HIDDEN + 1, 6)]
    n_visible = VISIBLE + 1
    wanted, given = outputs(right, inputs), outputs(wrong, inputs)
    if FAILED in wanted or len({compact(value) for value in wanted}) < MIN_DISTINCT:
        return None
    if given[:n_visible] == wanted[:n_visible] or given[n_visible:-1] == wanted[n_visible:-1]:
        return None
    cases = [{"args": [value], "expected": expected} for value, expected in zip(inputs, wanted, strict=True)]
    failed = next(i for i in range(n_visible) if given[i] != wanted[i])
    got = "an exception" if given[failed] == FAILED else f"got {compact(given[failed])[:60]}"
    failure = f"f({compact(inputs[failed])})\n{got}\nwant {compact(wanted[failed])}"
    return cases[:n_visible], cases[n_visible:], failure

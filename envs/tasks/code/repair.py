"""Task family `repair`: a function with injected bugs, the sentence that it should obey, and a failing test.

Some bugs contradict the sentence (`bugs` lists their kinds); others are the wrong reading of an ambiguous phrase, which
only running can tell. Reductions are written as one line or as a loop. Every single bug fails visible and hidden tests,
and readings that pass the visible tests pass the hidden ones. Splits share no sequence of operations and reduction.

Levels: (operations, bugs) = 1: (2, 1), 2: (3, 1), 3: (4, 1), 4: (4, 2).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....core.seeding import derive_seed
from ....core.tasks import Split, Task, task_id_of
from .bugs import BugKind, bugs_of
from .compose import split_of, split_of_function, telling
from .operations import (
    LOOPS,
    OPERATION_NAMES,
    OPERATIONS,
    REDUCTION_NAMES,
    REDUCTIONS,
    Failure,
    Step,
    agrees,
    compact,
    draw_inputs,
    draw_step,
    outputs,
    sentence,
    source,
    stages,
)

SHAPES: dict[int, tuple[int, int]] = {1: (2, 1), 2: (3, 1), 3: (4, 1), 4: (4, 2)}
"""Level -> (operations, injected bugs)."""
VISIBLE, HIDDEN = 4, 10
MAX_AMBIGUOUS = 2
"""Ambiguous phrases per task; four readings can be tried in ten turns."""
LOOP_SHARE = 0.5
"""Share of the reductions in `LOOPS` that are written as a loop."""


@dataclass(frozen=True, slots=True)
class Bug:
    """One wrong line."""

    kind: BugKind
    position: int
    line: str


class RepairFamily:
    """Generates `repair` tasks."""

    name = "repair"
    levels = tuple(SHAPES)

    def generate(self, seed: int, split: Split, level: int) -> Task:
        """Gives the task of this seed; draws until the bugs show in the visible and in the hidden tests."""
        rng = random.Random(derive_seed("repair", split, level, seed))
        depth, n_bugs = SHAPES[level]
        while True:
            names, reduction = rng.sample(OPERATION_NAMES, depth), rng.choice(REDUCTION_NAMES)
            if sum(OPERATIONS[name].ambiguous for name in names) > MAX_AMBIGUOUS:
                continue
            if split_of(names, reduction) != split:
                continue
            steps = [draw_step(rng, name) for name in names]
            if split_of_function([*(step.line for step in steps), REDUCTIONS[reduction].readings[-1]]) != split:
                continue
            looped = reduction in LOOPS and rng.random() < LOOP_SHARE
            endings = [LOOPS[reduction]] if looped else [(line,) for line in REDUCTIONS[reduction].readings]
            right = [*(step.line for step in steps), *endings[-1]]
            bugs = _draw_bugs(rng, steps, right, n_bugs)
            tests = _telling_tests(rng, steps, endings, right, bugs) if bugs else None
            if tests is None:
                continue
            broken = source(with_bugs(right, bugs))
            visible, hidden, failure = tests
            return Task(
                task_id=task_id_of(self.name, split, level, seed),
                family=self.name,
                split=split,
                level=level,
                prompt=f"Fix f: {sentence(steps, reduction)}\n{broken}\n{failure}",
                public={"entry_point": "f", "tests": visible, "program": broken, "depth": depth, "bugs": n_bugs},
                secret={"tests": hidden, "reference": source(right), "kinds": [bug.kind for bug in bugs]},
            )


def with_bugs(right: Sequence[str], bugs: Sequence[Bug]) -> list[str]:
    """The body with the lines of these bugs in it."""
    wrong = list(right)
    for bug in bugs:
        wrong[bug.position] = bug.line
    return wrong


def _draw_bugs(rng: random.Random, steps: Sequence[Step], right: Sequence[str], n: int) -> list[Bug]:
    """`n` bugs in different lines, kinds drawn evenly; none when a drawn line cannot be wrong."""
    bugs: list[Bug] = []
    for position in rng.sample(range(len(right)), n):
        by_kind: dict[BugKind, list[str]] = {}
        readings = steps[position].lines if position < len(steps) else ()
        for kind, line in bugs_of(right[position]):
            if line not in readings:
                by_kind.setdefault(kind, []).append(line)
        others = [line for line in readings if line != right[position]]
        if others:
            by_kind["reading"] = others
        if not by_kind:
            return []
        kind = rng.choice(sorted(by_kind))
        bugs.append(Bug(kind, position, rng.choice(by_kind[kind])))
    lines = with_bugs(right, bugs)
    return bugs if len(set(lines)) == len(lines) else []  # an edit names its line


def _telling_tests(
    rng: random.Random,
    steps: Sequence[Step],
    endings: Sequence[Sequence[str]],
    right: Sequence[str],
    bugs: Sequence[Bug],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str] | None:
    """Visible and hidden tests that tell each bug, and the first failure; None when these inputs do not."""
    inputs = [*draw_inputs(rng, VISIBLE + 1, 6), *draw_inputs(rng, HIDDEN + 1, 6)]
    n = VISIBLE + 1
    wanted = outputs(right, inputs)
    if not telling(wanted):
        return None
    visible, hidden = (inputs[:n], wanted[:n]), (inputs[n:], wanted[n:])
    for chosen in {tuple(bugs), *((bug,) for bug in bugs)}:
        chain = stages(with_bugs(right, chosen))
        if agrees(chain, *visible) or agrees(chain, *hidden):
            return None
    for lines, ending in itertools.product(itertools.product(*(step.lines for step in steps)), endings):
        chain = stages([*lines, *ending])
        if agrees(chain, *visible) and not agrees(chain, *hidden):
            return None
    cases = [{"args": [value], "expected": expected} for value, expected in zip(inputs, wanted, strict=True)]
    return cases[:n], cases[n:], _first_failure(with_bugs(right, bugs), *visible)


def _first_failure(wrong: Sequence[str], inputs: Sequence[Any], wanted: Sequence[Any]) -> str:
    """The first failing visible test, as a run would show it; of an exception its type alone."""
    for value, want, got in zip(inputs, wanted, outputs(wrong, inputs), strict=True):
        if isinstance(got, Failure):
            return f"f({compact(value)})\n{got}"
        if got != want:
            return f"f({compact(value)})\ngot {compact(got)[:60]}\nwant {compact(want)}"
    raise AssertionError("a task without a failing visible test")

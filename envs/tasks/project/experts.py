"""Experts of mixed quality for `project`; they see observations only.

- careful: runs the tests, reads module after module, mends what contradicts the sentence and runs the tests again; then
  walks through the readings of ambiguous phrases so that each combination comes up once (Gray code); submits when the
  tests pass
- hasty: reads one module, writes its lines anew as the sentence has them, right or wrong before, and submits
- sloppy: does so with modules at random, running the tests; after each failure it may give up and submit anyway
- reviewer: takes over after somebody else has read a module and changed a line, and goes on as a careful one does
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping, Sequence

from ...scripts import Expert, Script
from .mistakes import mistakes_in
from .reading import Line, Wish, module_paths, read_task

SLIP = 0.1
"""Probability that a hasty or sloppy expert makes a mistake in a line."""
GIVE_UP = 0.35
"""Probability that a sloppy expert submits after the tests failed."""
TAKES_OVER_AT: Mapping[str, int] = {"reviewer": 2}
"""Turn from which on an expert's actions are its own; the others' always are."""
Part = Generator[str, str, bool]
"""A part of a script; gives whether the tests passed."""


def careful(observation: str, rng: random.Random) -> Script:
    """See the module's docstring."""
    wish = read_task(observation)
    yield from _careful(wish, rng)
    yield "submit"


def hasty(observation: str, rng: random.Random) -> Script:
    """See the module's docstring."""
    wish = read_task(observation)
    paths = yield from _paths(wish)
    yield from _rewrite(wish, rng, paths)
    yield "submit"


def sloppy(observation: str, rng: random.Random) -> Script:
    """See the module's docstring."""
    wish = read_task(observation)
    paths = yield from _paths(wish)
    passed = False
    while not passed:
        yield from _rewrite(wish, rng, paths)
        passed = yield from _tests_pass()
        if rng.random() < GIVE_UP:
            break
    yield "submit"


def reviewer(observation: str, rng: random.Random) -> Script:
    """See the module's docstring."""
    wish = read_task(observation)
    paths = module_paths(wish.files) or [f"{wish.template.name}.py"]
    yield from _change(wish, rng, paths)
    yield from _careful(wish, rng)
    yield "submit"


EXPERTS: Mapping[str, Expert] = {"careful": careful, "hasty": hasty, "sloppy": sloppy, "reviewer": reviewer}


def _paths(wish: Wish) -> Generator[str, str, list[str]]:
    """The modules' paths: from the task, or listed."""
    paths: Sequence[str] = wish.files
    if not paths:
        paths = (yield "list").split()
    return module_paths(paths)


def _tests_pass() -> Part:
    report = yield "run_tests"
    return report.rpartition("\n")[2].startswith("all ")


def _careful(wish: Wish, rng: random.Random) -> Part:
    if (yield from _tests_pass()):
        return True
    paths = yield from _paths(wish)
    rng.shuffle(paths)
    open_lines: list[Line] = []
    for path in paths:
        lines = wish.lines(path, (yield f"read {path}"))
        for number, line in enumerate(lines):
            if line.is_wrong:
                lines[number] = _now(line, rng.choice(line.right))
                yield from _edit(line, lines[number].text)
                if (yield from _tests_pass()):
                    return True
        open_lines += [line for line in lines if line.is_open]
    return (yield from _other_readings(open_lines))


def _other_readings(lines: list[Line]) -> Part:
    """Tries the other combinations of readings."""
    for step in range(1, 2 ** len(lines)):
        number = (step & -step).bit_length() - 1
        line = lines[number]
        other = next(right for right in line.right if right != line.text)
        yield from _edit(line, other)
        lines[number] = _now(line, other)
        if (yield from _tests_pass()):
            return True
    return False


def _rewrite(wish: Wish, rng: random.Random, paths: Sequence[str]) -> Script:
    """Reads a module and writes every line anew that the sentence has something to say about."""
    path = rng.choice(paths)
    for line in wish.lines(path, (yield f"read {path}")):
        new = rng.choice(line.right)
        slips = [text for _, text in mistakes_in(new)]
        yield from _edit(line, rng.choice(slips) if slips and rng.random() < SLIP else new)


def _change(wish: Wish, rng: random.Random, paths: Sequence[str]) -> Script:
    """Reads a module and changes one of its lines, for better or worse."""
    path = rng.choice(paths)
    lines = wish.lines(path, (yield f"read {path}"))
    if lines:
        line = rng.choice(lines)
        others = [text for text in (*line.right, *(text for _, text in mistakes_in(line.text))) if text != line.text]
        if others:
            yield from _edit(line, rng.choice(others))


def _edit(line: Line, new: str) -> Script:
    """Puts a line in place of another."""
    yield f"edit\n{line.path}\n{line.number}\n{new}"


def _now(line: Line, text: str) -> Line:
    return Line(line.path, line.number, text, line.right)

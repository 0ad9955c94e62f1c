"""Task family `project`: a small repository with one to four mistakes in it, and tests of its main function that fail.

A sentence says what the main function should do, and in which order; the mistakes are in lines that it depends on,
mostly in other modules. Some contradict the sentence (`mistakes` lists their kinds), others are the wrong reading of an
ambiguous phrase, which only the tests can tell. Splits share no sequence of two or more parts, and no function:
programs that give the same on all of `PROBES` belong to one split.

Each mistake fails visible and hidden tests, alone and with others. Readings that pass the visible tests pass the hidden
ones; a single wrong change to a line (by `mistakes_in`) passes the hidden ones only if it gives the same on every input
that was tried.

Levels: (modules, parts, mistakes, ambiguous parts at most) = 1: (2, 1, 1, 0), 2: (2, 2, 1, 0), 3: (3, 3, 1, 1),
4: (4, 3, 2, 2), 5: (5, 4, 2, 2), 6: (5, 5, 3, 2), 7: (5, 6, 4, 3).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ....core.seeding import derive_seed
from ....core.tasks import Split, Task, task_id_of
from .layout import SHAPES, Block, Design, Slot, files_of
from .mistakes import Kind, mistakes_in
from .templates import TEMPLATES
from .trial import RAISED, Trial, as_json

VISIBLE, HIDDEN = 3, 8
"""Least numbers of tests."""
POOL = 30
"""Inputs that visible and hidden tests are chosen from, each."""
PROBES_PER_TEMPLATE = 20
MIN_DISTINCT = 8
"""Among the outputs for the probes at least so many must differ, or the task says too little."""
NAMED_MODULES = 4
"""In a larger repository the task does not name the files."""
Edit = tuple[int, int, str]
"""Number of a block, number of its line, and the new line."""


class ProjectFamily:
    """Generates `project` tasks."""

    name = "project"
    levels = tuple(SHAPES)

    def generate(self, seed: int, split: Split, level: int) -> Task:
        """Gives the task of this seed; draws until the mistakes show in the visible and in the hidden tests."""
        rng = random.Random(derive_seed("project", split, level, seed))
        while True:
            design = _draw_design(rng, split, level)
            draft = _Draft(design, rng).finished() if design else None
            if draft is not None:
                public, secret, prompt = draft
                return Task(
                    task_id=task_id_of(self.name, split, level, seed),
                    family=self.name,
                    split=split,
                    level=level,
                    prompt=prompt,
                    public=public,
                    secret=secret,
                )


def split_of_parts(template: str, parts: Sequence[str]) -> Split:
    """The split that a sequence of parts belongs to: 20 % held-out, 10 % validation, the rest train."""
    return _split_of_text("|".join([template, *parts]), heldout=2, validation=1)


def split_of_outputs(outputs: Sequence[Any]) -> Split:
    """The split that a function belongs to by what it gives: 30 % held-out, 20 % validation, the rest train."""
    return _split_of_text(repr(outputs), heldout=3, validation=2)


def _split_of_text(text: str, heldout: int, validation: int) -> Split:
    bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % 10
    return "heldout" if bucket < heldout else "validation" if bucket < heldout + validation else "train"


@functools.cache
def probes(kind: str) -> tuple[Any, ...]:
    """Inputs of a kind, from all templates that take it; they tell functions apart."""
    rng = random.Random(f"probes of {kind}")
    templates = [template for template in TEMPLATES.values() if template.kind == kind]
    return tuple(template.draw(rng) for _ in range(PROBES_PER_TEMPLATE) for template in templates)


def _draw_design(rng: random.Random, split: Split, level: int) -> Design | None:
    """A program of this split that says enough, or None."""
    shape, template = SHAPES[level], rng.choice(list(TEMPLATES.values()))
    parts = rng.sample(template.parts, shape.parts)
    if sum(part.ambiguous for part in parts) > shape.ambiguous:
        return None
    if len(parts) > 1 and split_of_parts(template.name, [part.name for part in parts]) != split:
        return None
    places = [index % shape.leaves for index in range(shape.parts)]
    rng.shuffle(places)
    choices = tuple(part.draw(rng) for part in parts)
    design = Design(template=template, choices=choices, places=tuple(places), shape=shape)
    trial = Trial(design.blocks(), template.function)
    outputs = [trial.output(value) for value in probes(template.kind)]
    distinct = set(map(repr, outputs))
    if len(distinct) < MIN_DISTINCT or any(text.startswith(f"'{RAISED}") for text in distinct):
        return None
    return design if split_of_outputs(as_json(outputs)) == split else None


class _Draft:
    """A task in the making."""

    def __init__(self, design: Design, rng: random.Random) -> None:
        self._design, self._rng = design, rng
        self._blocks = design.blocks()
        self._slots = design.slots()
        self._pool = [design.template.draw(rng) for _ in range(2 * POOL)]
        self._trial = Trial(self._blocks, design.template.function)
        self._wanted = [self._trial.output(value) for value in self._pool]

    def finished(self) -> tuple[dict[str, Any], dict[str, Any], str] | None:
        """Public part, secret part and prompt; None when what was drawn does not do."""
        if any(str(value).startswith(RAISED) for value in self._wanted):
            return None
        bugs = self._draw_bugs()
        if bugs is None:
            return None
        kinds, edits = zip(*bugs, strict=True)
        visible, hidden = self._chosen(edits)
        if not visible or not hidden:
            return None
        return self._written(kinds, edits, visible, hidden)

    # ----------------------------------------------------------------------------------------------- mistakes
    def _draw_bugs(self) -> list[tuple[Kind, Edit]] | None:
        """Mistakes in different lines, the first of them not in the main module."""
        rng, bugs = self._rng, list[tuple[Kind, Edit]]()
        slots = list(self._slots)
        rng.shuffle(slots)
        slots.sort(key=lambda slot: slot.block == 0)
        chosen = [slots[0], *rng.sample(slots[1:], self._design.shape.bugs - 1)]
        for slot in chosen:
            by_kind: dict[Kind, list[str]] = {}
            for kind, line in self._wrong_lines(slot):
                by_kind.setdefault(kind, []).append(line)
            if not by_kind:
                return None
            kind = rng.choice(sorted(by_kind))
            bugs.append((kind, (slot.block, slot.line, rng.choice(by_kind[kind]))))
        if sum(kind == "result" for kind, _ in bugs) > 1:
            return None  # lines that call something have few other ways to be wrong
        return bugs if self._edits_name_their_lines([edit for _, edit in bugs]) else None

    def _wrong_lines(self, slot: Slot) -> Iterator[tuple[Kind, str]]:
        right = slot.right[slot.reading]
        for reading in slot.right:
            if reading != right:
                yield "reading", reading
        for kind, line in mistakes_in(right):
            if line not in slot.right:
                yield kind, line

    def _edits_name_their_lines(self, edits: Sequence[Edit]) -> bool:
        """Whether every line of a module that is to be edited is there once, before and after."""
        for path in {self._blocks[block].path for block, _, _ in edits}:
            for blocks in (self._blocks, self._with(edits)):
                lines = [line.strip() for block in blocks if block.path == path for line in block.lines]
                if any(lines.count(line) > 1 for line in lines if not line.startswith("return t")):
                    return False
        return True

    def _with(self, edits: Iterable[Edit]) -> list[Block]:
        blocks = list(self._blocks)
        for number, line, text in edits:
            blocks[number] = blocks[number].with_line(line, text)
        return blocks

    # -------------------------------------------------------------------------------------------------- tests
    def _chosen(self, edits: Sequence[Edit]) -> tuple[list[int], list[int]]:
        """Numbers of the visible and of the hidden inputs; empty when they cannot tell what they should."""
        subsets = [s for size in range(1, len(edits) + 1) for s in itertools.combinations(edits, size)]
        readings = list(self._reading_edits())
        chosen: list[list[int]] = []
        for pool, least in ((range(POOL), VISIBLE), (range(POOL, 2 * POOL), HIDDEN)):
            numbers: list[int] = []
            for subset in subsets:
                if not self._tell(subset, numbers, pool):
                    return [], []
            for others in readings:
                self._tell(others, numbers, pool)
            rest = [number for number in pool if number not in numbers]
            numbers += rest[: max(0, least - len(numbers))]
            chosen.append(numbers)
        visible, hidden = chosen
        for near in self._near_misses(edits):
            self._tell(near, hidden, range(POOL, 2 * POOL))
        if not self._readings_are_decided(readings, visible, hidden):
            return [], []
        self._rng.shuffle(visible)
        return visible, hidden

    def _tell(self, edits: Sequence[Edit], numbers: list[int], pool: range) -> bool:
        """Makes sure that the chosen inputs tell a wrong program from the right one, if the pool can."""
        with_edits = self._edited(edits)
        found = True
        if not any(self._differs(number) for number in numbers):
            number = next((number for number in pool if self._differs(number)), None)
            found = number is not None
            if number is not None:
                numbers.append(number)
        self._restore(with_edits)
        return found

    def _readings_are_decided(self, readings: Sequence[Sequence[Edit]], visible: list[int], hidden: list[int]) -> bool:
        for edits in readings:
            changed = self._edited(edits)
            told = any(map(self._differs, visible)) or not any(map(self._differs, hidden))
            self._restore(changed)
            if not told:
                return False
        return True

    def _reading_edits(self) -> Iterator[list[Edit]]:
        """The changes that lead to every other combination of readings."""
        open_slots = [slot for slot in self._slots if len(slot.right) > 1]
        for lines in itertools.product(*(slot.right for slot in open_slots)):
            edits = [
                (slot.block, slot.line, line)
                for slot, line in zip(open_slots, lines, strict=True)
                if line != slot.right[slot.reading]
            ]
            if edits:
                yield edits

    def _near_misses(self, edits: Sequence[Edit]) -> Iterator[list[Edit]]:
        """Programs with a mistake left in them and a wrong change made, for each mistake."""
        for left in edits:
            for slot in self._slots:
                here = (slot.block, slot.line) == left[:2]
                now = left[2] if here else slot.right[slot.reading]
                for line in dict.fromkeys([*slot.right, *(line for _, line in mistakes_in(now))]):
                    change = (slot.block, slot.line, line)
                    if here and line != slot.right[slot.reading]:
                        yield [change]
                    elif not here and line != now:
                        yield [left, change]

    def _differs(self, number: int) -> bool:
        return self._trial.output(self._pool[number]) != self._wanted[number]

    def _edited(self, edits: Sequence[Edit]) -> set[int]:
        blocks, changed = self._with(edits), {edit[0] for edit in edits}
        for number in changed:
            self._trial.put(blocks[number])
        return changed

    def _restore(self, changed: set[int]) -> None:
        for number in changed:
            self._trial.put(self._blocks[number])

    # ------------------------------------------------------------------------------------------------ writing
    def _written(
        self, kinds: Sequence[Kind], edits: Sequence[Edit], visible: Sequence[int], hidden: Sequence[int]
    ) -> tuple[dict[str, Any], dict[str, Any], str]:
        template, imports = self._design.template, self._design.imports()
        right, broken = files_of(self._blocks, imports), files_of(self._with(edits), imports)
        tests = self._test_file(visible)
        files = {**broken, f"test_{template.name}.py": tests}
        public = {"files": files, "modules": self._design.shape.modules, "bugs": len(edits)}
        cases = [
            {"args": [template.name, template.function, [self._pool[n]]], "expected": as_json(self._wanted[n])}
            for n in hidden
        ]
        named = sorted(files) if self._design.shape.modules <= NAMED_MODULES else []
        fixed = {path: text for path, text in right.items() if text != broken[path]}
        return public, {"tests": cases, "files": fixed, "kinds": list(kinds)}, self._design.prompt(named)

    def _test_file(self, visible: Sequence[int]) -> str:
        template = self._design.template
        tests = [
            f"def test_{i}():\n    assert {template.function}({self._pool[n]!r}) == {self._wanted[n]!r}"
            for i, n in enumerate(visible, 1)
        ]
        return "\n\n\n".join([f"from {template.name} import {template.function}", *tests]) + "\n"

"""From a design (a template, its parts, their modules) to the blocks of code that a repository is made of.

The main module calls the parts' functions, which lie in one or two other modules. Larger programs have a module in the
middle, which calls some of them, and one that holds the constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .parts import Choice, Template

CONFIG = "config"
GAP = "\n\n\n"
"""Between the blocks of a module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large a repository is."""

    parts: int
    leaves: int
    """Modules that the parts' functions are in."""
    has_middle: bool
    has_config: bool
    bugs: int
    ambiguous: int
    """Parts with two readings, at most: more combinations are not tried in a few turns."""

    @property
    def modules(self) -> int:
        """How many modules there are, tests aside."""
        return 1 + self.leaves + self.has_middle + self.has_config


SHAPES: dict[int, Shape] = {
    1: Shape(parts=1, leaves=1, has_middle=False, has_config=False, bugs=1, ambiguous=0),
    2: Shape(parts=2, leaves=1, has_middle=False, has_config=False, bugs=1, ambiguous=0),
    3: Shape(parts=3, leaves=2, has_middle=False, has_config=False, bugs=1, ambiguous=1),
    4: Shape(parts=3, leaves=2, has_middle=False, has_config=True, bugs=2, ambiguous=2),
    5: Shape(parts=4, leaves=2, has_middle=True, has_config=True, bugs=2, ambiguous=2),
    6: Shape(parts=5, leaves=2, has_middle=True, has_config=True, bugs=3, ambiguous=2),
    7: Shape(parts=6, leaves=2, has_middle=True, has_config=True, bugs=4, ambiguous=3),
}
"""Level -> size."""


@dataclass(frozen=True, slots=True)
class Block:
    """One function, or the constants: what is edited line by line."""

    path: str
    name: str
    lines: tuple[str, ...]

    def with_line(self, number: int, line: str) -> Block:
        """This block with another line in place of one."""
        lines = (*self.lines[:number], line, *self.lines[number + 1 :])
        return Block(self.path, self.name, lines)


@dataclass(frozen=True, slots=True)
class Slot:
    """A line that may be wrong: where it is, and what may rightly stand there (one line for each reading)."""

    block: int
    line: int
    right: tuple[str, ...]
    reading: int
    """Which of them is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A program before it is written down."""

    template: Template
    choices: tuple[Choice, ...]
    """The parts in the order in which they work."""
    places: tuple[int, ...]
    """For each of them, which leaf its function is in."""
    shape: Shape

    def blocks(self) -> list[Block]:
        """All functions as they should be, the main one first."""
        template, shape = self.template, self.shape
        half = len(self.choices) // 2 if shape.has_middle else 0
        calls = [_indented(choice.part.call) for choice in self.choices]
        main = [f"def {template.function}({template.parameter}):", _indented(f"t = {template.start}")]
        blocks: list[Block] = []
        if shape.has_middle:
            middle = template.middle
            main.append(_indented(f"t = {middle}(t, {template.parameter})"))
            lines = (f"def {middle}(t, {template.parameter}):", *calls[:half], _indented("return t"))
            blocks.append(Block(f"{middle}.py", middle, lines))
        main += [*calls[half:], _indented(f"return {template.end}")]
        blocks.insert(0, Block(f"{template.name}.py", template.function, tuple(main)))
        for choice, place in zip(self.choices, self.places, strict=True):
            part = choice.part
            lines = (f"def {part.name}({part.parameters}):", _indented(choice.line(shape.has_config)))
            blocks.append(Block(f"{template.leaves[place]}.py", part.name, lines))
        settings = [line for choice in self.choices for line in choice.settings()] if shape.has_config else []
        if settings:
            blocks.append(Block(f"{CONFIG}.py", CONFIG, tuple(settings)))
        return blocks

    def slots(self) -> list[Slot]:
        """Every line of `blocks` that a mistake may be in."""
        slots: list[Slot] = []
        readings = {choice.part.name: choice for choice in self.choices}
        calls = {choice.part.call for choice in self.choices}
        for number, block in enumerate(self.blocks()):
            for at, line in enumerate(block.lines):
                choice = readings.get(block.name)
                if choice is not None and at == 1:
                    right = tuple(map(_indented, choice.lines(self.shape.has_config)))
                    slots.append(Slot(number, at, right, choice.reading))
                elif line.strip() in calls or block.path == f"{CONFIG}.py":
                    slots.append(Slot(number, at, (line,), 0))
        return slots

    def imports(self) -> dict[str, list[str]]:
        """Import lines, by path."""
        template, shape = self.template, self.shape
        half = len(self.choices) // 2 if shape.has_middle else 0
        wanted: dict[str, dict[str, list[str]]] = {}
        users = [template.middle] * half + [template.name] * (len(self.choices) - half)
        for choice, place, user in zip(self.choices, self.places, users, strict=True):
            leaf = template.leaves[place]
            wanted.setdefault(user, {}).setdefault(leaf, []).append(choice.part.name)
            names = choice.names(shape.has_config)
            if names:
                wanted.setdefault(leaf, {}).setdefault(CONFIG, []).extend(names)
        if shape.has_middle:
            wanted.setdefault(template.name, {})[template.middle] = [template.middle]
        return {
            f"{user}.py": [
                f"from {module} import {', '.join(sorted(set(names)))}" for module, names in sorted(of.items())
            ]
            for user, of in wanted.items()
        }

    def prompt(self, paths: Iterable[str]) -> str:
        """The task in English, and the names of files, if there are some to be named."""
        template = self.template
        does = ", ".join([template.intro, *(choice.phrase for choice in self.choices)])
        named = " ".join(paths)
        task = f"Fix {template.function}({template.parameter}) in {template.name}.py: {does}."
        return f"{task}\nFiles: {named}" if named else task


def files_of(blocks: Sequence[Block], imports: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The text of every module, by path."""
    texts: dict[str, list[str]] = {}
    for block in blocks:
        texts.setdefault(block.path, []).append("\n".join(block.lines))
    for path, lines in imports.items():
        texts[path].insert(0, "\n".join(lines))
    return {path: GAP.join(parts) + "\n" for path, parts in sorted(texts.items())}


def _indented(line: str) -> str:
    return f"    {line}"

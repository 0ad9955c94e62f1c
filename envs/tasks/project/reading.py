"""Reads a `project` task as an agent sees it: what the sentence asks for, and which lines of a file contradict it."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .layout import CONFIG
from .parts import Choice, Part, Template
from .templates import TEMPLATES

_TASK = re.compile(r"Fix \w+\(\w+\) in (\w+)\.py: (.+)\.(?:\nFiles: (.+))?$", re.MULTILINE)
_DEFINITION = re.compile(r"def (\w+)\(")
_CALL = re.compile(r"(?:t = )?(\w+)\(.*\)")
_SETTING = re.compile(r"([A-Z_]+) = ")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file that the sentence has something to say about."""

    path: str
    number: int
    text: str
    right: tuple[str, ...]
    """What may stand there, one line for each reading."""

    @property
    def is_wrong(self) -> bool:
        """Whether it contradicts the sentence."""
        return self.text not in self.right

    @property
    def is_open(self) -> bool:
        """Whether only tests can tell what should stand there."""
        return len(self.right) > 1


@dataclass(frozen=True, slots=True)
class Wish:
    """What the sentence asks for."""

    template: Template
    choices: tuple[Choice, ...]
    """The parts with their constants; which reading is meant is not known."""
    files: tuple[str, ...]
    """As far as the task names them."""

    def lines(self, path: str, text: str) -> list[Line]:
        """The lines of a file, as it is read, that the sentence has something to say about."""
        found: list[Line] = []
        function = ""
        for line in text.split("\n"):
            number, _, rest = line.partition(" ")
            stripped = rest.strip()
            definition = _DEFINITION.match(stripped)
            if definition:
                function = definition[1]
                continue
            right = self._right(path, function, stripped)
            if right:
                found.append(Line(path, int(number), stripped, right))
        return found

    def _right(self, path: str, function: str, line: str) -> tuple[str, ...]:
        by_name = {choice.part.name: choice for choice in self.choices}
        if path == f"{CONFIG}.py":
            settings = [setting for choice in self.choices for setting in choice.settings()]
            name = _SETTING.match(line)
            return tuple(setting for setting in settings if name and setting.startswith(name[0]))
        if function in by_name and line.startswith("return "):
            choice = by_name[function]
            return choice.lines(has_config=any(name in line for name in choice.names(True)) or not choice.values)
        call = _CALL.fullmatch(line)
        return (by_name[call[1]].part.call,) if call and call[1] in by_name else ()


def read_task(observation: str) -> Wish:
    """What the first observation asks for.

    Raises:
        ValueError: It is no task of the family `project`.
    """
    match = _TASK.search(observation)
    if match is None or match[1] not in TEMPLATES:
        raise ValueError(f"no task of a repository in {observation[:80]!r}")
    template = TEMPLATES[match[1]]
    phrases = match[2].split(", ")[1:]
    choices = tuple(_choice(template, phrase) for phrase in phrases)
    return Wish(template, choices, tuple((match[3] or "").split()))


def module_paths(paths: Sequence[str]) -> list[str]:
    """The files that are no tests."""
    return [path for path in paths if path.endswith(".py") and not path.startswith("test_")]


def _choice(template: Template, phrase: str) -> Choice:
    for part in template.parts:
        match = _pattern(part.phrase).fullmatch(phrase)
        if match is not None:
            return Choice(part, _values(part, match.groupdict()), 0)
    raise ValueError(f"{template.name}: nothing is called {phrase!r}")


def _values(part: Part, said: dict[str, str]) -> tuple[tuple[str, str | int], ...]:
    return tuple(
        (name, said[name] if isinstance(kind, str) else int(said[name])) for name, kind in part.constants.items()
    )


@functools.cache
def _pattern(phrase: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\w+)", re.escape(phrase)))

"""Ways to get one line of a repository wrong: what the `project` family puts in, and what it tries out.

Kinds: `bound` (off by one), `condition` (inverted), `constant`, `operator`, `arguments` (swapped at a call), `result`
(of a call thrown away), `key`, `slice`. A wrong `reading` of an ambiguous phrase is the family's own affair.
"""

from __future__ import annotations

import functools
import re
from typing import Literal

Kind = Literal["bound", "condition", "constant", "operator", "arguments", "result", "key", "slice", "reading"]

_RULES: tuple[tuple[Kind, str, str], ...] = (
    ("bound", r" >= ", " > "),
    ("bound", r" > ", " >= "),
    ("bound", r" <= ", " < "),
    ("bound", r" < ", " <= "),
    ("bound", r"\[1:\]", "[2:]"),
    ("bound", r"\[:1\]", "[:2]"),
    ("condition", r" >= ", " < "),
    ("condition", r" > ", " <= "),
    ("condition", r" <= ", " > "),
    ("condition", r" < ", " >= "),
    ("condition", r"\bmin\(", "max("),
    ("condition", r"\bmax\(", "min("),
    ("condition", r" == ", " != "),
    ("operator", r" \+ ", " - "),
    ("operator", r" - ", " + "),
    ("operator", r" \* ", " + "),
    ("operator", r" // ", " * "),
    ("slice", r"\[:([\w.]+)\]", r"[\1:]"),
    ("slice", r"\[(\w+):\]", r"[:\1]"),
    ("arguments", r"^(\s*t = \w+\()(t), ([^)]+\)?)\)$", r"\1\3, \2)"),
    ("result", r"^(\s*)t = (\w+\(t[^)]*\)?\))$", r"\1\2"),
)
_NUMBER = re.compile(r"(?<![\w.\[])([1-9]\d?)(?=\b)")
_KEY = re.compile(r'"([a-f])"')


@functools.lru_cache(maxsize=50_000)
def mistakes_in(line: str) -> tuple[tuple[Kind, str], ...]:
    """All single mistakes in a line, as (kind, wrong line)."""
    found: list[tuple[Kind, str]] = []
    for kind, pattern, new in _RULES:
        for match in re.finditer(pattern, line):
            found.append((kind, line[: match.start()] + match.expand(new) + line[match.end() :]))
    for match in _NUMBER.finditer(line):
        for change in (-1, 1):
            number = str(int(match[1]) + change)
            found.append(("constant", line[: match.start()] + number + line[match.end() :]))
    for match in _KEY.finditer(line):
        other = chr(ord("a") + (ord(match[1]) - ord("a") + 1) % 6)
        found.append(("key", line[: match.start(1)] + other + line[match.end(1) :]))
    return tuple((kind, wrong) for kind, wrong in dict.fromkeys(found) if wrong != line)

"""Ways to get one line of a small program wrong: what the `repair` family injects.

Kinds: `slice` (off by one, a lost colon), `operator`, `comparison`, `operands` (swapped), `constant`, `default` (a
missing edge case), `function` (max for min, the last item for the first). A wrong `reading` of an ambiguous phrase is
the family's own affair.
"""

from __future__ import annotations

import functools
import re
from typing import Literal, get_args

BugKind = Literal["slice", "operator", "comparison", "operands", "constant", "default", "function", "reading"]
KINDS: tuple[BugKind, ...] = get_args(BugKind)

_RULES: tuple[tuple[BugKind, str, str], ...] = (
    ("slice", r"\[::-1\]", "[:-1]"),
    ("slice", r"\[::2\]", "[:2]"),
    ("slice", r"\[1::2\]", "[1:2]"),
    ("slice", r"zip\(x, x\[1:\]\)", "zip(x, x[2:])"),
    ("slice", r"in x:$", "in x[1:]:"),
    ("operator", r"\[v \+ ", "[v - "),
    ("operator", r"\[v \* ", "[v + "),
    ("operator", r"\[b - a ", "[b + a "),
    ("operator", r"\[a - b ", "[a + b "),
    ("operator", r"\[-v ", "[v "),
    ("operator", r"t \+ ", "t - "),
    ("comparison", r" > ", " < "),
    ("comparison", r" < ", " > "),
    ("comparison", r" >= ", " <= "),
    ("comparison", r" <= ", " >= "),
    ("comparison", r"% 2 == 0", "% 2"),
    ("comparison", r"% 2\]", "% 2 == 0]"),
    ("operands", r"(x\[\S+\]) \+ (x\[\S+\])", r"\2 + \1"),
    ("operands", r"v (if v [<>] t) else t", r"t \1 else v"),
    ("constant", r"^t = 0$", "t = 1"),
    ("constant", r"t \+ 1", "t + 2"),
    ("default", r" if x else 0$", ""),
    ("default", r", default=0", ""),
    ("function", r"max\(", "min("),
    ("function", r"min\(", "max("),
    ("function", r"^return x\[0\]", "return x[-1]"),
    ("function", r"^return x\[-1\]", "return x[0]"),
    ("function", r"sum\(x\)", "len(x)"),
    ("function", r"len\(x\)", "sum(x)"),
    ("function", r"sorted\(x\)", "list(x)"),
    ("function", r"sorted\(set\(x\)\)", "sorted(x)"),
    ("function", r"list\(dict\.fromkeys\(x\)\)", "list(x)"),
)
_NUMBER_IN_SLICE = re.compile(r"(?<=\[)(-?)([1-9])(?=:\])|(?<=\[:)(-?)([1-9])(?=\])")
_NUMBER = re.compile(r"(?<=[+*><=] )([2-9])\b")


@functools.cache
def bugs_of(line: str) -> tuple[tuple[BugKind, str], ...]:
    """All single mistakes in a line, as (kind, wrong line)."""
    found: list[tuple[BugKind, str]] = []
    for kind, pattern, new in _RULES:
        if re.search(pattern, line):
            found.append((kind, re.sub(pattern, new, line, count=1)))
    for change in (-1, 1):
        found.append(("slice", _NUMBER_IN_SLICE.sub(lambda match, by=change: _nudged(match[0], by), line)))
        found.append(("constant", _NUMBER.sub(lambda match, by=change: str(int(match[1]) + by), line)))
    return tuple((kind, wrong) for kind, wrong in dict.fromkeys(found) if wrong != line)


def _nudged(number: str, by: int) -> str:
    """The bound of a slice, moved by one; never to 0, which means something else."""
    size = abs(int(number)) + by
    return number if size < 1 else f"{'-' if number[0] == '-' else ''}{size}"

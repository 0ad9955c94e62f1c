"""Texts as agents change and read them: lines numbered, one of them replaced, a long output cut."""

from __future__ import annotations

MAX_SHOWN = 2000
"""Characters of output that an agent reads at once."""


def shortened(text: str) -> str:
    """The text, or its head and tail when it is longer than `MAX_SHOWN`."""
    if len(text) <= MAX_SHOWN:
        return text
    half = MAX_SHOWN // 2
    return f"{text[:half]}\n[... {len(text) - MAX_SHOWN} characters left out ...]\n{text[-half:]}"


def replaced(program: str, old: str, new: str) -> str | None:
    """The program with one line (its indentation stays) or one unique passage replaced; None if `old` is not there."""
    if not old.strip():
        return None
    lines = program.split("\n")
    for number, line in enumerate(lines):
        if line.strip() == old.strip():
            indent = line[: len(line) - len(line.lstrip())]
            first, *others = new.strip("\n").split("\n")
            lines[number] = "\n".join([indent + first.strip(), *others])
            return "\n".join(lines)
    return program.replace(old, new, 1) if program.count(old) == 1 else None


def numbered(text: str) -> str:
    """The text with each line's number before it, from 1 on."""
    return "\n".join(f"{number} {line}".rstrip() for number, line in enumerate(text.split("\n"), 1))


def replaced_by_number(text: str, number: int, new: str) -> str | None:
    """The text with another line in place of that of this number (its indentation stays); None if there is no such."""
    lines = text.rstrip("\n").split("\n")
    if not 1 <= number <= len(lines):
        return None
    old = lines[number - 1]
    first, *others = new.strip("\n").split("\n")
    lines[number - 1] = "\n".join([old[: len(old) - len(old.lstrip())] + first.strip(), *others])
    return "\n".join(lines) + "\n"

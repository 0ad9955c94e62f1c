"""The modes of isolation that every attack is tried in, and the attacks that are known to get through."""

from __future__ import annotations

from typing import NamedTuple


class Mode(NamedTuple):
    """A backend and how it isolates."""

    backend: str
    isolation: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.isolation}"


NAMESPACES = Mode("local", "namespaces")
MODES = (NAMESPACES,)

KNOWN: dict[tuple[Mode, str], str] = {
    (NAMESPACES, "neighbours: locks on files that all see"): (
        "sessions share the files of the interpreter and the system with each other and the host, and flock(2) needs no "
        "right to write"
    ),
    (NAMESPACES, "neighbours: the room in pipes of a user"): (
        "all sessions of a jail are one user of the kernel, whose pipes shrink once they hold 64 MiB together"
    ),
}
"""(mode, class and name of the attack) -> why it gets through; its test must fail."""

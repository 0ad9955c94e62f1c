"""The modes of isolation that every attack is tried in, and the attacks that are known to get through."""

from __future__ import annotations

from typing import NamedTuple


class Mode(NamedTuple):
    """A backend and how it isolates."""

    backend: str
    isolation: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.isolation}"


MODES = (Mode("local", "namespaces"),)

KNOWN: dict[tuple[Mode, str], str] = {}
"""(mode, class and name of the attack) -> why it gets through; its test must fail."""

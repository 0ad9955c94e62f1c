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
LANDLOCK = Mode("local", "landlock")
MODES = (NAMESPACES, LANDLOCK)

_KERNEL = "memory is what processes show as theirs; this the kernel holds for them"
_UNWAITED = "CPU time is that of living processes and of those that were waited for; others take theirs with them"

KNOWN: dict[tuple[Mode, str], str] = {
    (NAMESPACES, "neighbours: locks on files that all see"): (
        "sessions share the files of the interpreter and the system with each other and the host, and flock(2) needs no "
        "right to write"
    ),
    (NAMESPACES, "neighbours: the room in pipes of a user"): (
        "all sessions of a jail are one user of the kernel, whose pipes shrink once they hold 64 MiB together"
    ),
    (NAMESPACES, "exhaustion: memory in pipes"): _KERNEL,
    (NAMESPACES, "exhaustion: memory in sockets of a few processes"): (
        "sockets of up to 4 processes, or up to 1024 descriptors, are not counted, and their buffers can be enlarged"
    ),
    (NAMESPACES, "exhaustion: locks on single bytes"): _KERNEL,
    (NAMESPACES, "exhaustion: mappings of single pages"): _KERNEL,
    (NAMESPACES, "exhaustion: watches of descriptors"): _KERNEL,
    (NAMESPACES, "exhaustion: rules of a sandbox of its own"): _KERNEL,
    (NAMESPACES, "exhaustion: CPU time of children that nobody waits for"): _UNWAITED,
    (NAMESPACES, "exhaustion: CPU time between calls, of children that nobody waits for"): _UNWAITED,
}
"""(mode, class and name of the attack) -> why it gets through; its test must fail."""

_SHARED_BY_COPIES = "live copies share their user namespace, in which the kernel counts"
_SEEN_BY_COPIES = (
    "live copies share their process ids and their user; Landlock keeps signals apart, but not these calls"
)

KNOWN_ON_COPIES: dict[tuple[Mode, str], str] = {
    **{name: why for name, why in KNOWN.items() if name[1].startswith("neighbours")},
    (NAMESPACES, "neighbours: fewer processors, or only idle ones"): _SEEN_BY_COPIES,
    (NAMESPACES, "neighbours: a lower priority for reading and writing"): _SEEN_BY_COPIES,
    (NAMESPACES, "neighbours: the number of processes of a user"): _SHARED_BY_COPIES,
    (NAMESPACES, "neighbours: the number of signals that wait for a user"): _SHARED_BY_COPIES,
}
"""The same for attacks of a session on its own live copy."""

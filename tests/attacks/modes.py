"""The modes of isolation that every attack is tried in, and the attacks that are known to get through."""

from __future__ import annotations

from typing import NamedTuple

from palaestra.sandboxes import control_groups


class Mode(NamedTuple):
    """A backend and how it isolates."""

    backend: str
    isolation: str
    runtime: str | None = None

    def __str__(self) -> str:
        return "-".join(part for part in self if part)


NAMESPACES = Mode("local", "namespaces")
LANDLOCK = Mode("local", "landlock")
MODES = (NAMESPACES, LANDLOCK)
DOCKER_UID = Mode("docker", "uid")
DOCKER_LANDLOCK = Mode("docker", "landlock")
DOCKER_GVISOR = Mode("docker", "uid", "runsc")
CONTAINERS = (DOCKER_UID, DOCKER_LANDLOCK, DOCKER_GVISOR)
"""These need an engine: `make test-docker`, and for gVisor `make test-docker args="-m gvisor"`."""
ALL = (*MODES, *CONTAINERS)
_WITHOUT_MOUNTS = (LANDLOCK, *CONTAINERS)


def _is_counted() -> bool:
    """Whether local sessions have control groups."""
    try:
        return control_groups.version() > 0
    except OSError:
        return False


_WITHOUT_GROUPS = CONTAINERS if _is_counted() else ALL


_ONE_USER = "without root, all sessions of the container are one user, for whom the kernel counts"
_LATE = "without a file system of its own for each session, what is too much is seen within 50 ms, and then removed"
_UNWAITED = (
    "without a control group, CPU time is that of living processes and of those that were waited for; others take "
    "theirs with them"
)

_UNREAD = "gVisor lets everybody set their priority and oom_score_adj, and acts on neither"
_SHARED_MEMORY = "gVisor does not tell what processes share: it counts for each, and the attacker is ended for that"

_LOCKS = (
    "sessions share the files of the interpreter and the system with each other and the host, and flock(2) needs no "
    "right to write"
)

KNOWN: dict[tuple[Mode, str], str] = {
    **{(mode, "neighbours: locks on files that all see"): _LOCKS for mode in ALL},
    **{(mode, "exhaustion: CPU time of children that nobody waits for"): _UNWAITED for mode in _WITHOUT_GROUPS},
    **{
        (mode, "exhaustion: CPU time between calls, of children that nobody waits for"): _UNWAITED
        for mode in _WITHOUT_GROUPS
    },
    **{(mode, "exhaustion: disk in every writable place"): _LATE for mode in _WITHOUT_MOUNTS},
    **{(mode, "exhaustion: disk in files that are deleted and open"): _LATE for mode in _WITHOUT_MOUNTS},
    **{(mode, "exhaustion: disk in holes that are filled through memory"): _LATE for mode in _WITHOUT_MOUNTS},
    **{(mode, "exhaustion: inodes"): _LATE for mode in _WITHOUT_MOUNTS},
    (DOCKER_GVISOR, "escape: settings of the kernel"): _UNREAD,
    (DOCKER_GVISOR, "neighbours: out of turn when memory runs out"): _UNREAD,
    (DOCKER_GVISOR, "neighbours: more than its share"): _UNREAD,
    (DOCKER_GVISOR, "neighbours: the number of processes of a user"): _SHARED_MEMORY,
    (DOCKER_LANDLOCK, "exhaustion: many processes"): _ONE_USER,
    (DOCKER_LANDLOCK, "neighbours: the number of signals that wait for a user"): _ONE_USER,
    (DOCKER_LANDLOCK, "neighbours: the room in pipes of a user"): _ONE_USER,
    (NAMESPACES, "neighbours: the room in pipes of a user"): (
        "all sessions of a jail are one user of the kernel, whose pipes shrink once they hold 64 MiB together"
    ),
}
"""(mode, class and name of the attack) -> why it gets through, at least at times and on some machines."""

_SHARED_BY_COPIES = "live copies share the user, or its namespace, in which the kernel counts"

KNOWN_ON_COPIES: dict[tuple[Mode, str], str] = {
    **{name: why for name, why in KNOWN.items() if name[1].startswith("neighbours")},
    **{(mode, "neighbours: the number of processes of a user"): _SHARED_BY_COPIES for mode in (*MODES, DOCKER_UID)},
    **{(mode, "neighbours: the number of signals that wait for a user"): _SHARED_BY_COPIES for mode in ALL},
    **{(mode, "neighbours: the room in pipes of a user"): _SHARED_BY_COPIES for mode in ALL},
}
"""The same for attacks of a session on its own live copy."""

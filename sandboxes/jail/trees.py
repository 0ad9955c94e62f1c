"""Trees of processes, seen from a common ancestor to which all that loses its parent returns (prctl(2), subreaper)."""

from __future__ import annotations

import contextlib
import os
import signal

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Container, Iterable

_MOST_ROUNDS = 2000
_EMPTY_LOOKS = 2
"""The kernel's list of children misses some while others end."""
_HAS_LISTS = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
"""Whether the kernel lists children at all; gVisor does not."""


def children_of(pid: int) -> list[int]:
    """Gives the ids of a process's children."""
    if not _HAS_LISTS:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent_of(name) == pid]
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    return found


def descendants_of(pid: int) -> list[int]:
    """Gives the ids of everything below a process, parents first."""
    found = children_of(pid)
    for child in found:
        found += children_of(child)
    return found


def is_child(pid: int) -> bool:
    """Whether a process is a child of this one."""
    return _parent_of(pid) == os.getpid()


def _parent_of(pid: int | str) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:  # it has ended
        return -1


def threads_of(user: int) -> int:
    """Gives the number of threads that a user has, as RLIMIT_NPROC counts them."""
    total = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == user:
                    total += len(os.listdir(f"/proc/{name}/task"))
    return total


def has_company() -> bool:
    """Whether another process lives that is of this process's user."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                is_alive = file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
                if is_alive and os.fstat(file.fileno()).st_uid == os.getuid():
                    return True
    return False


def kill_tree(pid: int) -> None:
    """Kills a child of this process with everything below it.

    What is below can lose its parent meanwhile, and comes to this process then: see `kill_strays`.
    """
    _kill([pid])
    for _ in range(_MOST_ROUNDS):
        below = descendants_of(pid)
        if not below:
            return
        _kill(below)


def kill_strays(adopted: Container[int]) -> None:
    """Kills all children of this process that `adopted` does not name, with everything below them.

    A process that is killed can have had a child in that moment; it is found the next time round.
    """
    empty = 0
    for _ in range(_MOST_ROUNDS):
        strays = [child for child in children_of(os.getpid()) if child not in adopted]
        empty = 0 if strays else empty + 1
        if empty == _EMPTY_LOOKS:
            return
        _kill([*(below for stray in strays for below in descendants_of(stray)), *strays])
        for stray in strays:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(stray, os.WNOHANG)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)

"""Trees of processes, seen from a common ancestor to which all that loses its parent returns (prctl(2), subreaper)."""

from __future__ import annotations

import contextlib
import os
import signal

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Container, Iterable

_MOST_ROUNDS = 2000


def children_of(pid: int) -> list[int]:
    """Gives the ids of a process's children."""
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


def threads_of(user: int) -> int:
    """Gives the number of threads that a user has, as RLIMIT_NPROC counts them."""
    total = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == user:
                    total += len(os.listdir(f"/proc/{name}/task"))
    return total


def kill_tree(pid: int, adopted: Container[int]) -> None:
    """Kills a child of this process with everything below it, and what of that has come to this process meanwhile.

    A process that is killed can have had a child in that moment; it is found the next time round, as a child of this
    process, unless `adopted` names it.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for _ in range(_MOST_ROUNDS):
        strays = [child for child in children_of(os.getpid()) if child != pid and child not in adopted]
        below = [other for root in (pid, *strays) for other in descendants_of(root)]
        if not strays and not below:
            return
        _kill(below + strays)
        for stray in strays:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(stray, os.WNOHANG)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)

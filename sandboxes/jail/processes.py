"""What the processes of a session use, read from /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MIB = 1 << 20
_MOST_FDS = 256
_USUAL_FDS = 128
_HELD_MIB = {"socket": 0.25, "pipe": 0.0625}
"""What one end of a socket (`net.core.wmem_default`, rounded up) and what a pipe can hold unread."""


@dataclass
class Usage:
    """Sums over a process tree."""

    processes: int = 0
    """Processes and threads."""
    memory_mib: float = 0.0
    """Resident memory; pages shared between processes count once per process."""
    cpu_s: float = 0.0


Table = dict[int, tuple[int, Usage]]


def process_table() -> Table:
    """Gives every visible process: its parent's id and its own usage (children that it waited for included)."""
    table: Table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it just ended
            ticks = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
            usage = Usage(int(fields[17]), int(fields[21]) * _PAGE / _MIB, ticks / _TICKS_PER_S)
            table[int(name)] = int(fields[1]), usage
    return table


def innermost_pid(pid: int) -> int:
    """Gives a process's id in its own namespace; 0 when it has just ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except OSError:
        pass
    return 0


def trees_of(roots: Iterable[int], table: Table) -> list[int]:
    """Gives the process ids of `roots` and all their descendants."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    trees = [root for root in roots if root in table]
    for pid in trees:
        trees += children.get(pid, ())
    return trees


def usage_of(roots: Iterable[int], table: Table) -> Usage:
    """Sums the usage of process trees."""
    total = Usage()
    for pid in trees_of(roots, table):
        usage = table[pid][1]
        total.processes += usage.processes
        total.memory_mib += usage.memory_mib
        total.cpu_s += usage.cpu_s
    return total


def oversize(limits: dict[str, Any], roots: Sequence[int], usage: Usage, table: Table) -> tuple[str, str] | None:
    """Gives status and message of the limit on memory or processes that trees of processes are over, if it is."""
    memory_mib = usage.memory_mib
    if memory_mib > limits["memory_mib"]:
        memory_mib = proportional_memory_mib(roots, table)
    memory_mib += unread_mib(roots, table)
    if memory_mib > limits["memory_mib"]:
        return "memory_limit", f"more than {limits['memory_mib']} MiB of memory"
    if usage.processes > limits["processes"] + 1:
        return "killed", f"more than {limits['processes']} processes"
    return None


def unread_mib(roots: Iterable[int], table: Table) -> float:
    """What the trees' sockets and pipes may hold, which counts as nobody's memory; 0 for a usual number of them."""
    paths: list[str] = []
    unseen = 0
    for pid in trees_of(roots, table):
        try:
            paths += [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            unseen += not _has_ended(pid)  # it hides them
    if len(paths) + unseen * _MOST_FDS <= _USUAL_FDS:
        return 0.0
    held: set[str] = set()
    for path in paths:
        with contextlib.suppress(OSError):
            held.add(os.readlink(path))
    kinds = [_HELD_MIB.get(target.partition(":")[0], 0.0) for target in held]
    return sum(kinds) + unseen * _MOST_FDS * _HELD_MIB["socket"]


def _has_ended(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def proportional_memory_mib(roots: Iterable[int], table: Table) -> float:
    """The trees' memory with shared pages counted once; slower, for when `Usage.memory_mib` is over a limit."""
    total = 0.0
    for pid in trees_of(roots, table):
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024
        except OSError:
            total += table[pid][1].memory_mib
    return total

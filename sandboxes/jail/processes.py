"""What the processes of a session use, read from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MIB = 1 << 20


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


def tree_of(root: int, table: Table) -> list[int]:
    """Gives the process ids of `root` and all its descendants."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    tree = [root] if root in table else []
    for pid in tree:
        tree += children.get(pid, ())
    return tree


def usage_of(root: int, table: Table) -> Usage:
    """Sums the usage of a process tree."""
    total = Usage()
    for pid in tree_of(root, table):
        usage = table[pid][1]
        total.processes += usage.processes
        total.memory_mib += usage.memory_mib
        total.cpu_s += usage.cpu_s
    return total


def proportional_memory_mib(root: int, table: Table) -> float:
    """The tree's memory with shared pages counted once; slower, for when `Usage.memory_mib` is over a limit."""
    total = 0.0
    for pid in tree_of(root, table):
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024
        except OSError:
            total += table[pid][1].memory_mib
    return total

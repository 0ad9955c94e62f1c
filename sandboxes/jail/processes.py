"""What the processes of a session use, read from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import kernel_memory

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MIB = 1 << 20
_MAPPINGS_SHARE = 4
"""Mappings are counted when they could take this part of the memory."""


@dataclass
class Usage:
    """Sums over a process tree."""

    processes: int = 0
    """Processes and threads."""
    memory_mib: float = 0.0
    """Resident memory; pages shared between processes count once per process."""
    cpu_s: float = 0.0
    address_mib: float = 0.0
    """Size of the address spaces."""
    kernel_mib: float = 0.0
    """What the kernel holds, as counted by the session's control group; 0 where there is none."""


Table = dict[int, tuple[int, Usage]]


def process_table() -> Table:
    """Gives every visible process: its parent's id and its own usage (children that it waited for included)."""
    table: Table = {}
    own: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it just ended
            ticks = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
            memory_mib, address_mib = int(fields[21]) * _PAGE / _MIB, int(fields[20]) / _MIB
            usage = Usage(int(fields[17]), memory_mib, ticks / _TICKS_PER_S, address_mib)
            table[int(name)] = int(fields[1]), usage
            if int(fields[1]) == os.getpid():
                own.append(int(name))
    if len(own) > 1:
        _return_orphans(own, table)
    return table


def _return_orphans(orphans: list[int], table: Table) -> None:
    """Gives orphans that came to this process to the wardens of their users.

    So it is in gVisor, where no other process takes them in. A warden is root's; what it is the parent of is a session.
    """
    owners = {pid: _owner_of(pid) for pid in table}
    wardens: dict[int, int] = {}
    for pid, (parent, _) in table.items():
        if owners[pid] and not owners.get(parent) and parent != os.getpid():
            wardens[owners[pid]] = parent
    for pid in orphans:
        if owners[pid] in wardens:
            table[pid] = wardens[owners[pid]], table[pid][1]


def _owner_of(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return 0


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


def usage_of(pids: Iterable[int], table: Table) -> Usage:
    """Sums the usage of processes."""
    total = Usage()
    for pid in pids:
        usage = table[pid][1]
        total.processes += usage.processes
        total.memory_mib += usage.memory_mib
        total.cpu_s += usage.cpu_s
        total.address_mib += usage.address_mib
    return total


def oversize(limits: dict[str, Any], pids: Sequence[int], usage: Usage, table: Table) -> tuple[str, str] | None:
    """Gives status and message of the limit on memory or processes that processes are over, if it is."""
    memory_mib = usage.memory_mib
    if memory_mib > limits["memory_mib"]:
        memory_mib = proportional_memory_mib(pids, table)
    free_mib = limits["memory_mib"] - memory_mib
    if usage.kernel_mib > free_mib or _held_by_the_kernel_mib(pids, usage, table, free_mib) > free_mib:
        return "memory_limit", f"more than {limits['memory_mib']} MiB of memory"
    if usage.processes > limits["processes"] + 1:
        return "killed", f"more than {limits['processes']} processes"
    return None


def _held_by_the_kernel_mib(pids: Sequence[int], usage: Usage, table: Table, most_mib: float) -> float:
    """An estimate for where there is no control group, and for what was taken before there was one."""
    held_mib = kernel_memory.described_mib(pids, most_mib)
    if kernel_memory.most_mappings_mib(usage.address_mib) > most_mib / _MAPPINGS_SHARE:
        held_mib += kernel_memory.mappings_mib({pid: table[pid][1].address_mib for pid in pids}, most_mib - held_mib)
    return held_mib


def proportional_memory_mib(pids: Iterable[int], table: Table) -> float:
    """The processes' memory with shared pages counted once; slower, for when `Usage.memory_mib` is over a limit."""
    total = 0.0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024
        except OSError:
            total += table[pid][1].memory_mib
    return total

"""A control group for each session that works for long: what the kernel counts, nobody can hide.

A group counts the kernel's own memory, which no process shows, and the CPU time of processes that ended without being
waited for. It also bounds, from below the host's own limits, what a session can take between two looks at it.

Moving a process costs the kernel up to 20 ms of waiting, so it is done beside the supervisor's loop, and only for
sessions that are being watched: those whose calls last, or which work between calls. A session's later processes are
born in its group. What it used before counts by what its processes show.
"""

from __future__ import annotations

import contextlib
import os
import threading
from queue import SimpleQueue
from typing import Any

_MIB = 1 << 20
_SLACK_MIB = 64
"""Beyond memory and files of a session: watching is to see what is too much before the kernel ends a process for it."""


class ControlGroups:
    """Makes, reads and removes the groups of a jail's sessions.

    Args:
        folders: Descriptors of the folders for them: `unified` for version 2, `memory` and `cpuacct` for version 1.
    """

    def __init__(self, folders: dict[str, int]) -> None:
        self._folders = folders
        self._memory = folders["unified" if "unified" in folders else "memory"]
        self._cpu = folders.get("unified", folders.get("cpuacct", -1))
        self._is_unified = "unified" in folders
        self._cpu_before_s: dict[int, float] = {}
        self._leaving: set[int] = set()
        self._moves: SimpleQueue[tuple[str, int]] = SimpleQueue()
        threading.Thread(target=self._move, daemon=True).start()

    def adopt(self, number: int, limits: dict[str, Any], own: list[int], strays: list[int], cpu_s: float) -> None:
        """Moves processes into a session's group, which is made if need be.

        Args:
            number: The session's.
            limits: The session's.
            own: The processes that are certainly its own.
            strays: Those that may belong to a live copy of it: they stay in the group in which they are, if it is one.
            cpu_s: The session's CPU time up to now.
        """
        if number not in self._cpu_before_s:
            self._make(number, limits)
            self._cpu_before_s[number] = cpu_s
        inside = self.members(number)
        for pid in own:
            if pid not in inside:
                self._moves.put((f"{number}/cgroup.procs", pid))
        strays = [pid for pid in strays if pid not in inside]
        if strays:
            elsewhere = {pid for other in self._cpu_before_s if other != number for pid in self.members(other)}
            for pid in strays:
                if pid not in elsewhere:
                    self._moves.put((f"{number}/cgroup.procs", pid))

    def kernel_mib(self, number: int) -> float:
        """What the kernel holds for a session; 0 without a group."""
        if number not in self._cpu_before_s:
            return 0.0
        if not self._is_unified:
            return int(self._read(self._memory, f"{number}/memory.kmem.usage_in_bytes") or 0) / _MIB
        fields = dict(line.split() for line in self._read(self._memory, f"{number}/memory.stat").splitlines())
        names = ("kernel",) if "kernel" in fields else ("kernel_stack", "pagetables", "percpu", "slab")
        return sum(int(fields.get(name, 0)) for name in (*names, "sock")) / _MIB

    def cpu_s(self, number: int) -> float:
        """A session's CPU time, that of all processes that it ever had included; 0 without a group."""
        if number not in self._cpu_before_s or self._cpu < 0:
            return 0.0
        if self._is_unified:
            used = self._read(self._cpu, f"{number}/cpu.stat").split()
            return self._cpu_before_s[number] + (int(used[1]) / 1e6 if used else 0.0)
        return self._cpu_before_s[number] + int(self._read(self._cpu, f"{number}/cpuacct.usage") or 0) / 1e9

    def ran_out(self, number: int) -> bool:
        """Whether the kernel has ended a process of the session for its memory."""
        if number not in self._cpu_before_s:
            return False
        name = "memory.events" if self._is_unified else "memory.oom_control"
        events = dict(line.split() for line in self._read(self._memory, f"{number}/{name}").splitlines())
        return events.get("oom_kill", "0") != "0"

    def release(self, number: int) -> None:
        """Removes a session's group, as soon as its last process has ended."""
        if self._cpu_before_s.pop(number, None) is not None:
            self._leaving.add(number)

    def sweep(self) -> None:
        """Removes groups whose sessions have ended."""
        for number in list(self._leaving):
            try:
                for folder in self._folders.values():
                    with contextlib.suppress(FileNotFoundError):
                        os.rmdir(str(number), dir_fd=folder)
                self._leaving.discard(number)
            except OSError:
                continue

    def _make(self, number: int, limits: dict[str, Any]) -> None:
        most = (limits["memory_mib"] + limits["workspace_mib"] + limits["tmp_mib"] + _SLACK_MIB) * _MIB
        for folder in self._folders.values():
            with contextlib.suppress(OSError):
                os.mkdir(str(number), dir_fd=folder)
        names = ("memory.max",) if self._is_unified else ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        for name in names:
            self._write(f"{number}/{name}", most)
        if self._is_unified:
            self._write(f"{number}/memory.swap.max", 0)

    def members(self, number: int) -> set[int]:
        """The processes in a session's group."""
        return set(map(int, self._read(self._memory, f"{number}/cgroup.procs").split()))

    def _move(self) -> None:
        """In a thread of its own: moves one process after the other."""
        while True:
            name, pid = self._moves.get()
            for folder in self._folders.values():
                self._write(name, pid, folder)

    def _read(self, folder: int, name: str) -> str:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
        except OSError:
            return ""
        try:
            return os.read(fd, 1 << 16).decode()
        except OSError:
            return ""
        finally:
            os.close(fd)

    def _write(self, name: str, value: int, folder: int | None = None) -> None:
        """Writes a file of a group, if the group, the file and the process are there."""
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._memory if folder is None else folder)
            try:
                os.write(fd, b"%d" % value)
            finally:
                os.close(fd)

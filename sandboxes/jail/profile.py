"""The limits of sessions as calls that are prepared once, before there are sessions."""

from __future__ import annotations

import resource

from . import kernel

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from typing import Any

_ADDRESS_SPACE_SLACK_MIB = 128
"""Address space beyond `memory_mib`: libraries that are mapped and never touched."""
_SPARE_PROCESSES = 4096
"""How far a session's copies can raise the kernel's count; the supervisor counts each one's own."""
_SIGNALS = 256
_DESCRIPTORS = 256
_MIB = 1 << 20


class Profile:
    """Limits in the form in which a new session applies them.

    Args:
        limits: The fields of `Limits`, and `count_processes`: whether the kernel counts processes per user namespace.
    """

    def __init__(self, limits: dict[str, Any]) -> None:
        self.steps: dict[bool, list[kernel.Step]] = {}
        """What a mode has prepared, if it has: how a session that runs once, or a forkable one, is confined."""
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        options = "size={}m,nr_inodes={},mode=0700"
        workspace, tmp, inodes = limits["workspace_mib"], limits["tmp_mib"], limits["inodes"]
        self.folders = (
            kernel.prepared_mount("tmpfs", "/workspace", "tmpfs", flags, options.format(workspace, inodes)),
            kernel.prepared_mount("tmpfs", "/tmp", "tmpfs", flags, options.format(tmp, inodes)),
        )
        proc = kernel.prepared_mount("proc", "/proc", "proc", flags | kernel.MS_NOEXEC | kernel.MS_RDONLY)
        self.mounts = [*self.folders, proc]
        address_space = (limits["memory_mib"] + _ADDRESS_SPACE_SLACK_MIB) * _MIB
        file_size = max(workspace, tmp) * _MIB
        self.limits = [
            (resource.RLIMIT_AS, (address_space, address_space)),
            (resource.RLIMIT_FSIZE, (file_size, file_size)),
        ]
        if resource.getrlimit(resource.RLIMIT_SIGPENDING)[1]:  # 0 in gVisor, which keeps no such limit and sets none
            self.limits.append((resource.RLIMIT_SIGPENDING, (_SIGNALS, _SIGNALS)))  # counted per user, so not common
        self.processes: int = limits["processes"]
        self.count_processes: bool = limits["count_processes"]

    def apply(self, processes: int | None) -> None:
        """Sets the limits of this process; see `limit_steps`."""
        kernel.perform(self.limit_steps(processes))

    def limit_steps(self, processes: int | None, spare: int = _SPARE_PROCESSES) -> list[kernel.Step]:
        """Gives the calls that set the limits of a process.

        Args:
            processes: The kernel's own count of processes, if it makes one for each session.
            spare: How far the process may raise that.
        """
        steps = [kernel.prepared_limit(kind, *values) for kind, values in self.limits]
        steps.append(limit(resource.RLIMIT_NOFILE, _DESCRIPTORS))
        if processes is not None:
            steps.append(limit(resource.RLIMIT_NPROC, processes, spare))
        return steps


def limit(kind: int, value: int, spare: int = 0) -> kernel.Step:
    """Gives the call that sets a limit, and how far the process may raise it, unless it is allowed less already."""
    _, most = resource.getrlimit(kind)
    hard = value + spare if most == resource.RLIM_INFINITY else min(most, value + spare)
    return kernel.prepared_limit(kind, min(value, hard), hard)

"""Landlock: what the processes of a domain can reach, given up for good by entering it (landlock(7), Linux 5.13).

A domain of ours always keeps signals, tracing and abstract sockets to itself and has no TCP; one made with folders can
open nothing outside of them. What Landlock does not see (the existence, modes and times of files; other sockets) is
left to the system-call filter.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from . import kernel

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Iterable

NEEDED_VERSION = 6
"""The first that keeps signals inside of a domain (Linux 6.12)."""
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_REFER = 1 << 13
_ALL = (1 << 16) - 1
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_LOOK = _EXECUTE | _READ_FILE | _READ_DIR
_CHANGE = _ALL & ~_IOCTL
_LIST = _READ_DIR
_USE = _READ_FILE | _WRITE_FILE
_OF_ITSELF = (
    "auxv", "cmdline", "fd", "fdinfo", "limits", "maps", "oom_score_adj", "smaps", "smaps_rollup", "stat", "statm",
    "status",
)  # fmt: skip
"""What a process may read of itself in /proc; `net`, for one, is the host's."""
_TCP, _SCOPES, _BENEATH = 3, 3, 1


def version() -> int:
    """The kernel's Landlock version; 0 where it has none."""
    return max(0, kernel.libc.syscall(kernel.NR["landlock_create_ruleset"], None, 0, 1))


def scope_ruleset() -> int:
    """Gives a ruleset that leaves files alone, or -1 where the kernel has none of use."""
    known = version()
    if known < 4:
        return -1
    attributes = struct.pack("QQQ", 0, _TCP, _SCOPES) if known >= NEEDED_VERSION else struct.pack("QQ", 0, _TCP)
    return kernel.libc.syscall(kernel.NR["landlock_create_ruleset"], attributes, len(attributes), 0)


def outer_ruleset() -> int:
    """Gives a ruleset that leaves files alone where domains with folders will be nested in its own.

    Names can only move between folders, by rename(2) and link(2), where each domain allows it expressly.

    Raises:
        OSError: The kernel's Landlock is too old.
    """
    attributes = struct.pack("QQQ", _REFER, _TCP, _SCOPES)
    made = kernel.libc.syscall(kernel.NR["landlock_create_ruleset"], attributes, len(attributes), 0)
    _allow(kernel.check(made, "landlock_create_ruleset"), "/", _REFER)
    return made


class Folders:
    """What a domain may open.

    Args:
        look: Folders and files to read and execute.
        names: Folders whose entries may be listed.
        devices: Files to read and write.
    """

    def __init__(self, look: Iterable[str], names: Iterable[str] = (), devices: Iterable[str] = ()) -> None:
        self._wanted = [(path, _LOOK) for path in look]
        self._wanted += [(path, _LIST) for path in names]
        self._wanted += [(path, _USE) for path in devices]
        self._wanted = [(path, rights) for path, rights in self._wanted if os.path.exists(path)]

    def ruleset(self, change: Iterable[int], pid: int) -> int:
        """Gives a ruleset for these folders, for others that may be changed, and for what /proc tells a process of
        itself.

        Args:
            change: Descriptors of the other folders.
            pid: The process; 0 for none, since what /proc tells of a copy is out of its reach already.

        Raises:
            OSError: The kernel's Landlock is too old, or a folder is missing.
        """
        attributes = struct.pack("QQQ", _ALL, _TCP, _SCOPES)
        made = kernel.libc.syscall(kernel.NR["landlock_create_ruleset"], attributes, len(attributes), 0)
        kernel.check(made, "landlock_create_ruleset")
        own = [(f"/proc/{pid}/{name}", _LOOK) for name in _OF_ITSELF] if pid else []
        own += [(f"/proc/self/fd/{folder}", _CHANGE) for folder in change]
        for path, rights in self._wanted + own:
            _allow(made, path, rights)
        return made


def _allow(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _ON_FILES
        rule = struct.pack("=Qi", rights, fd)
        added = kernel.libc.syscall(kernel.NR["landlock_add_rule"], ruleset, _BENEATH, rule, 0)
        kernel.check(added, f"landlock_add_rule {path}")
    finally:
        os.close(fd)


def enter(ruleset: int) -> kernel.Step:
    """The call that enters a new domain of a ruleset, nested in the domain that the process is in."""
    return kernel.libc.syscall, (kernel.NR["landlock_restrict_self"], ruleset, 0), "landlock_restrict_self"


def nest(ruleset: int) -> None:
    """Enters another domain, if the kernel allows deeper nesting (16 levels)."""
    try:
        kernel.perform([enter(ruleset)])
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise

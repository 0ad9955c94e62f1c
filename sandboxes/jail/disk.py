"""What a session's files take, counted by walking: for modes in which its folders are no file systems of their own."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from typing import Any

_MIB = 1 << 20
_BLOCK = 512
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def oversize(limits: dict[str, Any], folders: tuple[str, ...], pids: Iterable[int] = ()) -> tuple[str, str] | None:
    """Gives status and message of the limit on files that a session is over, if it is.

    Args:
        limits: The session's.
        folders: Its workspace and its folder for temporary files.
        pids: Its processes, whose open files without a name count, too.
    """
    unnamed = _unnamed_mib(pids)
    for name, folder, most in zip(("the workspace", "TMPDIR"), folders, ("workspace_mib", "tmp_mib"), strict=True):
        count, mib = usage(folder, limits["inodes"])
        if mib + unnamed > limits[most]:
            return "disk_limit", f"more than {limits[most]} MiB in {name}"
        if count > limits["inodes"]:
            return "disk_limit", f"more than {limits['inodes']} files in {name}"
    return None


def has_room(limits: dict[str, Any], workspace: str, size: int) -> bool:
    """Whether a file of `size` bytes fits into a workspace."""
    count, mib = usage(workspace, limits["inodes"])
    return mib + size / _MIB <= limits["workspace_mib"] and count < limits["inodes"]


def usage(folder: str, most: int) -> tuple[int, float]:
    """Gives the number of entries below a folder, and MiB on the disk; stops counting beyond `most` entries."""
    count, blocks = 0, 0
    try:
        waiting = [os.open(folder, _FOLDER)]
    except FileNotFoundError:  # not made yet, or removed with its session
        return 0, 0.0
    try:
        while waiting and count <= most:
            fd = waiting.pop()
            try:
                for entry in os.scandir(fd):
                    count += 1
                    found = os.stat(entry.name, dir_fd=fd, follow_symlinks=False)
                    blocks += found.st_blocks
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(_open_folder(entry.name, fd))
                    if count > most:
                        break
            except OSError:  # it went meanwhile
                continue
            finally:
                os.close(fd)
    finally:
        for fd in waiting:
            os.close(fd)
    return count, blocks * _BLOCK / _MIB


def _open_folder(name: str, parent: int) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:  # its owner hid it; whatever has its name by now, only a folder is shown
        found = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{found}", 0o700)
            return os.open(".", _FOLDER, dir_fd=found)
        finally:
            os.close(found)


def _unnamed_mib(pids: Iterable[int]) -> float:
    """What files take that have no name any more, but are open or mapped in one of the processes."""
    found: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    seen = os.stat(f"/proc/{pid}/fd/{name}")
                    if stat.S_ISREG(seen.st_mode) and seen.st_nlink == 0:
                        found[seen.st_dev, seen.st_ino] = seen.st_blocks * _BLOCK
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
            maps = file.read()
            if b"(deleted)" in maps:
                for line in maps.splitlines():
                    _add_mapped(line, pid, found)
    return sum(found.values()) / _MIB


def _add_mapped(line: bytes, pid: int, found: dict[tuple[int, int], int]) -> None:
    if not line.endswith(b"(deleted)"):
        return
    span, _, _, device, inode, *_ = line.split(None, 5)
    major, minor = (int(part, 16) for part in device.split(b":"))
    key = os.makedev(major, minor), int(inode)
    start, end = (int(part, 16) for part in span.split(b"-"))
    found.setdefault(key, 0)
    found[key] = max(found[key], end - start)

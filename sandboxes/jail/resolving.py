"""Opens paths below a folder that untrusted code may change meanwhile, as if that folder were the root directory.

openat2(2) does that in one call (Linux 5.6). Where there is none, as in gVisor, the path is walked: each part is opened
by itself and no link is followed, but its target walked like the rest.
"""

from __future__ import annotations

import errno
import os

from . import kernel

_MOST_LINKS = 40
_TRIES = 16
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


def open_in_root(directory: int, path: str, flags: int, mode: int = 0) -> int:
    """Gives a descriptor of what a path leads to; no link and no `..` leads out of `directory`.

    Raises:
        OSError: The path leads nowhere, or not to what `flags` ask for.
    """
    for _ in range(_TRIES):
        try:
            return kernel.open_in_root(directory, path, flags, mode)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                break
            if error.errno != errno.EAGAIN:  # something was renamed somewhere, and the path has `..`
                raise
    return walk(directory, path, flags, mode)


def walk(directory: int, path: str, flags: int, mode: int = 0) -> int:
    """Does the same without openat2(2). Who changes the path meanwhile can make it fail, and no more."""
    folders = [directory]
    parts = path.split("/")[::-1]
    links = 0
    try:
        while True:
            part = parts.pop()
            if part == "..":
                _leave(folders, len(folders) - 1)
            if part in ("", ".", ".."):
                if not parts:
                    return os.open(".", flags & ~os.O_CREAT, dir_fd=folders[-1])
                continue
            target = _target_of(part, folders[-1])
            if target is None and not parts:
                return os.open(part, flags | os.O_NOFOLLOW, mode, dir_fd=folders[-1])
            if target is None:
                folders.append(os.open(part, _FOLDER, dir_fd=folders[-1]))
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if target.startswith("/"):
                _leave(folders, 1)
            parts += target.split("/")[::-1]
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        _leave(folders, 1)


def _target_of(name: str, folder: int) -> str | None:
    """What a symbolic link names; None for anything else."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return None


def _leave(folders: list[int], depth: int) -> None:
    """Climbs to a depth; the first folder is the caller's, and never left."""
    while len(folders) > max(1, depth):
        os.close(folders.pop())

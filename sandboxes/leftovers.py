"""Folders for sessions that have no mounts of their own, and their removal, even after a process that was killed.

Whoever lives in such a folder holds a lock on it. A folder whose lock is free belongs to nobody, and the next jail that
needs a folder removes it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from .jail.copying import remove_tree

_PREFIX = "palaestra-sessions-"


class SessionsFolder:
    """A new folder, locked by this process as long as it lives."""

    def __init__(self) -> None:
        _sweep()
        self._lock = -1
        while self._lock < 0:  # another process may sweep it away before it is locked
            self.path = tempfile.mkdtemp(prefix=_PREFIX)
            os.chmod(self.path, 0o711)
            self._lock = _locked(self.path)

    def remove(self) -> None:
        """Removes the folder with all that is in it; may be called twice."""
        remove_tree(self.path)
        self.forget()

    def forget(self) -> None:
        """Lets go of the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _sweep() -> None:
    """Removes the folders that nobody holds any more."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        lock = _locked(str(path))
        if lock >= 0:
            remove_tree(str(path))
            os.close(lock)


def _locked(path: str) -> int:
    """Gives a descriptor that holds the lock of a folder; -1 if somebody else does, or it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.isdir(path):
            return fd
    except OSError:
        pass
    os.close(fd)
    return -1

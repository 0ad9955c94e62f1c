"""Folders that outlive nobody: what a process that was killed has left, the next one removes.

Whoever made such a folder holds a lock on it. A folder whose lock is free belongs to nobody, and the next jail that
needs a folder beside it removes it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


class HeldFolder:
    """A new folder, locked by this process as long as it lives.

    Args:
        parent: Where to make it.
        prefix: How its name and those of its like begin.
        remove_tree: Removes such a folder with all that is in it.

    Raises:
        OSError: The folder cannot be made.
    """

    def __init__(self, parent: str, prefix: str, remove_tree: Callable[[str], None]) -> None:
        self._remove_tree = remove_tree
        for left in Path(parent).glob(f"{prefix}*"):
            lock = _locked(str(left))
            if lock >= 0:
                remove_tree(str(left))
                os.close(lock)
        self._lock = -1
        while self._lock < 0:  # another process may sweep it away before it is locked
            self.path = tempfile.mkdtemp(prefix=prefix, dir=parent)
            self._lock = _locked(self.path)

    def remove(self) -> None:
        """Removes the folder with all that is in it; may be called twice."""
        self._remove_tree(self.path)
        self.forget()

    def forget(self) -> None:
        """Lets go of the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


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

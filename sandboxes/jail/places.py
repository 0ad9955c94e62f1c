"""Where sessions have their files."""

from __future__ import annotations

import os

CLOSED, OPEN = 0o511, 0o711
"""Modes of folders that hold sessions' folders: always the first, but while a warden adds to them."""


class Place:
    """Where a session's files are.

    Args:
        home: Its workspace.
        tmp: Its folder for temporary files.
        reserve: Where folders of its copies will be; empty where they have roots of their own.
        user: Its user id, where it has one of its own.
    """

    def __init__(self, home: str, tmp: str, reserve: str = "", user: int = 0) -> None:
        self.home, self.tmp, self.reserve, self.user = home, tmp, reserve, user

    def move_in(self) -> None:
        """Makes it this process's own place."""
        os.chdir(self.home)
        os.environ["HOME"], os.environ["TMPDIR"] = self.home, self.tmp


def make_folders(parent: int, name: str, path: str, user: int) -> tuple[Place, int]:
    """Makes the folders of a session, for a user if it has one of its own.

    Nobody but a warden changes what is in the folder itself and in `reserve`: they cannot be written to, not even by a
    session that is the same user, because it can change no modes.

    Args:
        parent: Descriptor of the folder to make them in.
        name: The session's in there.
        path: Path of `parent`.
        user: Whose they shall be; 0 leaves them to this process's user.

    Returns:
        The place, and a descriptor of the folder that is called `name`.
    """
    os.mkdir(name, OPEN, dir_fd=parent)
    base = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    for inner in ("home", "tmp"):
        os.mkdir(inner, 0o700, dir_fd=base)
        if user:
            os.chown(inner, user, user, dir_fd=base, follow_symlinks=False)
    os.mkdir("copies", CLOSED, dir_fd=base)
    os.chmod(f"/proc/self/fd/{base}", CLOSED)
    path = f"{path}/{name}"
    return Place(f"{path}/home", f"{path}/tmp", f"{path}/copies", user), base

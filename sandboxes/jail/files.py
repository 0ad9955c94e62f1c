"""Files of a session's workspace, opened by the supervisor without ever leaving the workspace."""

from __future__ import annotations

import errno
import os
import stat

from . import resolving

_ROOT = "/workspace"


def read_file(workspace: int, path: str, most: int) -> bytes:
    """Gives the content of a regular file.

    Raises:
        OSError: It does not exist, is no regular file, or has more than `most` bytes.
    """
    fd = resolving.open_in_root(workspace, inside(path), os.O_RDONLY | os.O_NONBLOCK)
    try:
        _check_regular(fd, path)
        content = bytearray()
        while data := os.read(fd, 1 << 20):
            content += data
            if len(content) > most:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return bytes(content)
    finally:
        os.close(fd)


def write_file(workspace: int, path: str, data: bytes) -> None:
    """Writes a regular file, with the directories above it.

    Raises:
        OSError: The path is something else, or the workspace is full.
    """
    relative = inside(path)
    directory = os.path.dirname(relative)
    if directory:
        _make_directories(workspace, directory)
    fd = resolving.open_in_root(workspace, relative, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o644)
    try:
        _check_regular(fd, path)
        _give_to_owner_of(workspace, fd)
        os.ftruncate(fd, 0)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)


def inside(path: str) -> str:
    """Gives a path relative to the workspace.

    Raises:
        OSError: It is absolute and not below /workspace, climbs out of it, is empty, or no path at all.
    """
    if path == _ROOT or path.startswith(_ROOT + "/"):
        path = path[len(_ROOT) :].lstrip("/")
    climbs = os.path.normpath(path).split("/")[0] == ".."  # `open_in_root` would take it for a path below the root
    if not path or path.startswith("/") or climbs or "\0" in path or not _is_encodable(path):
        raise OSError(errno.EINVAL, "not a path in the workspace", path)
    return path


def _is_encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _make_directories(workspace: int, directory: str) -> None:
    parts = [part for part in directory.split("/") if part not in ("", ".")]
    for count in range(1, len(parts) + 1):
        parent = resolving.open_in_root(workspace, "/".join(parts[: count - 1]) or ".", os.O_PATH | os.O_DIRECTORY)
        try:
            os.mkdir(parts[count - 1], 0o755, dir_fd=parent)
            made = resolving.open_in_root(parent, parts[count - 1], os.O_RDONLY | os.O_DIRECTORY)
            _give_to_owner_of(workspace, made)
            os.close(made)
        except FileExistsError:
            pass
        finally:
            os.close(parent)


def _give_to_owner_of(workspace: int, fd: int) -> None:
    """Makes what was created the session's own, where the supervisor is another user than the session."""
    owner = os.fstat(workspace).st_uid
    if os.fstat(fd).st_uid != owner:
        os.fchown(fd, owner, owner)


def _check_regular(fd: int, path: str) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)

"""Copies and removes trees of files that untrusted code made, without following or opening what is not part of them.

A copied tree has the same folders, files, symbolic links and FIFOs, with their modes and times. Hard links become files
of their own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

_CHUNK = 1 << 20
_MOST_DEPTH = 200
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = _LOOK | os.O_DIRECTORY
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def copy_tree(source: int, target: int, user: int = 0) -> None:
    """Copies what is in one folder into another, empty one.

    Args:
        source, target: Descriptors of the folders.
        user: Whose the copies shall be; 0 leaves them to this process's user.

    Raises:
        OSError: There is no room, or folders are nested too deeply.
    """
    open_folders = [_open_pair(".", ".", source, target)]
    try:
        while open_folders:
            opened, made, names = open_folders[-1]
            if not names:
                open_folders.pop()
                _copy_look(opened, made)
                os.close(opened)
                os.close(made)
                continue
            name = names.pop()
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                if _copy_entry(name, opened, made, user):
                    if len(open_folders) > _MOST_DEPTH:
                        raise OSError(errno.ENAMETOOLONG, f"folders are nested deeper than {_MOST_DEPTH}")
                    open_folders.append(_open_pair(name, name, opened, made))
    finally:
        for opened, made, _ in open_folders:
            os.close(opened)
            os.close(made)


def _open_pair(name: str, new_name: str, source: int, target: int) -> tuple[int, int, list[str]]:
    opened = os.open(name, _FOLDER, dir_fd=source)
    try:
        return opened, os.open(new_name, _FOLDER, dir_fd=target), os.listdir(opened)
    except OSError:
        os.close(opened)
        raise


def _copy_entry(name: str, source: int, target: int, user: int) -> bool:
    """Copies an entry; whether it is a folder, whose content is still missing."""
    found = os.stat(name, dir_fd=source, follow_symlinks=False)
    is_folder = stat.S_ISDIR(found.st_mode)
    if is_folder:
        os.mkdir(name, 0o700, dir_fd=target)
    elif stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    elif stat.S_ISFIFO(found.st_mode):
        os.mkfifo(name, stat.S_IMODE(found.st_mode), dir_fd=target)
    elif stat.S_ISREG(found.st_mode):
        _copy_file(name, source, target)
    else:
        return False
    if user:
        os.chown(name, user, user, dir_fd=target, follow_symlinks=False)
    return is_folder


def _copy_file(name: str, source: int, target: int) -> None:
    opened = _open_file(name, source)
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            return
        made = os.open(name, _NEW, 0o600, dir_fd=target)
        try:
            copy_content(opened, made, found.st_size)
            _copy_look(opened, made)
        finally:
            os.close(made)
    finally:
        os.close(opened)


def _open_file(name: str, folder: int) -> int:
    try:
        return os.open(name, _LOOK, dir_fd=folder)
    except PermissionError:  # its owner, who is this process's user, took the right to read it from himself
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
    try:
        path, mode = f"/proc/self/fd/{found}", os.fstat(found).st_mode
        if not stat.S_ISREG(mode):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), name)
        os.chmod(path, stat.S_IRUSR)
        try:
            return os.open(path, _LOOK & ~os.O_NOFOLLOW)
        finally:
            os.chmod(path, stat.S_IMODE(mode))
    finally:
        os.close(found)


def copy_content(source: int, target: int, size: int) -> None:
    """Copies what a file holds and leaves its holes out: they may be larger than any disk."""
    os.ftruncate(target, size)
    at = 0
    while at < size:
        at, end = _next_data(source, at, size)
        while at < end:
            data = os.pread(source, min(_CHUNK, end - at), at)
            if not data:
                return
            is_empty = data.count(0) == len(data)
            at += len(data) if is_empty else os.pwrite(target, data, at)


def _next_data(source: int, at: int, size: int) -> tuple[int, int]:
    """Where the next stretch that is no hole begins and ends; both are `size` if there is none."""
    try:
        start = os.lseek(source, at, os.SEEK_DATA)
        return start, os.lseek(source, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        if error.errno == errno.EINVAL:  # gVisor does not tell holes: they read as zeros
            return at, size
        raise


def _copy_look(source: int, target: int) -> None:
    found = os.fstat(source)
    os.fchmod(target, stat.S_IMODE(found.st_mode) & 0o777)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def remove_tree(path: str) -> None:
    """Removes a folder with all that is in it, however deeply nested; what cannot be removed stays.

    Nothing else may change it meanwhile.
    """
    with contextlib.suppress(OSError):
        root = os.open(path, _FOLDER)
        try:
            os.fchmod(root, 0o700)
            _empty(root)
        finally:
            os.close(root)
        os.rmdir(path)


def _empty(root: int) -> None:
    """Empties a folder: folders further down are moved to the top first, so that no path and no stack grows."""
    moved = 0
    while folders := [name for name in os.listdir(root) if not _unlink(name, root)]:
        before = moved
        for name in folders:
            os.chmod(name, 0o700, dir_fd=root)
            folder = os.open(name, _FOLDER, dir_fd=root)
            try:
                for inner in os.listdir(folder):
                    if not _unlink(inner, folder):
                        os.chmod(inner, 0o700, dir_fd=folder)  # a folder that is moved must be writable
                        os.rename(inner, f".moved-{os.getpid()}-{moved}", src_dir_fd=folder, dst_dir_fd=root)
                        moved += 1
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=root)
        if moved == before and not os.listdir(root):
            return


def _unlink(name: str, folder: int) -> bool:
    """Removes a file; whether it was none of the kind that stays, a folder."""
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return False
    os.unlink(name, dir_fd=folder)
    return True

"""Modes and times of files where sessions share one user: the warden changes them, in a session's own folders alone.

Landlock does not see chmod(2), utimensat(2) and their kin, and a session that is the same user as the host, or as its
neighbours, could change whatever that user owns. So a filter has the kernel ask the session's warden about each such
call (seccomp_unotify(2)) and never lets one through: the caller waits, the warden does what was asked for, if that is
the caller's to ask, and gives it the result.

What is checked is what is changed. The path is read once from the caller's memory and opened beneath one of its two
folders, through no link that leads out; the change is made to what was opened. Text that the kernel gives of the
caller, such as its working directory, only says where to begin. The folders themselves keep their modes, other folders
stay readable for their owner, because what is in them is counted, and no file gets a set-user-id, set-group-id or
sticky bit.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time

from . import kernel, seccomp
from .questions import AT_FDCWD, Caller, next_question

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .questions import Question

_ARGUMENTS = {  # name: which argument is the descriptor, the path, the mode or times, and the flags; -1 for none
    "chmod": (-1, 0, 1, -1), "fchmod": (0, -1, 1, -1), "fchmodat": (0, 1, 2, -1), "fchmodat2": (0, 1, 2, 3),
    "futimesat": (0, 1, 2, -1), "utime": (-1, 0, 1, -1), "utimensat": (0, 1, 2, 3), "utimes": (-1, 0, 1, -1),
}  # fmt: skip
_TIMES = {"utime": ("2q", 1_000_000_000), "utimes": ("4q", 1000), "futimesat": ("4q", 1000), "utimensat": ("4q", 1)}
"""Name: what is in memory, and how many nanoseconds the smaller unit has."""
_NAMES = {numbers[kernel.COLUMN]: name for name, numbers in seccomp.MODES_AND_TIMES.items()}
_AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = 0x100, 0x1000
_LONGEST_PATH = 4096
_MOST_GENERATIONS = 64
_TRIES = 16
_OWN_DESCRIPTOR = b"/proc/self/fd/"
_BURST, _PER_S, _PAUSE_S = 20_000, 1000, 0.001
"""Calls that are answered at once, how soon there are more of them, and how long each beyond them waits: what they cost
is not part of the session's CPU time."""


class Folder:
    """A folder in which a session may change modes and times.

    Args:
        fd: A descriptor of it, which is this object's to close.
        name: Its path, as sessions know it.
    """

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self._names = {os.fsencode(name), os.readlink(b"/proc/self/fd/%d" % fd)}

    def holds(self, path: bytes) -> bytes | None:
        """Gives an absolute path relative to the folder; None if it does not begin with the folder's."""
        for name in self._names:
            if path == name or path.startswith(name + b"/"):
                return path[len(name) :].lstrip(b"/") or b"."
        return None

    def open(self, path: bytes, follows: bool) -> int:
        """Gives a descriptor of what has that relative path, and of nothing outside.

        Raises:
            OSError: There is no such thing, or the path leads out.
        """
        flags = os.O_PATH if follows else os.O_PATH | os.O_NOFOLLOW
        for _ in range(_TRIES):
            try:
                return kernel.open_beneath(self.fd, path, flags)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    break
                if error.errno != errno.EAGAIN:  # somebody renamed something, and the path has `..`
                    raise
        raise PermissionError(errno.EPERM, "it leads out of the folder")

    def is_itself(self, found: os.stat_result) -> bool:
        """Whether that is the folder, and not something in it."""
        return os.path.samestat(found, os.fstat(self.fd))


class Changes:
    """Answers the kernel's questions about one family.

    Args:
        listener: Where they come from.
        folders_of: Gives the folders of the member whose first process has an id, and None if it is no member's.
    """

    def __init__(self, listener: int, folders_of: Callable[[int], Sequence[Folder] | None]) -> None:
        self._listener = listener
        self._folders_of = folders_of
        self._credit, self._last = float(_BURST), time.monotonic()

    def answer(self) -> None:
        """Answers one question, if there still is one."""
        self._take_time()
        question = next_question(self._listener)
        if question is None:
            return
        try:
            self._perform(question)
        except OSError as error:
            question.answer(error.errno or errno.EPERM)
        else:
            question.answer(0)

    def _take_time(self) -> None:
        now = time.monotonic()
        self._credit = min(_BURST, self._credit + (now - self._last) * _PER_S) - 1
        self._last = now
        if self._credit < 0:
            time.sleep(_PAUSE_S)

    def _perform(self, question: Question) -> None:
        caller = Caller(question.pid)
        folders: Sequence[Folder] = ()
        try:
            question.check()
            folders = self._folders_around(caller)
            _change(caller, folders, _NAMES[question.call], question.arguments)
        finally:
            caller.close()
            for folder in folders:
                os.close(folder.fd)

    def _folders_around(self, caller: Caller) -> Sequence[Folder]:
        """Gives the folders of the member that the caller descends from.

        A member's process is this one's child, so nobody gets its id. Of others between it and the caller that is not
        sure: each must still be the parent after it was opened.
        """
        opened: list[Caller] = []
        try:
            while len(opened) < _MOST_GENERATIONS:
                process, parent = caller.ids()
                for pid in (process, parent):
                    folders = self._folders_of(pid)
                    if folders is not None:
                        return folders
                if parent in (0, 1, os.getpid()):
                    break
                above = Caller(parent)
                opened.append(above)
                if caller.ids()[1] != parent:
                    break
                caller = above
        finally:
            for each in opened:
                each.close()
        raise PermissionError(errno.EPERM, "it is not known whose process that is")


def _change(caller: Caller, folders: Sequence[Folder], name: str, arguments: list[int]) -> None:
    which_fd, which_path, which_value, which_flags = _ARGUMENTS[name]
    fd = AT_FDCWD if which_fd < 0 else _signed(arguments[which_fd])
    flags = 0 if which_flags < 0 else _signed(arguments[which_flags])
    if flags & ~(_AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH):
        raise OSError(errno.EINVAL, "unknown flags")
    path = None if which_path < 0 else _path_at(caller, arguments[which_path], name, flags)
    value = arguments[which_value]
    times = _times_at(caller, value, name) if name in _TIMES else b""
    if path is not None and path.startswith(_OWN_DESCRIPTOR) and path[len(_OWN_DESCRIPTOR) :].isdigit():
        fd, path = int(path[len(_OWN_DESCRIPTOR) :]), None  # how libraries change what they have opened
    folder, target = _open(caller, folders, fd, path, follows=not flags & _AT_SYMLINK_NOFOLLOW)
    if target < 0:
        return
    try:
        if name in _TIMES:
            kernel.check(kernel.libc.utimensat(target, b"", times, _AT_EMPTY_PATH), name)
        else:
            _change_mode(folder, target, value & 0o777)
    finally:
        os.close(target)


def _open(caller: Caller, folders: Sequence[Folder], fd: int, path: bytes | None, follows: bool) -> tuple[Folder, int]:
    """Opens what a call is about; no descriptor (-1) for a file without a name, whose mode and times nobody asks for.

    Args:
        caller: Whose call it is.
        folders: Where that may be.
        fd: A descriptor of the caller, or its working directory.
        path: Relative to that, or absolute; None for the descriptor itself.
        follows: Whether the last link is followed.
    """
    whole = path if path is not None and path.startswith(b"/") else caller.path_of(fd)
    if path is not None and whole is not path:
        whole += b"/" + path
    for folder in folders:
        inner = folder.holds(whole)
        if inner is None:
            continue
        if path is not None:
            return folder, folder.open(inner, follows)
        found = caller.stat(fd)
        if found.st_nlink == 0:
            return folder, -1
        target = folder.open(inner, follows=False)
        if os.path.samestat(found, os.fstat(target)):
            return folder, target
        os.close(target)
        break  # it was renamed
    raise PermissionError(errno.EPERM, "it is outside of the session's folders")


def _change_mode(folder: Folder, target: int, mode: int) -> None:
    found = os.fstat(target)
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.EOPNOTSUPP, "links have no modes")
    if folder.is_itself(found):
        return
    if stat.S_ISDIR(found.st_mode):
        mode |= stat.S_IRUSR | stat.S_IXUSR
    os.chmod(f"/proc/self/fd/{target}", mode)


def _path_at(caller: Caller, address: int, name: str, flags: int) -> bytes | None:
    if address == 0 and name in ("futimesat", "utimensat"):
        return None
    data = caller.memory(address, _LONGEST_PATH)
    path, end, _ = data.partition(b"\0")
    if not end:
        raise OSError(errno.ENAMETOOLONG if len(data) == _LONGEST_PATH else errno.EFAULT, "no end of the path")
    if not path and not flags & _AT_EMPTY_PATH:
        raise OSError(errno.ENOENT, "no path")
    return path or None


def _times_at(caller: Caller, address: int, name: str) -> bytes | None:
    """Gives times as utimensat(2) takes them; None means now."""
    if address == 0:
        return None
    form, unit_ns = _TIMES[name]
    size = struct.calcsize(form)
    data = caller.memory(address, size)
    if len(data) < size:
        raise OSError(errno.EFAULT, "no times there")
    if unit_ns == 1:
        return data
    values = struct.unpack(form, data)
    seconds, units = (values, (0, 0)) if len(values) == 2 else (values[::2], values[1::2])
    if not all(0 <= unit * unit_ns < 1_000_000_000 for unit in units):
        raise OSError(errno.EINVAL, "no such time")
    return struct.pack("4q", seconds[0], units[0] * unit_ns, seconds[1], units[1] * unit_ns)


def _signed(argument: int) -> int:
    """An int of C in a register."""
    return (argument & 0xFFFFFFFF) - ((argument & 0x80000000) << 1)

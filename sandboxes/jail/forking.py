"""Live copies of a session: the session's own part, a fork of its interpreter inside its jail.

What a copy has is what the session had: every object, `random`'s state, the working directory, and open files, at the
same place in a file of its own. What cannot be copied is not there: other threads, child processes, and the other ends
of pipes and sockets, which read as /dev/null.

The process belongs to untrusted code, and so do its copies. What counts is kept elsewhere: the warden makes places and
knows its children, the supervisor counts and kills.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import gc
import os
import resource
import signal
import socket
import stat
import sys

from . import kernel, landlock, wire
from .copying import copy_content
from .places import Place

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from typing import Any

_MOST_FDS = 250
_FIRST_FILE = 4
_KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK
_held = ctypes.PyDLL(None, use_errno=True)
"""Calls that keep the interpreter's lock: no other thread may take it while the process is being copied."""
_python = ctypes.pythonapi


class Copying:
    """Forks a session into copies.

    Args:
        place: Where the session's files are.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    def fork(self, control: int, request: int) -> bool:
        """Makes the copies that the supervisor describes; True in a copy, which goes on serving on `control`."""
        wire.write_all(control, wire.pack({"id": request, "s": "more"}))
        random_state = _random_state()
        gc.freeze()
        pids: list[int] = []
        while True:
            batch, fds = _receive_batch(control)
            _allow_more_processes(len(batch["copies"]))
            for place in batch["copies"]:
                own, fds = fds[: batch["fds"]], fds[batch["fds"] :]
                pid = _fork_sibling()
                if pid == 0:
                    for fd in fds:
                        os.close(fd)
                    self._become_copy(control, own, Place(*place))
                    _restore_random_state(random_state)
                    wire.write_all(control, wire.pack({"id": request, "s": "ok"}))
                    return True
                pids.append(pid)
                for fd in own:
                    os.close(fd)
            if batch["rest"] is not None:
                break
        gc.unfreeze()
        if batch["rest"]:  # not so if there are no copies after all
            self._place = Place(*batch["rest"])
            _part(fds)
        wire.write_all(control, wire.pack({"id": request, "s": "ok", "pids": pids}))
        return False

    def _become_copy(self, control: int, fds: list[int], place: Place) -> None:
        old, self._place = self._place, place
        os.dup2(fds[0], control, inheritable=False)
        os.dup2(fds[1], 1)
        os.dup2(fds[2], 2)
        for fd in fds[:3]:
            os.close(fd)
        folder = _working_folder(old)
        files = _open_files(skipped=fds)
        os.setsid() if place.reserve else os.setpgid(0, 0)
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        if not place.reserve:
            os.fchdir(fds[3])
            os.chroot(".")
            os.close(fds[3])
            place = Place(old.home, old.tmp)
        _part(fds[3:] if place.reserve else fds[4:])
        moves = ((old.home, place.home), (old.tmp, place.tmp))
        _change_folder(_moved(folder, moves), place)
        for file in files:
            file.reopen(moves, place.tmp)
        if place.reserve:
            os.environ["HOME"], os.environ["TMPDIR"] = place.home, place.tmp
            _move_tempfile(moves)


def _part(rules: list[int]) -> None:
    """Parts this process from the others of its family, where the warden could make rules of Landlock for that."""
    for ruleset in rules:
        landlock.nest(ruleset)
        os.close(ruleset)


class _OpenFile:
    """A descriptor as the session left it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._kind = stat.S_IFMT(os.fstat(fd).st_mode)
        self._path = os.readlink(f"/proc/self/fd/{fd}")
        self._inheritable = os.get_inheritable(fd)
        self._flags = fcntl.fcntl(fd, fcntl.F_GETFL) & _KEPT_FLAGS

    def reopen(self, moves: tuple[tuple[str, str], ...], tmp: str) -> None:
        """Opens the copy's own file in its place."""
        if self._kind == stat.S_IFCHR:
            return
        new = -1
        if self._kind in (stat.S_IFREG, stat.S_IFDIR):
            with contextlib.suppress(OSError):
                new = os.open(_moved(self._path, moves), self._flags)
            if new < 0 and self._kind == stat.S_IFREG:
                with contextlib.suppress(OSError):
                    new = self._copy_unlinked(tmp)
        if new < 0:
            new = os.open("/dev/null", os.O_RDWR)
        elif self._kind == stat.S_IFREG:
            os.lseek(new, os.lseek(self._fd, 0, os.SEEK_CUR), os.SEEK_SET)
        os.dup2(new, self._fd, inheritable=self._inheritable)
        os.close(new)

    def _copy_unlinked(self, tmp: str) -> int:
        """Gives a file without a name, as the original is one by now."""
        new = os.open(tmp, os.O_TMPFILE | os.O_RDWR, 0o600)
        copy_content(self._fd, new, os.fstat(self._fd).st_size)
        return new


def _open_files(skipped: list[int]) -> list[_OpenFile]:
    """Finds open files by trying: a domain of Landlock may not list what is open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found: list[_OpenFile] = []
    for fd in range(_FIRST_FILE, most):
        if fd not in skipped:
            with contextlib.suppress(OSError):
                found.append(_OpenFile(fd))
    return found


def _moved(path: str, moves: tuple[tuple[str, str], ...]) -> str:
    for old, new in moves:
        if path == old or path.startswith(old + "/"):
            return new + path[len(old) :]
    return path


def _working_folder(place: Place) -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return place.home


def _change_folder(path: str, place: Place) -> None:
    try:
        os.chdir(path)
    except OSError:
        os.chdir(place.home)


def _move_tempfile(moves: tuple[tuple[str, str], ...]) -> None:
    tempfile: Any = sys.modules.get("tempfile")
    if tempfile is not None and type(tempfile.tempdir) is str:
        tempfile.tempdir = _moved(tempfile.tempdir, moves)


def _receive_batch(control: int) -> tuple[dict[str, Any], list[int]]:
    """Reads one frame exactly: a longer read would lose descriptors that come with what follows."""
    sock = socket.socket(fileno=control)
    try:
        lengths, ancillary, _, _ = sock.recvmsg(wire.LENGTHS.size, socket.CMSG_SPACE(4 * _MOST_FDS))
    finally:
        sock.detach()
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data)
    while len(lengths) < wire.LENGTHS.size:
        lengths += _read(control, wire.LENGTHS.size - len(lengths))
    size, _ = wire.LENGTHS.unpack(lengths)
    text = b""
    while len(text) < size:
        text += _read(control, size - len(text))
    return wire.loads(text.decode()), fds.tolist()


def _read(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    if not data:
        raise EOFError
    return data


def _fork_sibling() -> int:
    """fork(2) with this process's parent as the child's, so that no copy depends on what it was copied from."""
    flags = ctypes.c_ulong(kernel.CLONE_PARENT | kernel.CLONE_CHILD_SETTID | kernel.CLONE_CHILD_CLEARTID)
    address = ctypes.c_void_p()
    known = kernel.libc.prctl(kernel.PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0) == 0 and address.value
    flags = ctypes.c_ulong((flags.value if known else kernel.CLONE_PARENT) | signal.SIGCHLD)
    tid = ctypes.c_void_p(address.value if known else None)
    arguments = (0, 0, 0, tid) if kernel.MACHINE == "aarch64" else (0, 0, tid, 0)
    _python.PyOS_BeforeFork()
    pid = _held.syscall(kernel.NR["clone"], flags, *arguments)
    if pid == 0:
        _python.PyOS_AfterFork_Child()
        return 0
    _python.PyOS_AfterFork_Parent()
    return kernel.check(pid, "clone")


def _allow_more_processes(count: int) -> None:
    """The kernel's count is one for the whole family."""
    with contextlib.suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        if soft != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NPROC, (min(soft + count, hard), hard))


def _random_state() -> Any:
    random: Any = sys.modules.get("random")
    return None if random is None else random.getstate()


def _restore_random_state(state: Any) -> None:
    """`random` seeds itself anew in every forked process."""
    if state is not None:
        random: Any = sys.modules["random"]
        random.setstate(state)

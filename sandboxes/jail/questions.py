"""The kernel's questions about system calls (seccomp_unotify(2)): how a warden comes to hear those about its sessions,
and who is asked about.

A filter of a session has the kernel ask before it makes some calls; the caller waits for the answer. Whoever holds the
listener, the descriptor that questions come from, could let calls through, so a session gives it away before any code
of others runs in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct

from . import kernel

AT_FDCWD = -100
_NOTIFICATION, _REPLY = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI")
_RECEIVE, _SEND, _IS_VALID = 0xC0502100, 0xC0182101, 0x40082102


def hand_over(line: socket.socket, ask: kernel.Step) -> None:
    """Installs the filter, and sends the descriptor for its questions away: whoever holds it can let calls through."""
    listener = _install(ask)
    socket.send_fds(line, [b"L"], [listener])
    os.close(listener)
    line.close()


def _install(ask: kernel.Step) -> int:
    function, arguments, what = ask
    return kernel.check(function(*arguments), what)


def take_over(line: socket.socket) -> int:
    """Waits for the descriptor that a session hands over; -1 if it ended before."""
    _, fds, _, _ = socket.recv_fds(line, 1, 1)
    line.close()
    return fds[0] if fds else -1


def is_possible(ask: kernel.Step) -> bool:
    """Whether this machine lets a process be asked and look into the memory of those that it is asked about."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            _install(ask)
            os.write(write, b"L")
            signal.pause()
        os._exit(1)
    os.close(write)
    try:
        if os.read(read, 1):
            os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
            return True
    except OSError:
        pass
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return False


class Question:
    """A call that waits for an answer.

    Args:
        listener: Where the question came from.
        data: What the kernel wrote of it.
    """

    def __init__(self, listener: int, data: bytearray) -> None:
        self._listener = listener
        self._number, self.pid, _, self.call, _, _, *self.arguments = _NOTIFICATION.unpack(data)

    def check(self) -> None:
        """Makes sure that the caller still waits, so that nobody else has its id.

        Raises:
            OSError: It does not.
        """
        fcntl.ioctl(self._listener, _IS_VALID, struct.pack("Q", self._number))

    def answer(self, error: int) -> None:
        """Lets the call return 0, or fail with an error; never lets it through."""
        with contextlib.suppress(OSError):  # it does not wait any more
            fcntl.ioctl(self._listener, _SEND, _REPLY.pack(self._number, 0, -error, 0))


def next_question(listener: int) -> Question | None:
    """Gives a question once the listener is readable; None if its caller was killed or interrupted meanwhile."""
    data = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, data)
    except OSError:
        return None
    return Question(listener, data)


class Caller:
    """A process or thread by its folder in /proc, which is never that of another one that gets its id."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY)

    def close(self) -> None:
        """Closes the folder."""
        os.close(self._fd)

    def ids(self) -> tuple[int, int]:
        """Gives the ids of its process and of that one's parent."""
        fd = os.open("status", os.O_RDONLY, dir_fd=self._fd)
        try:
            text = os.read(fd, 1024)
        finally:
            os.close(fd)
        _, _, text = text.partition(b"\nTgid:")
        process, _, text = text.partition(b"\nNgid:")
        _, _, text = text.partition(b"\nPPid:")
        parent, _, _ = text.partition(b"\n")
        if not parent:
            raise ProcessLookupError(errno.ESRCH, "it has ended")
        return int(process), int(parent)

    def memory(self, address: int, size: int) -> bytes:
        """Gives up to `size` bytes of its memory.

        Raises:
            OSError: There is none at that address, or it cannot be looked into.
        """
        fd = os.open("mem", os.O_RDONLY, dir_fd=self._fd)
        try:
            data = os.pread(fd, size, address)
        except (OSError, OverflowError):
            data = b""
        finally:
            os.close(fd)
        if not data:
            raise OSError(errno.EFAULT, "no memory there")
        return data

    def path_of(self, fd: int) -> bytes:
        """Gives the path of a descriptor, or of the working directory."""
        try:
            return os.readlink(_name_of(fd), dir_fd=self._fd)
        except FileNotFoundError as error:
            raise OSError(errno.EBADF, "no such descriptor") from error

    def stat(self, fd: int) -> os.stat_result:
        """Says what a descriptor, or the working directory, is."""
        return os.stat(_name_of(fd), dir_fd=self._fd)


def _name_of(fd: int) -> bytes:
    return b"cwd" if fd == AT_FDCWD else b"fd/%d" % fd

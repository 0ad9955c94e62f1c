"""What the supervisor knows of each session and of the call that it is working on."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import Any

from .channel import Channel
from .orders import Orders

_CHUNK = 1 << 16
_MOST_CHUNKS = 17
"""Read at once from a pipe: what the longest pipe of an ordinary user holds, and no more, as a fast writer can keep it
full for ever."""


class HeadTail:
    """The first and the last bytes of a stream, in bounded memory.

    Args:
        keep: How many bytes to keep in all, half of them from each end.
    """

    __slots__ = ("_half", "_head", "_tail", "total")

    def __init__(self, keep: int) -> None:
        self._half = keep // 2
        self._head = b""
        self._tail = b""
        self.total = 0
        """How many bytes there were."""

    def add(self, data: bytes) -> None:
        """Takes the next bytes."""
        self.total += len(data)
        room = 0 if self._tail else 2 * self._half - len(self._head)
        self._head += data[:room]
        if len(data) > room and self._half:
            self._tail = (self._tail + data[room:])[-self._half :]

    def content(self) -> bytes:
        """The kept bytes, with a line that tells how many are missing."""
        if not self._tail:
            return self._head
        head, tail = self._head[: self._half], (self._head[self._half :] + self._tail)[-self._half :]
        missing = self.total - len(head) - len(tail)
        return head + (b"\n... [%d bytes left out] ...\n" % missing if missing else b"") + tail


@dataclass(slots=True)
class Call:
    """One request of the host while its session works on it."""

    id: int
    operation: str
    started: float
    deadline: float
    grace_s: float
    cpu_s: float | None
    head: dict[str, Any]
    body: bytes
    breach: tuple[str, str] | None = None
    """Status and message of the limit that ended this call, once one did."""
    interrupted: bool = False
    held: tuple[dict[str, Any], bytes] | None = None
    """Its result, if that came before its interrupt: until the interrupt is there it might hit the next call."""
    interrupt_arrived: bool = False
    cpu_before_s: float | None = None
    output_watched: bool = False


@dataclass(slots=True, eq=False)
class Family:
    """A session and its live copies: those who have one warden."""

    number: int
    """The first session's, by which the zygote knows the warden."""
    orders: Orders
    """To the warden."""
    members: set[Session] = field(default_factory=lambda: set[Session]())
    warden_pid: int = 0
    """In the jail; 0 until the zygote has told it."""


@dataclass(slots=True, eq=False)
class Session:
    """One session: its descriptors, its limits, and what it is doing."""

    number: int
    channel: Channel
    out: int
    err: int
    limits: dict[str, Any]
    keep: int
    """Bytes of each output stream to keep."""
    limits_number: int = 0
    family: Family | None = None
    """None for a session without a warden."""
    folders: tuple[str, ...] = ()
    """Its workspace and its folder for temporary files, where these are not mounts with limits of their own."""
    pid: int = 0
    """Process id as its keeper sees it; 0 until that has told it."""
    call: Call | None = None
    ready: bool = False
    """Whether it has answered once, and so finished setting up its jail."""
    dead: bool = False
    cause_of_death: str = ""
    """One line, if it was killed between calls."""
    idle_cpu_s: float | None = None
    """CPU time at the first look since its last call ended."""
    once: bool = False
    """Whether it ends with its first call."""
    partner: Session | None = None
    """The session that ends with this one's call."""
    workspace: int = -1
    output: tuple[HeadTail, HeadTail] = field(default_factory=lambda: (HeadTail(0), HeadTail(0)))

    def start_output(self) -> None:
        """Forgets late output of earlier calls and starts anew."""
        if self.ready:
            self.drain()
        self.output = HeadTail(self.keep), HeadTail(self.keep)

    def drain(self) -> int:
        """Reads what is in the output pipes and gives the number of bytes since the call began."""
        for fd, kept in ((self.out, self.output[0]), (self.err, self.output[1])):
            try:
                for _ in range(_MOST_CHUNKS):
                    data = os.read(fd, _CHUNK)
                    kept.add(data)
                    if len(data) < _CHUNK:
                        break
            except BlockingIOError:
                pass
        return self.output[0].total + self.output[1].total

    def close(self) -> None:
        """Closes all descriptors."""
        self.channel.close()
        for fd in (self.out, self.err, self.workspace):
            if fd >= 0:
                os.close(fd)


def socket_and_pipes() -> tuple[int, tuple[int, int], list[int]]:
    """Gives our end of a socket, the reading ends of stdout and stderr, and the session's three ends."""
    fds: list[int] = []
    try:
        ours, theirs = socket.socketpair()
        fds += os.pipe()
        fds += os.pipe()
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    out_read, out_write, err_read, err_write = fds
    os.set_blocking(out_read, False)
    os.set_blocking(err_read, False)
    return ours.detach(), (out_read, err_read), [theirs.detach(), out_write, err_write]

"""A non-blocking connection that carries frames and keeps what the other side has not taken yet."""

from __future__ import annotations

import array
import os
import select
import socket
from collections.abc import Sequence

from . import wire

CHUNK = 1 << 18
"""Bytes that are read at once."""


class Channel:
    """One end of a framed byte stream inside an epoll loop.

    Args:
        read_fd, write_fd: Descriptors of a socket, the same one twice, or of two pipes; they become non-blocking, and
            this object's to close.
        poll: The loop's epoll object; the channel registers itself.
        max_body: Greatest body that the other side may send, bytes.
    """

    __slots__ = ("_backlog", "_poll", "_reader", "_write_fd", "fd")

    def __init__(self, read_fd: int, write_fd: int, poll: select.epoll, max_body: int = wire.MAX_BODY) -> None:
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._write_fd = write_fd
        self._poll = poll
        self._reader = wire.FrameReader(max_body)
        self._backlog = bytearray()
        self.fd = read_fd
        """Readable when there are frames, and the loop's name for this channel."""
        poll.register(read_fd, select.EPOLLIN)

    @property
    def fds(self) -> set[int]:
        """The descriptors whose events are this channel's."""
        return {self.fd, self._write_fd}

    def send(self, data: bytes) -> None:
        """Sends as much as the other side takes now and keeps the rest for `flush`.

        Raises:
            OSError: The other side is gone.
        """
        if not self._backlog:
            try:
                sent = os.write(self._write_fd, data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
            self._watch_writing()
        self._backlog += data

    def flush(self) -> None:
        """Goes on sending; called when the socket is writable."""
        try:
            with memoryview(self._backlog) as view:
                sent = os.write(self._write_fd, view[: 1 << 20])
        except BlockingIOError:
            return
        del self._backlog[:sent]
        if not self._backlog:
            if self._write_fd == self.fd:
                self._poll.modify(self.fd, select.EPOLLIN)
            else:
                self._poll.unregister(self._write_fd)

    def _watch_writing(self) -> None:
        if self._write_fd == self.fd:
            self._poll.modify(self.fd, select.EPOLLIN | select.EPOLLOUT)
        else:
            self._poll.register(self._write_fd, select.EPOLLOUT)

    def send_with(self, data: bytes, fds: Sequence[int]) -> None:
        """Sends a frame and descriptors at once.

        Raises:
            OSError: The other side is gone, or has not read what came before.
        """
        sock = socket.socket(fileno=self._write_fd)
        try:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            if self._backlog or sock.sendmsg([data], ancillary) < len(data):
                raise BlockingIOError("the other side does not read")
        finally:
            sock.detach()

    def receive(self) -> list[wire.Frame] | None:
        """Gives the frames that have arrived, or None when the other side has hung up or sends no frames."""
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        try:
            return self._reader.feed(data)
        except wire.WireError:
            return None

    def has_more(self) -> bool:
        """Whether something has arrived that was not received yet, if only the end."""
        look = select.poll()
        look.register(self.fd, select.POLLIN)
        return bool(look.poll(0))

    def close(self) -> None:
        """Closes the descriptors, which also takes them out of the loop."""
        for fd in self.fds:
            os.close(fd)

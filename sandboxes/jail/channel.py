"""A non-blocking socket that carries frames and keeps what the other side has not taken yet."""

from __future__ import annotations

import select
import socket

from . import wire


class Channel:
    """One end of a framed stream socket inside an epoll loop.

    Args:
        sock: A connected stream socket; becomes non-blocking.
        poll: The loop's epoll object; the channel registers itself.
        max_body: Greatest body that the other side may send, bytes.
    """

    __slots__ = ("_backlog", "_poll", "_reader", "_sock", "fd")

    def __init__(self, sock: socket.socket, poll: select.epoll, max_body: int = wire.MAX_BODY) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._poll = poll
        self._reader = wire.FrameReader(max_body)
        self._backlog = bytearray()
        self.fd = sock.fileno()
        poll.register(self.fd, select.EPOLLIN)

    def send(self, data: bytes) -> None:
        """Sends as much as the other side takes now and keeps the rest for `flush`.

        Raises:
            OSError: The other side is gone.
        """
        if not self._backlog:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
            self._poll.modify(self.fd, select.EPOLLIN | select.EPOLLOUT)
        self._backlog += data

    def flush(self) -> None:
        """Goes on sending; called when the socket is writable."""
        try:
            sent = self._sock.send(memoryview(self._backlog)[: 1 << 20])
        except BlockingIOError:
            return
        del self._backlog[:sent]
        if not self._backlog:
            self._poll.modify(self.fd, select.EPOLLIN)

    def receive(self) -> list[wire.Frame] | None:
        """Gives the frames that have arrived, or None when the other side has hung up or sends no frames."""
        try:
            data = self._sock.recv(1 << 18)
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

    def close(self) -> None:
        """Closes the socket, which also takes it out of the loop."""
        self._sock.close()

"""The supervisor's end of the socket to a keeper, which keeps the orders that the keeper has not taken yet.

A keeper answers some orders and blocks while its answers are not read; if the supervisor blocked as well, neither would
ever go on.
"""

from __future__ import annotations

import array
import os
import select
import socket
from collections import deque
from collections.abc import Sequence


class Orders:
    """A packet socket inside an epoll loop.

    Args:
        sock: The connected socket.
        poll: The loop's epoll object; the socket is registered.
    """

    def __init__(self, sock: socket.socket, poll: select.epoll) -> None:
        self._sock = sock
        self._poll = poll
        self._backlog: deque[tuple[bytes, Sequence[int]]] = deque()
        self.fd = sock.fileno()
        poll.register(self.fd, select.EPOLLIN)

    def send(self, order: bytes, fds: Sequence[int] = ()) -> None:
        """Sends an order with descriptors, which are closed here once they are on their way."""
        if self._backlog or not self._send_now(order, fds):
            self._backlog.append((order, fds))
            self._poll.modify(self.fd, select.EPOLLIN | select.EPOLLOUT)

    def flush(self) -> None:
        """Goes on sending; called when the socket is writable."""
        while self._backlog and self._send_now(*self._backlog[0]):
            self._backlog.popleft()
        if not self._backlog:
            self._poll.modify(self.fd, select.EPOLLIN)

    def _send_now(self, order: bytes, fds: Sequence[int]) -> bool:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else ()
        try:
            self._sock.sendmsg([order], ancillary, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # it has ended, which its last packet tells
            pass
        for fd in fds:
            os.close(fd)
        return True

    def receive(self) -> tuple[bytes, list[int]] | None:
        """Gives the keeper's next packet and its descriptors, or None when there is none; an empty one is its end."""
        try:
            packet, ancillary, _, _ = self._sock.recvmsg(4096, socket.CMSG_SPACE(32), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b"", []
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        return packet, fds.tolist()

    def close(self) -> None:
        """Closes the socket and forgets the backlog, with its descriptors."""
        for _, fds in self._backlog:
            for fd in fds:
                os.close(fd)
        self._backlog.clear()
        self._sock.close()

"""Keeps the processes that it is the parent of, by number: interrupts, kills and reaps them on the supervisor's order.

A parent's signals never reach a process that merely has a recycled id. The zygote is one, each warden is another.

    I n          interrupt process n; `I n` when that is done
    K n, R n     kill process n; R wants to know how it ended: `X n status`
    Q n          which process is n? `P n pid`

It also says `Z n` when a process that it was told to notice has ended by itself.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Callable

REAP_EVERY_MS = 5


class Keeper:
    """Takes orders for running processes.

    Args:
        orders: Packet socket to the supervisor.
    """

    def __init__(self, orders: socket.socket) -> None:
        self.orders = orders
        self.running: dict[int, int] = {}
        """Number -> process id."""
        self.dying: dict[int, int | None] = {}
        """Process id -> number, if its exit is to be reported."""
        self._poll = select.poll()
        self._poll.register(orders.fileno(), select.POLLIN)
        self._watched: dict[int, Callable[[], None]] = {}
        self._noticed: dict[int, int] = {}
        """Number -> descriptor of the process."""

    def receive(self) -> tuple[bytes, list[tuple[int, int, bytes]]] | None:
        """Gives the next order and what came with it; None if something else came before, or an end is awaited."""
        if (self.dying or self._watched) and not self._has_order():
            if self.dying:
                self.reap()
            return None
        try:
            order, ancillary, _, _ = self.orders.recvmsg(4096, _SPACE)
        except ConnectionError:
            return b"", []
        return order, ancillary

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Has a handler called whenever there is something to read, until the other side is gone; then closes it."""
        self._poll.register(fd, select.POLLIN)
        self._watched[fd] = handler

    def notice_end(self, number: int, pid: int) -> None:
        """Tells the supervisor when a process ends, whose line to it may be held open by a child of its own."""
        with contextlib.suppress(OSError):  # gVisor has no such descriptors
            self._noticed[number] = fd = os.pidfd_open(pid)
            self.watch(fd, lambda: self._on_end(number))

    def _on_end(self, number: int) -> None:
        self._ignore_end(number)
        with contextlib.suppress(OSError):  # the supervisor has hung up, and knows
            self.orders.send(b"Z %d" % number)

    def _ignore_end(self, number: int) -> None:
        fd = self._noticed.pop(number, -1)
        if fd >= 0:
            self._unwatch(fd)

    def _unwatch(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._watched[fd]
        os.close(fd)

    def _has_order(self) -> bool:
        """Waits for an order, or for a while where ends are awaited, and calls a handler meanwhile, once."""
        ready = dict(self._poll.poll(REAP_EVERY_MS if self.dying else None))
        has_order = ready.pop(self.orders.fileno(), 0) != 0
        for fd, events in ready.items():
            if events & select.POLLIN:
                self._watched[fd]()
            else:
                self._unwatch(fd)
        return has_order

    def obey(self, kind: bytes, number: int) -> None:
        """Obeys an order about a running process."""
        pid = self.running.get(number, 0)
        if kind == b"Q":
            self.orders.send(b"P %d %d" % (number, pid))
        elif kind == b"I":
            if pid:
                os.kill(pid, signal.SIGINT)
            self.orders.send(b"I %d" % number)
        elif not pid:
            if kind == b"R":
                self.orders.send(b"X %d -9" % number)
        else:
            del self.running[number]
            self._ignore_end(number)
            self.dying[pid] = number if kind == b"R" else None
            self.end(pid)

    def send_with(self, packet: bytes, *fds: int) -> None:
        """Tells the supervisor something, with descriptors."""
        self.orders.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else ())

    def end(self, pid: int) -> None:
        """Kills a process with all that it has."""
        os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Takes leave of killed processes that have ended, and reports those that are to be reported."""
        for pid, number in list(self.dying.items()):
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped == 0:
                continue
            del self.dying[pid]
            if number is not None:
                self.orders.send(b"X %d %d" % (number, os.waitstatus_to_exitcode(status)))


_SPACE = socket.CMSG_SPACE(32)

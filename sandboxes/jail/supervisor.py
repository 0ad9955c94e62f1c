"""The supervisor: talks to the host, moves code, output and files, and keeps the clocks.

It holds data, so it never forks; sessions are cloned by the zygote. One thread, one epoll loop, no blocking write: a
host or a session that does not read cannot stop the clocks of the others. Nothing that a session says is trusted: its
frames are size-limited plain data, and each field is checked.

Host requests are frames with `id`, `op`, `s` (session number) and `l` (number of limits that were sent before). A
session is made by the first request that names it. Answers carry `id`, `status`, `exit`, `seconds`, `message`, `alive`
and `o`, the size of stdout, which comes first in the body.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from . import calls, copying, wire
from .access import FileAccess
from .channel import CHUNK, Channel
from .clocks import Clocks
from .control_groups import ControlGroups
from .forks import Forks
from .orders import Orders
from .tracked import Call, Family, Session, socket_and_pipes

_MAX_ANSWER = calls.MAX_ANSWER
_STATUSES = {"ok": "ok", "error": "error", "memory": "memory_limit", "disk": "disk_limit"}
_ONCE = ("calls", "tests", "program", "ready")
"""Operations that have a session to themselves, which ends with them unless the request says `keep`."""
_ANSWERED = ("calls", "tests", "ready")
"""Operations whose answer is a body, and not what was printed."""
_MOST_DISMISSED = 4
_MOST_LAST_READS = _MAX_ANSWER // CHUNK + 2
"""Of what a session has sent that has ended; its children might go on for ever."""


class Supervisor:
    """Serves one host.

    Args:
        host: Descriptors of the connection to the host: to read from, and to write to.
        orders: Packet socket to the zygote.
        host_process: A pidfd of the host process, which turns readable when it is gone; -1 for none.
        isolation: The jail's mode.
        directory: Where sessions have their folders, if these are no mounts of their own.
        groups: Where they have control groups, if they do.
    """

    def __init__(
        self,
        host: tuple[int, int],
        orders: socket.socket,
        host_process: int,
        isolation: str,
        directory: str | None,
        groups: ControlGroups | None,
    ) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._channels: dict[int, Channel | Orders] = {}
        self._host = Channel(*host, self._poll)
        for fd in self._host.fds:
            self._channels[fd] = self._host
        self._handlers[self._host.fd] = self._on_host
        self._orders = self._add_orders(orders, self._on_zygote)
        if host_process >= 0:
            self._handle(host_process, self._leave)
        self._isolation, self._directory = isolation, directory
        self._limits: dict[int, dict[str, Any]] = {}
        self._families: dict[int, Family] = {}
        self._dismissed: deque[Orders] = deque()
        self.sessions: dict[int, Session] = {}
        self.running: set[Session] = set()
        self._clocks = Clocks(self, isolation, groups)
        self._forks = Forks(self)
        self._files = FileAccess(self)

    def serve(self) -> NoReturn:
        """Serves until the host is gone."""
        while True:
            for fd, events in self._poll.poll(self._clocks.until_next()):
                if events & select.EPOLLOUT:
                    self._flush(fd)
                if events & ~select.EPOLLOUT:
                    handler = self._handlers.get(fd)
                    if handler is not None:
                        handler()
                    if events == select.EPOLLHUP and fd not in self._channels:  # a pipe that nobody can write to now
                        self._forget(fd)
            self._clocks.keep()

    def _handle(self, fd: int, handler: Callable[[], None]) -> None:
        self._poll.register(fd, select.EPOLLIN)
        self._handlers[fd] = handler

    def _forget(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._poll.unregister(fd)

    def _add_orders(self, sock: socket.socket, handler: Callable[[], None]) -> Orders:
        orders = Orders(sock, self._poll)
        self._channels[orders.fd] = orders
        self._handlers[orders.fd] = handler
        return orders

    def _flush(self, fd: int) -> None:
        channel = self._channels.get(fd)
        if channel is None:
            return
        try:
            channel.flush()
        except OSError:
            if channel is self._host or channel is self._orders:
                self._leave()

    def _leave(self) -> NoReturn:
        """Ends the jail. In namespaces the kernel kills everything when process 1 ends; elsewhere zygote and wardens do
        when nobody gives orders any more.
        """
        if self._isolation in ("landlock", "uid") and self._directory is not None:
            self._orders.close()
            for family in self._families.values():
                family.orders.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would have us wait for all orphans
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)
            copying.remove_tree(self._directory)
        os._exit(0)

    # --- the host

    def _on_host(self) -> None:
        frames = self._host.receive()
        if frames is None:
            self._leave()
        for head, body in frames:
            self._request(head, body)

    def _answer(self, head: dict[str, Any], body: bytes = b"") -> None:
        try:
            self._host.send(wire.pack(head, body))
        except OSError:
            self._leave()

    def _request(self, head: dict[str, Any], body: bytes) -> None:
        operation, number = head["op"], head["s"]
        if operation == "limits":
            self._limits[number] = json.loads(body)
            self._orders.send(b"L %d %s" % (number, body))
            return
        session = self.sessions.get(number)
        if operation == "close":
            if session is not None:
                self.destroy(session)
            return
        try:
            if operation == "tests" and session is None:
                session = self._start_tests(number, head, body)
                body = head.pop("body")
            elif session is None:
                session = self._spawn(number, head["l"], once=operation in _ONCE)
        except OSError as error:  # no descriptors left
            self._decline(head, "sandbox_died", f"cannot start a session: {error.strerror}", alive=False)
            return
        if session.dead or session.call is not None:
            self._decline(head, "dead" if session.dead else "busy", session.cause_of_death, alive=not session.dead)
            return
        self._begin(session, head, body)

    def _begin(self, session: Session, head: dict[str, Any], body: bytes) -> None:
        """Has a session work on a request."""
        now = time.monotonic()
        operation, limits = head["op"], session.limits
        timeout_s = head.get("timeout_s") or limits["timeout_s"]
        call = Call(head["id"], operation, now, now + timeout_s, limits["grace_s"], limits["cpu_s"], head, body)
        session.call = call
        session.idle_cpu_s = None
        self.running.add(session)
        if operation in ("put", "get"):
            self._files.start(session)
        elif operation == "fork":
            self._forks.start(session, call)
        else:
            session.once = operation in _ONCE and not head.get("keep")
            session.start_output()
            order = {"op": operation, "id": call.id}
            if operation == "run":
                order["argv"] = head["argv"]
            self.send(session, order, body)

    def _decline(self, head: dict[str, Any], status: str, message: str, alive: bool) -> None:
        answer = {"id": head["id"], "status": status, "exit": None, "seconds": 0.0, "message": message, "alive": alive}
        self._answer(answer)

    def send(self, session: Session, order: dict[str, Any], body: bytes = b"") -> None:
        """Sends a session something to do."""
        try:
            session.channel.send(wire.pack(order, body))
        except OSError:
            self._on_end(session)

    # --- sessions

    def _spawn(self, number: int, limits_number: int, once: bool, extra: socket.socket | None = None) -> Session:
        ours, outputs, theirs = socket_and_pipes()
        fds = [*theirs, extra.detach()] if extra is not None else theirs
        session = self.track(number, limits_number, ours, outputs)
        if self._isolation == "none" or (once and self._isolation == "namespaces"):
            self._orders.send(b"S %d %d" % (number, limits_number), fds)
            return session
        mine, wardens = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        family = session.family = self._families[number] = Family(number, Orders(mine, self._poll), {session})
        self._channels[family.orders.fd] = family.orders
        self._handlers[family.orders.fd] = lambda: self._on_warden(family)
        if self._directory is not None:
            session.folders = f"{self._directory}/{number}/home", f"{self._directory}/{number}/tmp"
        self._orders.send(b"F %d %d" % (number, limits_number), [wardens.detach(), *fds])
        return session

    def track(self, number: int, limits_number: int, ours: int, outputs: tuple[int, int]) -> Session:
        """Begins to keep account of a session.

        Args:
            number: The session's.
            limits_number: Which limits it has.
            ours: Our end of its socket.
            outputs: The reading ends of its stdout and stderr.
        """
        limits = self._limits[limits_number]
        channel = Channel(ours, ours, self._poll, _MAX_ANSWER)
        session = Session(number, channel, *outputs, limits, limits["output_kib"] * 1024, limits_number=limits_number)
        self.sessions[number] = session
        self._channels[ours] = channel
        self._handlers[ours] = lambda: self._on_session(session)
        return session

    def order(self, kind: bytes, session: Session, text: bytes = b"") -> None:
        """Sends an order about a session to whoever keeps its process."""
        keeper = self._orders if session.family is None else session.family.orders
        keeper.send(b"%s %d %s" % (kind, session.number, text))

    def ask_for_warden(self, family: Family) -> None:
        """Asks the zygote for the process id of a family's warden."""
        self._orders.send(b"Q %d " % family.number)

    def _on_zygote(self) -> None:
        while (received := self._orders.receive()) is not None:
            packet, fds = received
            if not packet:
                self._answer({"id": 0, "fatal": "the zygote ended"})
                self._leave()
            kind, number, *rest = packet.split(b" ", 2)
            family = self._families.get(int(number))
            if kind == b"P" and family is not None:
                family.warden_pid = int(rest[0])
            else:
                self._on_keeper(kind, self.sessions.get(int(number)), rest, fds)

    def _on_warden(self, family: Family) -> None:
        while family.number in self._families and (received := family.orders.receive()) is not None:
            packet, fds = received
            if not packet:
                self._on_lost_warden(family)
                return
            kind, number, *rest = packet.split(b" ", 2)
            if kind in (b"C", b"D", b"A", b"F"):
                self._forks.on_warden(family, kind, int(number), rest[0] if rest else b"", fds)
            else:
                self._on_keeper(kind, self.sessions.get(int(number)), rest, fds)

    def _on_keeper(self, kind: bytes, session: Session | None, rest: list[bytes], fds: list[int]) -> None:
        """Takes what zygote and wardens say of a session's process."""
        if session is None:
            for fd in fds:
                os.close(fd)
        elif kind == b"P":
            session.pid = int(rest[0])
        elif kind == b"I":
            self._on_interrupted(session)
        elif kind == b"W":
            self._files.perform(session, fds[0] if fds else -1)
        elif kind == b"E":
            self.order(b"K", session)
            self._mark_dead(session)
            self.finish(session, "sandbox_died", None, f"cannot start a session: {rest[0].decode()}")
        elif kind == b"Z":
            for _ in range(_MOST_LAST_READS):
                if not session.dead and session.channel.has_more():
                    self._on_session(session)
            self._on_end(session)
        elif kind == b"X":
            self._on_exit(session, int(rest[0]))

    def _on_lost_warden(self, family: Family) -> None:
        """The warden is gone, and so are its sessions: in namespaces with it, elsewhere by the zygote's hand."""
        self._forget(family.orders.fd)
        self._orders.send(b"D %d " % family.number)
        for session in list(family.members):
            if not session.dead:
                self._mark_dead(session)
            if session.ready:
                self._on_exit(session, -9)
            else:  # its own code cannot have done that
                self.finish(session, "sandbox_died", None, "the session's warden ended")

    def _on_session(self, session: Session) -> None:
        frames = session.channel.receive()
        if frames is None:
            self._on_end(session)
            return
        for head, body in frames:
            if session.dead:
                return
            if self._forks.is_forking(session):
                if not self._forks.on_session(session, head):
                    self._on_end(session)
                continue
            call = session.call
            is_file_access = call is not None and call.operation in ("put", "get")
            if call is None or head.get("id") != call.id or (is_file_access and session.ready):
                self._on_end(session)  # an honest session answers once, so this one's code speaks in its name
                return
            session.ready = True
            if is_file_access:
                self.order(b"W", session)
            else:
                self._on_result(session, call, head, body)

    def _on_interrupted(self, session: Session) -> None:
        call = session.call
        if call is not None:
            call.interrupt_arrived = True
            if call.held is not None:
                self._on_result(session, call, *call.held)

    def _on_result(self, session: Session, call: Call, head: dict[str, Any], body: bytes) -> None:
        if call.interrupted and not call.interrupt_arrived:
            call.held, call.deadline = (head, body), math.inf
            return
        status, exit_status, message = head.get("s"), head.get("x"), head.get("m")
        status = _STATUSES.get(status, "error") if type(status) is str else "error"
        if type(exit_status) is not int or not -128 < exit_status < 256:
            exit_status = 1
        message = wire.one_line(message) if type(message) is str else ""
        if call.breach is not None:
            status, message = call.breach[0], f"{call.breach[1]}; interrupted, the session keeps its state"
        elif (over := self._clocks.check_disk(session)) is not None:
            self.kill(session, *over)
            return
        self.finish(session, status, exit_status, message, body if call.operation in _ANSWERED else None)

    def _on_end(self, session: Session) -> None:
        """The session's socket is closed: it is dead, or is killed now."""
        if session.dead:
            return
        self._mark_dead(session)
        self._forks.drop(session, "the session has ended")
        call = session.call
        if call is not None and call.breach is None:
            self.order(b"R", session)  # `_on_exit` goes on
        else:
            self.order(b"K", session)
            if call is not None:
                self.finish(session, *_killed_for(call))

    def _on_exit(self, session: Session, exit_status: int) -> None:
        if session.call is None:
            return
        if (over := self._clocks.check_memory(session)) is not None:
            self.finish(session, over[0], exit_status, f"{over[1]}; the session was killed")
            return
        if exit_status >= 0:
            message = f"the session's process exited with status {exit_status}"
        else:
            message = f"the session's process was killed by signal {-exit_status}"
        self.finish(session, "killed", exit_status, message)

    def _mark_dead(self, session: Session) -> None:
        session.dead = True
        self._handlers.pop(session.channel.fd, None)
        self._forget(session.channel.fd)

    def kill(self, session: Session, status: str, message: str) -> None:
        """Ends a session for the limit that its call broke."""
        call = session.call
        if call is None:
            return
        call.breach = call.breach or (status, message)
        self.end(session)
        self.finish(session, *_killed_for(call))

    def end(self, session: Session, cause: str = "") -> None:
        """Kills a session."""
        session.cause_of_death = cause
        self._mark_dead(session)
        self._forks.drop(session, cause or "the session was killed")
        self.order(b"K", session)

    def destroy(self, session: Session) -> None:
        """Kills a session if it lives, and forgets it."""
        if session.number not in self.sessions:
            return
        del self.sessions[session.number]
        self._forks.drop(session, "the session was closed")
        family = session.family
        if family is not None:
            family.members.discard(session)
            if family.members:
                self.order(b"K", session)
            else:
                self._dismiss(family)
        elif not session.dead:
            self.order(b"K", session)
        self.running.discard(session)
        self._clocks.forget(session)
        for fd in (session.channel.fd, session.out, session.err):
            self._handlers.pop(fd, None)
            self._channels.pop(fd, None)
        session.close()
        if session.partner is not None:
            self.destroy(session.partner)

    def _dismiss(self, family: Family) -> None:
        """Hangs up on a warden, which then ends with all that it has."""
        del self._families[family.number]
        self._handlers.pop(family.orders.fd, None)
        self._channels.pop(family.orders.fd, None)
        self._orders.send(b"D %d " % family.number)
        if self._isolation == "namespaces":
            self._forget(family.orders.fd)
            self._dismissed.append(family.orders)  # the zygote kills that warden: it need not wake to notice the end
            if len(self._dismissed) > _MOST_DISMISSED:
                self._dismissed.popleft().close()
        else:
            family.orders.close()

    def finish(
        self, session: Session, status: str, exit_status: int | None, message: str, body: bytes | None = None
    ) -> None:
        """Answers the host, and ends a session that was for one call."""
        call = session.call
        if call is None:
            return
        session.call = None
        self.running.discard(session)
        head: dict[str, Any] = {"id": call.id, "status": status, "seconds": time.monotonic() - call.started}
        head["exit"], head["message"], head["alive"] = exit_status, message, not session.dead
        if body is None:
            session.drain()
            out, err = session.output[0].content(), session.output[1].content()
            head["o"], body = len(out), out + err
        if call.output_watched:
            for fd in (session.out, session.err):
                self._forget(fd)
                del self._handlers[fd]
        self._answer(head, body)
        if session.once:
            self.destroy(session)

    # --- tests

    def _start_tests(self, number: int, head: dict[str, Any], body: bytes) -> Session:
        """Makes a tests' session and a solution's session with a channel between them, and starts both."""
        for_tests, for_solution = socket.socketpair()
        session = self._spawn(number, head["l"], True, for_tests)
        try:
            partner = self._spawn(-number, head["l"], True, for_solution)
        except OSError:
            self.destroy(session)
            raise
        session.partner = partner
        partner.start_output()
        split = head["solution_size"]
        for fd in (partner.out, partner.err):  # nobody asked for what it prints, and it must not block
            self._handle(fd, lambda: self._clocks.on_output(session, partner))
        self.send(partner, {"op": "stub", "id": 0}, body[:split])
        head["body"] = body[split:]
        return session

    def watch_output(self, session: Session) -> None:
        """Takes a session's output as it comes."""
        for fd in (session.out, session.err):
            self._handle(fd, lambda: self._clocks.on_output(session))


def _killed_for(call: Call) -> tuple[str, int, str]:
    assert call.breach is not None
    return call.breach[0], -9, f"{call.breach[1]}; the session was killed"

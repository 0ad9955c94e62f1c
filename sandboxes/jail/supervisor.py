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
import errno
import json
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, NoReturn

from . import calls, files, processes, wire
from .channel import Channel
from .orders import Orders
from .tracked import Call, Session, socket_and_pipes

_WATCH_EVERY_S = 0.05
_WATCH_IDLE_EVERY_S = 1.0
_OUTPUT_EVENTS_AFTER_S = 0.005
"""Output of shorter calls is read when they end; only longer ones wake the loop for each piece."""
_MAX_ANSWER = calls.MAX_ANSWER
_STATUSES = {"ok": "ok", "error": "error", "memory": "memory_limit", "disk": "disk_limit"}
_ONCE = ("calls", "tests", "ready")
"""Operations that have a session to themselves, which ends with them."""
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MIB = 1 << 20


class Supervisor:
    """Serves one host.

    Args:
        host: Stream socket to the host.
        orders: Packet socket to the zygote.
        host_process: A pidfd of the host process, which turns readable when it is gone; -1 for none.
    """

    def __init__(self, host: socket.socket, orders: socket.socket, host_process: int) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._channels: dict[int, Channel | Orders] = {}
        self._host = Channel(host, self._poll)
        self._channels[self._host.fd] = self._host
        self._handlers[self._host.fd] = self._on_host
        self._orders = Orders(orders, self._poll)
        self._channels[self._orders.fd] = self._orders
        self._handlers[self._orders.fd] = self._on_zygote
        if host_process >= 0:
            self._handle(host_process, self._leave)
        self._limits: dict[int, dict[str, Any]] = {}
        self._sessions: dict[int, Session] = {}
        self._running: set[Session] = set()
        self._next_watch = 0.0
        self._next_idle_watch = 0.0

    def serve(self) -> NoReturn:
        """Serves until the host is gone."""
        while True:
            for fd, events in self._poll.poll(self._until_next_deadline()):
                if events & select.EPOLLOUT:
                    self._flush(fd)
                if events & ~select.EPOLLOUT:
                    handler = self._handlers.get(fd)
                    if handler is not None:
                        handler()
            if self._running:
                self._keep_clocks()
            if self._sessions and (now := time.monotonic()) >= self._next_idle_watch:
                self._next_idle_watch = now + _WATCH_IDLE_EVERY_S
                self._watch_idle()

    def _handle(self, fd: int, handler: Callable[[], None]) -> None:
        self._poll.register(fd, select.EPOLLIN)
        self._handlers[fd] = handler

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
        os._exit(0)  # process 1 of the jail: the kernel kills everything else in it

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
        session = self._sessions.get(number)
        if operation == "close":
            if session is not None:
                self._destroy(session)
            return
        try:
            if operation == "tests":
                session = self._start_tests(number, head, body)
                body = head.pop("body")
            elif session is None:
                session = self._spawn(number, head["l"])
        except OSError as error:  # no descriptors left
            self._decline(head, "sandbox_died", f"cannot start a session: {error.strerror}", alive=False)
            return
        if session.dead or session.call is not None:
            self._decline(head, "dead" if session.dead else "busy", session.cause_of_death, alive=not session.dead)
            return
        now = time.monotonic()
        limits = session.limits
        timeout_s = head.get("timeout_s") or limits["timeout_s"]
        call = Call(head["id"], operation, now, now + timeout_s, limits["grace_s"], limits["cpu_s"], head, body)
        session.call = call
        session.idle_cpu_s = None
        self._running.add(session)
        if operation in ("put", "get"):
            self._start_file_access(session)
        else:
            session.once = operation in _ONCE
            session.start_output()
            order = {"op": operation, "id": call.id}
            if operation == "run":
                order["argv"] = head["argv"]
            self._send(session, order, body)

    def _decline(self, head: dict[str, Any], status: str, message: str, alive: bool) -> None:
        answer = {"id": head["id"], "status": status, "exit": None, "seconds": 0.0, "message": message, "alive": alive}
        self._answer(answer)

    def _send(self, session: Session, order: dict[str, Any], body: bytes = b"") -> None:
        try:
            session.channel.send(wire.pack(order, body))
        except OSError:
            self._on_end(session)

    # --- sessions

    def _spawn(self, number: int, limits_number: int, extra: socket.socket | None = None) -> Session:
        limits = self._limits[limits_number]
        ours, (out, err), theirs = socket_and_pipes()
        session = Session(number, Channel(ours, self._poll, _MAX_ANSWER), out, err, limits, limits["output_kib"] * 1024)
        fds = [*theirs, extra.detach()] if extra is not None else theirs
        self._orders.send(b"S %d %d" % (number, limits_number), fds)
        self._sessions[number] = session
        self._channels[session.channel.fd] = session.channel
        self._handlers[session.channel.fd] = lambda: self._on_session(session)
        return session

    def _order(self, kind: bytes, session: Session) -> None:
        self._orders.send(b"%s %d " % (kind, session.number))

    def _on_zygote(self) -> None:
        while (received := self._orders.receive()) is not None:
            packet, fds = received
            if not packet:
                self._answer({"id": 0, "fatal": "the zygote ended"})
                self._leave()
            kind, number, *rest = packet.split(b" ", 2)
            session = self._sessions.get(int(number))
            if session is None:
                for fd in fds:
                    os.close(fd)
            elif kind == b"P":
                session.pid = int(rest[0])
            elif kind == b"W":
                self._access_file(session, fds[0] if fds else -1)
            elif kind == b"E":
                self._order(b"K", session)
                self._mark_dead(session)
                self._finish(session, "sandbox_died", None, f"cannot start a session: {rest[0].decode()}")
            elif kind == b"X":
                self._on_exit(session, int(rest[0]))

    def _on_session(self, session: Session) -> None:
        frames = session.channel.receive()
        if frames is None:
            self._on_end(session)
            return
        for head, body in frames:
            call = session.call
            is_file_access = call is not None and call.operation in ("put", "get")
            if call is None or head.get("id") != call.id or (is_file_access and session.ready):
                self._on_end(session)  # an honest session answers once, so this one's code speaks in its name
                return
            session.ready = True
            if is_file_access:
                self._order(b"W", session)
            else:
                self._on_result(session, call, head, body)

    def _on_result(self, session: Session, call: Call, head: dict[str, Any], body: bytes) -> None:
        status, exit_status, message = head.get("s"), head.get("x"), head.get("m")
        status = _STATUSES.get(status, "error") if type(status) is str else "error"
        if type(exit_status) is not int or not -128 < exit_status < 256:
            exit_status = 1
        message = wire.one_line(message) if type(message) is str else ""
        if call.breach is not None:
            status, message = call.breach[0], f"{call.breach[1]}; interrupted, the session keeps its state"
        self._finish(session, status, exit_status, message, body if session.once else None)

    def _on_end(self, session: Session) -> None:
        """The session's socket is closed: it is dead, or is killed now."""
        if session.dead:
            return
        self._mark_dead(session)
        call = session.call
        if call is not None and call.breach is None:
            self._order(b"R", session)  # `_on_exit` goes on
        else:
            self._order(b"K", session)
            if call is not None:
                self._finish(session, *_killed_for(call))

    def _on_exit(self, session: Session, exit_status: int) -> None:
        if session.call is None:
            return
        if exit_status >= 0:
            message = f"the session's process exited with status {exit_status}"
        else:
            message = f"the session's process was killed by signal {-exit_status}"
        self._finish(session, "killed", exit_status, message)

    def _mark_dead(self, session: Session) -> None:
        session.dead = True
        self._handlers.pop(session.channel.fd, None)
        with contextlib.suppress(OSError):
            self._poll.unregister(session.channel.fd)

    def _kill(self, session: Session, status: str, message: str) -> None:
        """Ends a session for the limit that its call broke."""
        call = session.call
        assert call is not None
        call.breach = call.breach or (status, message)
        self._end(session)
        self._finish(session, *_killed_for(call))

    def _end(self, session: Session, cause: str = "") -> None:
        session.cause_of_death = cause
        self._mark_dead(session)
        self._order(b"K", session)

    def _destroy(self, session: Session) -> None:
        if not session.dead:
            self._order(b"K", session)
        self._running.discard(session)
        for fd in (session.channel.fd, session.out, session.err):
            self._handlers.pop(fd, None)
            self._channels.pop(fd, None)
        session.close()
        del self._sessions[session.number]
        if session.partner is not None and session.partner.number in self._sessions:
            self._destroy(session.partner)

    def _finish(
        self, session: Session, status: str, exit_status: int | None, message: str, body: bytes | None = None
    ) -> None:
        call = session.call
        if call is None:
            return
        session.call = None
        self._running.discard(session)
        head: dict[str, Any] = {"id": call.id, "status": status, "seconds": time.monotonic() - call.started}
        head["exit"], head["message"], head["alive"] = exit_status, message, not session.dead
        if body is None:
            session.drain()
            out, err = session.output[0].content(), session.output[1].content()
            head["o"], body = len(out), out + err
        if call.output_watched:
            for fd in (session.out, session.err):
                self._poll.unregister(fd)
                del self._handlers[fd]
        self._answer(head, body)
        if session.once:
            self._destroy(session)

    # --- files and tests

    def _start_file_access(self, session: Session) -> None:
        call = session.call
        assert call is not None
        if session.workspace >= 0:
            self._access_file(session, session.workspace)
        elif session.ready:
            self._order(b"W", session)
        else:  # its answer shows that its workspace is mounted
            self._send(session, {"op": "ready", "id": call.id})

    def _access_file(self, session: Session, workspace: int) -> None:
        session.workspace = workspace
        call = session.call
        if call is None or call.operation not in ("put", "get"):
            return
        data = b""
        try:
            if workspace < 0:
                raise OSError(errno.ESRCH, "the session has ended")
            if call.operation == "put":
                files.write_file(workspace, call.head["path"], call.body)
            else:
                data = files.read_file(workspace, call.head["path"], wire.MAX_BODY)
        except OSError as error:
            status = "disk_limit" if error.errno in _DISK_ERRORS else "error"
            self._finish(session, status, error.errno, error.strerror or str(error))
        else:
            self._finish(session, "ok", 0, "", data)

    def _start_tests(self, number: int, head: dict[str, Any], body: bytes) -> Session:
        """Makes a tests' session and a solution's session with a channel between them, and starts both."""
        for_tests, for_solution = socket.socketpair()
        session = self._spawn(number, head["l"], for_tests)
        try:
            partner = self._spawn(-number, head["l"], for_solution)
        except OSError:
            self._destroy(session)
            raise
        session.partner = partner
        partner.start_output()
        split = head["solution_size"]
        for fd in (partner.out, partner.err):  # nobody asked for what it prints, and it must not block
            self._handle(fd, lambda: self._on_output(session, partner))
        self._send(partner, {"op": "stub", "id": 0}, body[:split])
        head["body"] = body[split:]
        return session

    # --- clocks and limits

    def _until_next_deadline(self) -> float | None:
        if not self._running:
            return _WATCH_IDLE_EVERY_S if self._sessions else None
        now = time.monotonic()
        earliest = now + _WATCH_EVERY_S
        for session in self._running:
            call = session.call
            assert call is not None
            earliest = min(earliest, call.deadline)
            if not call.output_watched:
                earliest = min(earliest, call.started + _OUTPUT_EVENTS_AFTER_S)
        return max(0.0, earliest - now)

    def _keep_clocks(self) -> None:
        now = time.monotonic()
        long_running: list[Session] = []
        for session in list(self._running):
            call = session.call
            assert call is not None
            if not call.output_watched and now - call.started >= _OUTPUT_EVENTS_AFTER_S:
                call.output_watched = True
                for fd in (session.out, session.err):
                    self._handle(fd, lambda session=session: self._on_output(session))
            if now >= call.deadline:
                self._on_deadline(session, call, now)
            elif now - call.started >= _WATCH_EVERY_S:
                long_running.append(session)
        if long_running and now >= self._next_watch:
            self._next_watch = now + _WATCH_EVERY_S
            self._watch(long_running, now)

    def _on_deadline(self, session: Session, call: Call, now: float) -> None:
        seconds = call.head.get("timeout_s") or session.limits["timeout_s"]
        self._interrupt(session, call, now, "timeout", f"timed out after {seconds:g} s")

    def _interrupt(self, session: Session, call: Call, now: float, status: str, message: str) -> None:
        """Asks a call to stop; a second time, or where nothing is worth keeping, kills its session."""
        if call.interrupted or session.once:
            self._kill(session, status, message)
            return
        call.breach = call.breach or (status, message)
        call.interrupted = True
        call.deadline = now + call.grace_s
        self._order(b"I", session)

    def _on_output(self, session: Session, printer: Session | None = None) -> None:
        call = session.call
        if call is None:
            return
        if (printer or session).drain() > session.limits["output_hard_mib"] * _MIB and not call.interrupted:
            message = f"more than {session.limits['output_hard_mib']} MiB of output"
            self._interrupt(session, call, time.monotonic(), "output_limit", message)

    def _watch(self, sessions: list[Session], now: float) -> None:
        """Checks memory, processes and CPU time of the sessions that have been working for a while."""
        table = processes.process_table()
        for session in sessions:
            call = session.call
            members = [session] if session.partner is None else [session, session.partner]
            members = [member for member in members if not member.dead]
            if call is None or not self._know_pids(members):
                continue
            cpu_s = 0.0
            for member in members:
                usage = processes.usage_of(member.pid, table)
                cpu_s += usage.cpu_s
                oversize = processes.oversize(session.limits, member.pid, usage, table)
                if oversize is not None and not session.dead:
                    self._kill(session, *oversize)
            if session.call is call and call.cpu_s is not None and not call.interrupted:
                if call.cpu_before_s is None:  # it may have been busy since the call began
                    call.cpu_before_s = max(0.0, cpu_s - (now - call.started))
                if cpu_s - call.cpu_before_s > call.cpu_s:
                    self._interrupt(session, call, now, "timeout", f"more than {call.cpu_s:g} s of CPU time")

    def _know_pids(self, sessions: list[Session]) -> bool:
        """Whether the sessions' process ids are known; asks for those that are not, for the next look."""
        unknown = [session for session in sessions if not session.pid]
        for session in unknown:
            self._order(b"Q", session)
        return not unknown

    def _watch_idle(self) -> None:
        """Ends sessions whose threads and processes go on working between calls: limits hold there too."""
        resting = [session for session in self._sessions.values() if session.ready and not session.call]
        idle = [session for session in resting if not session.dead and self._know_pids([session])]
        if not idle:
            return
        table = processes.process_table()
        for session in idle:
            usage = processes.usage_of(session.pid, table)
            if session.idle_cpu_s is None:
                session.idle_cpu_s = usage.cpu_s
            most_cpu_s = session.limits["cpu_s"] or session.limits["timeout_s"]
            oversize = processes.oversize(session.limits, session.pid, usage, table)
            if oversize is not None:
                self._end(session, f"the session was killed between calls: {oversize[1]}")
            elif usage.cpu_s - session.idle_cpu_s > most_cpu_s:
                self._end(session, f"the session was killed between calls: more than {most_cpu_s:g} s of CPU time")


def _killed_for(call: Call) -> tuple[str, int, str]:
    assert call.breach is not None
    return call.breach[0], -9, f"{call.breach[1]}; the session was killed"

"""The host's side of a jail: sends requests and hands answers to whoever waits for them, over any `JailLink`.

Thread-safe and without a thread of its own: of the threads that wait for answers, one reads the link for all (the
*leader*); when its own answer is in, it passes the office on. A single caller so pays for no thread switch.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
from collections import deque
from dataclasses import asdict
from typing import Any, Protocol

from ..core.errors import SandboxDied, SandboxError, SandboxUnavailable
from .base import Limits
from .jail import wire

_START_TIMEOUT_S = 30.0


class JailLink(Protocol):
    """The connection to a jail's supervisor, and the life of what it runs in."""

    def receive(self) -> bytes:
        """Gives the next bytes; none when the other side is gone. Raises OSError."""
        ...

    def send(self, data: bytes) -> None:
        """Sends all of `data`. Raises OSError."""
        ...

    def set_timeout(self, seconds: float | None) -> None:
        """How long `receive` waits before it raises TimeoutError."""
        ...

    def hang_up(self) -> None:
        """Ends the connection; a thread inside `receive` comes back."""
        ...

    def end(self) -> None:
        """Waits for the end of everything in the jail, with force if need be, and removes what it left."""
        ...

    def close(self) -> None:
        """Closes the descriptors, when no thread uses them any more."""
        ...

    def forget(self) -> None:
        """In a forked child: lets go without ending anything."""
        ...


class Reply:
    """An answer that may still be on its way."""

    __slots__ = ("_client", "body", "done", "head", "wake")

    def __init__(self, client: JailClient) -> None:
        self._client = client
        self.done = False
        self.head: dict[str, Any] = {}
        self.body = b""
        self.wake: threading.Lock | None = None
        """Held by a thread that waits while another one reads."""

    def wait(self) -> Reply:
        """Gives this reply once it is there; never raises: a jail that dies answers `sandbox_died`."""
        if not self.done:
            self._client.read_until(self)
        return self


class JailClient:
    """One jail of this process.

    Args:
        link: Where its supervisor is about to say hello; ended here if it does not.
        count_processes: Whether RLIMIT_NPROC counts each session by itself in there.

    Raises:
        SandboxUnavailable: The jail cannot be built; the message says why.
    """

    def __init__(self, link: JailLink, count_processes: bool = False) -> None:
        self.pid = os.getpid()
        self._count_processes = count_processes
        self.died: str | None = None
        """Why the jail is gone; None while it lives."""
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._limits_lock = threading.Lock()
        self._has_leader = False
        self._waiting: dict[int, Reply] = {}
        self._abandoned: deque[int] = deque()
        self._ids = itertools.count(1)
        self._next_session = 0
        self._limits: dict[Limits, int] = {}
        self._frames = wire.FrameReader()
        self._link = link
        self._await_hello()
        self._try_session()

    # --- requests

    def new_session(self) -> int:
        """Gives a number that no session of this jail had; the session itself is made by its first request."""
        with self._lock:
            self._next_session += 1
            return self._next_session

    def limits_number(self, limits: Limits) -> int:
        """Gives the number under which the jail knows these limits; tells it new ones."""
        number = self._limits.get(limits)
        if number is not None:
            return number
        with self._limits_lock:
            number = self._limits.get(limits, len(self._limits) + 1)
            fields = {**asdict(limits), "count_processes": self._count_processes}
            self._send(wire.pack({"op": "limits", "s": number}, json.dumps(fields).encode()))
            self._limits[limits] = number
        return number

    def submit(self, head: dict[str, Any], body: bytes = b"") -> Reply:
        """Sends a request and gives its reply at once; `wait()` on it.

        Raises:
            SandboxError: The request is too large to send.
        """
        reply = Reply(self)
        number = head["id"] = next(self._ids)
        try:
            data = wire.pack(head, body)
        except wire.WireError as error:
            raise SandboxError(f"the request cannot be sent: {error}") from error
        with self._lock:
            if self.died is not None:
                return self._fail(reply)
            self._waiting[number] = reply
        self._send(data)
        return reply

    def tell(self, head: dict[str, Any]) -> None:
        """Sends a request that has no answer."""
        if self.died is None:
            self._send(wire.pack(head))

    def abandon(self, session: int) -> None:
        """Has a session closed whose handle is gone; for finalizers, which may run in the middle of anything."""
        if self.died is not None or os.getpid() != self.pid:
            return
        self._abandoned.append(session)
        if self._send_lock.acquire(blocking=False):  # else whoever sends now does it
            try:
                with contextlib.suppress(OSError):  # the next request finds out
                    self._close_abandoned()
            finally:
                self._send_lock.release()

    def _close_abandoned(self) -> None:
        while self._abandoned:
            self._link.send(wire.pack({"op": "close", "s": self._abandoned.popleft()}))

    def _send(self, data: bytes) -> None:
        try:
            with self._send_lock:
                self._link.send(data)
                self._close_abandoned()
        except OSError as error:
            self._on_death(f"the connection to the jail is closed ({error.strerror or error})")

    # --- answers

    def read_until(self, reply: Reply) -> None:
        """Waits for a reply, reading for the other threads too when nobody else does."""
        while True:
            with self._lock:
                if reply.done:
                    return
                wake = None
                if self._has_leader:
                    wake = reply.wake = threading.Lock()
                    wake.acquire()
                self._has_leader = True
            if wake is not None:
                wake.acquire()  # released when the reply is there, or when this thread is to lead
                continue
            try:
                while not reply.done:
                    self._read()
            finally:
                self._resign()
            return

    def _resign(self) -> None:
        with self._lock:
            self._has_leader = False
            for other in self._waiting.values():
                if other.wake is not None and not other.done:
                    wake, other.wake = other.wake, None
                    wake.release()
                    return

    def _read(self) -> None:
        try:
            data = self._link.receive()
            frames = self._frames.feed(data)
        except (OSError, wire.WireError) as error:
            self._on_death(str(error))
            return
        if not data:
            self._on_death("the jail's supervisor ended")
            return
        for head, body in frames:
            if head["id"] == 0:
                self._on_death(f"the jail failed: {head.get('fatal', 'unknown reason')}")
                return
            with self._lock:
                reply = self._waiting.pop(head["id"], None)
                if reply is not None:
                    self._deliver(reply, head, body)

    def _deliver(self, reply: Reply, head: dict[str, Any], body: bytes) -> None:
        reply.head, reply.body, reply.done = head, body, True
        if reply.wake is not None:
            reply.wake.release()
            reply.wake = None

    def _fail(self, reply: Reply) -> Reply:
        head = {"status": "sandbox_died", "exit": None, "seconds": 0.0, "message": self.died, "alive": False, "o": 0}
        self._deliver(reply, head, b"")
        return reply

    def _on_death(self, reason: str) -> None:
        with self._lock:
            if self.died is None:
                self.died = reason.strip().splitlines()[-1] if reason.strip() else "the jail died"
            for reply in self._waiting.values():
                self._fail(reply)
            self._waiting.clear()

    # --- start and end

    def _await_hello(self) -> None:
        try:
            self._link.set_timeout(_START_TIMEOUT_S)
            frames: list[wire.Frame] = []
            while not frames:
                data = self._link.receive()
                if not data:
                    raise SandboxDied("the jail ended before it was ready")
                frames = self._frames.feed(data)
            self._link.set_timeout(None)
        except BaseException as error:
            self.close()
            if isinstance(error, (OSError, wire.WireError, SandboxDied)):
                raise SandboxUnavailable(f"the jail does not start: {error}") from error
            raise
        head = frames[0][0]
        if "error" in head:
            self.close()
            raise SandboxUnavailable(str(head["error"]))

    def _try_session(self) -> None:
        """Makes one session, because some machines refuse nested namespaces only."""
        limits = self.limits_number(Limits())
        head = self.submit({"op": "ready", "s": self.new_session(), "l": limits}).wait().head
        if head["status"] != "ok":
            self.close()
            raise SandboxUnavailable(str(head["message"]))

    def close(self) -> None:
        """Ends the jail and everything in it; may be called twice."""
        self._on_death("the jail was shut down")
        self._link.hang_up()  # also wakes a thread that reads
        self._link.end()
        with self._send_lock:
            if not self._has_leader:
                self._link.close()

    def forget(self) -> None:
        """In a forked child: lets go of the parent's jail without ending it."""
        self.died = "the jail belongs to the parent process"
        self._link.forget()

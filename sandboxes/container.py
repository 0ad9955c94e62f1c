"""The line to a jail in a container: the container's stdin and stdout, over the engine's attach connection.

Without a terminal the engine packs both output streams into one: 8 bytes (which stream, three zeros, the length), then
the bytes. Stdout carries the jail's frames; the end of stderr is kept, for it says why a container ended.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from typing import Any

from ..core.errors import SandboxUnavailable
from .engine import Engine, reason_of
from .jail.wire import one_line
from .tls import TlsStream

_HEADER = struct.Struct("!BxxxI")
_STDIN, _STDOUT, _STDERR, _ENGINE = 0, 1, 2, 3
"""The last one is the engine's own, when it gives a stream up."""
_KEPT = 4096
_BUFFER = 1 << 18
_PATIENCE_S = 20.0
"""Silence after which the engine is asked whether the container still runs."""
_LOOK_EVERY_S = 1.0
"""Where the engine takes nothing more for a container that has just started, how soon it is asked for the reason."""
_ANSWER_TIMEOUT_S = 10.0
"""How long the engine may take for an answer once the container runs."""
_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPALIVE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""Where an engine's machine that vanished is noticed within half a minute; named differently on each system."""


class StreamSplitter:
    """Parts the engine's stream into stdout and the end of stderr."""

    def __init__(self) -> None:
        self._header = b""
        self._stream = _STDOUT
        self._left = 0
        """What is to come of the packet that has begun."""
        self.stderr = b""
        """The last bytes of stderr, and what the engine itself said."""

    def feed(self, data: memoryview) -> bytes:
        """Takes the next bytes and gives those of stdout among them.

        Raises:
            ConnectionError: The bytes are no such stream.
        """
        stdout: list[memoryview] = []
        at = 0
        while at < len(data):
            if self._left == 0:
                missing = _HEADER.size - len(self._header)
                self._header += data[at : at + missing]
                at += missing
                if len(self._header) == _HEADER.size:
                    self._stream, self._left = _HEADER.unpack(self._header)
                    self._header = b""
                    if self._stream not in (_STDIN, _STDOUT, _STDERR, _ENGINE):
                        raise ConnectionError("the engine sends something else than the container's output")
                continue
            part = data[at : at + self._left]
            at += len(part)
            self._left -= len(part)
            if self._stream == _STDOUT:
                stdout.append(part)
            elif self._stream != _STDIN:
                self.stderr = (self.stderr + part)[-_KEPT:]
        return b"".join(stdout)

    def last_line(self) -> str:
        """The last line of stderr, printable; empty if there was none."""
        lines = self.stderr.decode("utf-8", "replace").strip().splitlines()
        return one_line(lines[-1]) if lines else ""


class ContainerLink:
    """A container that was created, started here, and the line to the jail in it.

    The container ends when this connection does, whatever ended it.

    Args:
        engine: Where the container is; closed with the link.
        container: The container's id.
        archive: What `jail/boot.py` reads first.

    Raises:
        SandboxUnavailable: The container does not start.
    """

    def __init__(self, engine: Engine, container: str, archive: bytes) -> None:
        self._engine = engine
        self._container = container
        self._splitter = StreamSplitter()
        self._buffer = memoryview(bytearray(_BUFFER))
        self._has_spoken = False
        self._stream: Any = None
        try:
            attached = engine.api.attach_socket(container, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
            self._stream = _own(attached)
            self.set_timeout(None)
            engine.api.start(container)  # after the stream, so that none of its output is missed
            engine.set_timeout(_ANSWER_TIMEOUT_S)
            self._send_archive(archive)
        except BaseException as error:
            self.hang_up()
            self.end()
            self.close()
            if isinstance(error, engine.errors):
                raise SandboxUnavailable(f"the container does not start: {reason_of(error)}") from error
            raise

    def _send_archive(self, archive: bytes) -> None:
        """Sends what `jail/boot.py` reads. A container that has ended by then leaves the engine with nobody to pass it
        on to, and the engine may or may not say so.
        """
        rest = memoryview(archive)
        latest = time.monotonic() + _PATIENCE_S
        self._stream.settimeout(_LOOK_EVERY_S)
        try:
            while rest:
                try:
                    rest = rest[self._stream.send(rest) :]
                    latest = time.monotonic() + _PATIENCE_S
                except TimeoutError:
                    self._check_container()
                    if time.monotonic() > latest:
                        raise
        except OSError:
            with contextlib.suppress(OSError):
                while size := self._stream.recv_into(self._buffer):
                    self._splitter.feed(self._buffer[:size])
            if self._splitter.stderr:
                raise SandboxUnavailable(f"the jail does not start: {self._last_words()}") from None
            raise
        self.set_timeout(None)

    def receive(self) -> bytes:
        """See `JailLink`; after a while of silence it asks whether the container still runs."""
        while True:
            try:
                size = self._stream.recv_into(self._buffer)
            except TimeoutError:
                if self._timeout_s is not None:
                    raise
                self._check_container()
                continue
            if not size:
                raise ConnectionError(self._last_words())
            stdout = self._splitter.feed(self._buffer[:size])
            if stdout:
                self._has_spoken = True
                return stdout

    def _last_words(self) -> str:
        """Stderr tells why a jail does not start; later it says nothing that is meant for anybody."""
        said = "" if self._has_spoken else self._splitter.last_line()
        return f"the container ended: {said}" if said else "the container ended"

    def send(self, data: bytes) -> None:
        """See `JailLink`."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._stream.send(rest) :]

    def set_timeout(self, seconds: float | None) -> None:
        """See `JailLink`."""
        self._timeout_s = seconds
        self._stream.settimeout(_PATIENCE_S if seconds is None else seconds)

    def _check_container(self) -> None:
        try:
            state: dict[str, Any] = self._engine.api.inspect_container(self._container)["State"]
        except self._engine.errors as error:
            raise ConnectionError(f"the Docker engine does not answer: {reason_of(error)}") from error
        if not state["Running"] or state["Paused"]:
            raise ConnectionError(f"the container is {state['Status']}")

    def hang_up(self) -> None:
        """See `JailLink`. The engine closes the container's stdin then, and the jail ends."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """See `JailLink`. An engine that does not answer removes the container when it is started again."""
        self._engine.set_timeout(_ANSWER_TIMEOUT_S)
        with contextlib.suppress(*self._engine.errors):
            self._engine.remove(self._container)

    def close(self) -> None:
        """See `JailLink`."""
        if self._stream is not None:
            self._stream.close()
        self._engine.close()

    def forget(self) -> None:
        """See `JailLink`."""
        self._stream.close()  # of this process's copy alone; the parent's connection stays


def _own(attached: Any) -> Any:
    """The connection below the file object that the SDK gives, as a socket that nobody else closes.

    A pipe of Windows stays what it is; all have the few methods used here.
    """
    found = getattr(attached, "_sock", attached)
    if isinstance(found, ssl.SSLSocket):
        return TlsStream(found)
    if not isinstance(found, socket.socket):
        return found
    sock = socket.socket(fileno=found.detach())
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            with contextlib.suppress(AttributeError, OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock

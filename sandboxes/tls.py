"""A TLS connection that one thread reads while others write, which OpenSSL alone does not allow."""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable


class TlsStream:
    """What a container's line needs of a socket, over TLS.

    Args:
        sock: The connection; nobody else uses it any more.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._lock = threading.Lock()
        """Held for each call of OpenSSL, never while waiting."""
        self._timeout_s: float | None = None

    def settimeout(self, seconds: float | None) -> None:
        """How long `recv_into` and `send` wait before they raise TimeoutError."""
        self._timeout_s = seconds

    def recv_into(self, buffer: memoryview) -> int:
        """Reads what there is into `buffer` and gives its size; 0 when the other side is gone."""
        return self._perform(lambda: self._sock.recv_into(buffer))

    def send(self, data: memoryview) -> int:
        """Sends some of `data` and gives how much."""
        return self._perform(lambda: self._sock.send(data))

    def shutdown(self, how: int) -> None:
        """Ends the connection without a farewell; a thread inside `recv_into` comes back."""
        socket.socket.shutdown(self._sock, how)

    def close(self) -> None:
        """Closes the descriptor."""
        socket.close(self._sock.detach())
        vars(self._sock).pop("_response", None)  # the SDK hangs the request there, with its pool of other connections

    def _perform(self, call: Callable[[], int]) -> int:
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            try:
                with self._lock:
                    return call()
            except ssl.SSLWantReadError:
                wanted = selectors.EVENT_READ
            except ssl.SSLWantWriteError:
                wanted = selectors.EVENT_WRITE
            with selectors.DefaultSelector() as selector:
                selector.register(self._sock, wanted)
                if not selector.select(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    raise TimeoutError("timed out")

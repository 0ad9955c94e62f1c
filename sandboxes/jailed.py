"""Sessions in a jail: cheap handles, whatever the jail runs in.

A session exists from its first request on, so that opening one costs nothing; closing does not wait.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from ..core.errors import ConfigError, SandboxDied, SandboxError, SandboxUnavailable
from .base import ExecResult, ExecStatus, Limits, SandboxConfig, check_seconds
from .client import Reply
from .jail.wire import one_line
from .pool import jail

_SETUP_TIMEOUT_S = 120.0
_MOST_COPIES = 256


class JailedSandbox:
    """One session. See `Sandbox` for what its methods do.

    Args:
        config: Which jail it is in.
        limits: What it may use.

    Raises:
        SandboxUnavailable: This machine cannot isolate code that way.
    """

    def __init__(self, config: SandboxConfig, limits: Limits | None = None) -> None:
        self._config = config
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._closed = False
        self._open()

    def _open(self) -> None:
        self._client = jail(self._config)
        self._number = self._client.new_session()
        self._limits_number = self._client.limits_number(self._limits)
        self._used = False
        self._alive = True
        self._watch_end()

    def _watch_end(self) -> None:
        """Has the session closed when this handle is garbage."""
        self._finalizer = weakref.finalize(self, self._client.abandon, self._number)
        self._finalizer.atexit = False  # the jail is closed then anyway

    # --- execution

    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        """Runs Python code in the session; the last expression is echoed as in a REPL."""
        return self._execute({"op": "exec"}, code.encode("utf-8", "surrogatepass"), timeout_s)

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        """Runs a command in the workspace.

        Raises:
            ConfigError: `argv` is no command.
        """
        command: list[object] = list(argv)
        if isinstance(argv, str) or not command or not all(isinstance(part, str) for part in command):
            raise ConfigError(f"argv={argv!r}: must be a program and its arguments, all text")
        return self._execute({"op": "run", "argv": command}, stdin, timeout_s)

    def _execute(self, head: dict[str, Any], body: bytes, timeout_s: float | None) -> ExecResult:
        if timeout_s is not None:
            head["timeout_s"] = check_seconds("timeout_s", timeout_s)
        with self._lock:
            return result_of(self._request(head, body))

    def _request(self, head: dict[str, Any], body: bytes = b"") -> Reply:
        if self._closed:
            raise SandboxError("the sandbox is closed")
        if os.getpid() != self._client.pid:
            raise SandboxError("the sandbox was opened before a fork; open another one in the child")
        if not self._used:
            self._used = True
            if self._config.setup is not None:
                self._set_up(self._config.setup)
        return self._ask(head, body)

    def _ask(self, head: dict[str, Any], body: bytes) -> Reply:
        head["s"] = self._number
        head["l"] = self._limits_number
        reply = self._client.submit(head, body).wait()
        self._alive = bool(reply.head["alive"])
        return reply

    def _set_up(self, command: str) -> None:
        argv = ["sh", "-c", command]
        result = result_of(self._ask({"op": "run", "argv": argv, "timeout_s": _SETUP_TIMEOUT_S}, b""))
        if result.status is ExecStatus.SANDBOX_DIED:
            raise SandboxDied(result.message)
        if not result.ok:
            self._end()
            self._open()
            said = (result.stderr.strip() or result.message).splitlines()[-1]
            raise SandboxUnavailable(f"setup={command!r} failed: {one_line(said, 200)}")

    # --- files

    def write_file(self, path: str, data: bytes) -> None:
        """Writes a file of the workspace, with the directories above it.

        Raises:
            SandboxError: Not a path of the workspace, the workspace is full, or the session has ended.
            SandboxDied: The sandbox itself failed.
        """
        with self._lock:
            _check(self._request({"op": "put", "path": path}, data), path)

    def read_file(self, path: str) -> bytes:
        """Gives the content of a file of the workspace.

        Raises:
            SandboxError: There is no such regular file, or the session has ended.
            SandboxDied: The sandbox itself failed.
        """
        with self._lock:
            reply = self._request({"op": "get", "path": path})
            _check(reply, path)
            return reply.body

    # --- life

    def fork(self, n: int) -> list[JailedSandbox]:
        """Gives `n` independent live copies.

        A copy has the interpreter's whole state, `random`'s included, copies of all files, and files that are open, at
        the same place. It has no other threads, no child processes, and not the other ends of pipes. The session and
        its copies may be forked, reset and closed in any order.

        Raises:
            ConfigError: `n` is not a number of copies.
            SandboxError: The session has ended, there is no room for copies, or `isolation="none"`.
            SandboxDied: The sandbox itself failed.
        """
        if type(n) is not int or not 0 < n <= _MOST_COPIES:
            raise ConfigError(f"n={n!r}: must be in [1, {_MOST_COPIES}]")
        with self._lock:
            if self._closed:
                raise SandboxError("the sandbox is closed")
            numbers = [self._client.new_session() for _ in range(n)]
            reply = self._request({"op": "fork", "copies": numbers})
            _check(reply, "fork")
            return [self._copy(number) for number in numbers]

    def _copy(self, number: int) -> JailedSandbox:
        copy = JailedSandbox.__new__(JailedSandbox)
        copy._config, copy._limits, copy._lock, copy._closed = self._config, self._limits, threading.Lock(), False
        copy._client, copy._number, copy._limits_number = self._client, number, self._limits_number
        copy._used, copy._alive = True, True
        copy._watch_end()
        return copy

    def reset(self) -> None:
        """Gives this object a fresh session in an empty workspace."""
        with self._lock:
            self._end()
            self._closed = False
            self._open()

    def close(self) -> None:
        """Ends the session and all its processes; may be called twice."""
        with self._lock:
            self._end()
            self._closed = True

    def _end(self) -> None:
        self._finalizer.detach()
        if self._used and not self._closed and os.getpid() == self._client.pid:
            self._client.tell({"op": "close", "s": self._number})

    @property
    def alive(self) -> bool:
        """False once the session ended or was closed; `reset()` revives it."""
        return self._alive and not self._closed and self._client.died is None

    def __enter__(self) -> JailedSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_DEAD_MESSAGE = "the session has ended"
_REVIVAL = "reset() starts a fresh one"
_STATUSES = {status.value: status for status in ExecStatus}


def result_of(reply: Reply) -> ExecResult:
    """Gives a reply of the jail as a result."""
    head = reply.head
    if head["status"] == "busy":
        raise SandboxError("the session is working on another call")
    out = head.get("o", 0)
    status = _STATUSES[head["status"]]
    return ExecResult(
        stdout=reply.body[:out].decode("utf-8", "replace"),
        stderr=reply.body[out:].decode("utf-8", "replace"),
        exit_status=head.get("exit"),
        status=status,
        seconds=head["seconds"],
        message=_dead_message(head) if status is ExecStatus.DEAD else head["message"],
    )


def _dead_message(head: dict[str, Any]) -> str:
    return f"{head['message'] or _DEAD_MESSAGE}; {_REVIVAL}"


def _check(reply: Reply, what: str) -> None:
    status = reply.head["status"]
    if status == "sandbox_died":
        raise SandboxDied(reply.head["message"])
    if status == "dead":
        raise SandboxError(f"{one_line(what)}: {_dead_message(reply.head)}")
    if status != "ok":
        raise SandboxError(f"{one_line(what)}: {reply.head['message']}")

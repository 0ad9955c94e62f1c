"""Sessions of the local backend: cheap handles on a jail that the whole process shares.

A session exists from its first request on, so that opening one costs nothing; closing does not wait. A process that was
forked off this one must not use its jail: it gets one of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from ..core.errors import ConfigError, SandboxDied, SandboxError, SandboxUnavailable
from .base import Answer, ExecResult, ExecStatus, FunctionAnswers, Limits, TestsOutcome, check_seconds
from .client import JailClient, Reply
from .jail.calls import read_answers, request
from .jail.wire import one_line

_jails: dict[str, JailClient] = {}
_jails_lock = threading.Lock()


def jail(isolation: str) -> JailClient:
    """Gives this process's jail of a mode; starts it, or another one if it died.

    Raises:
        SandboxUnavailable: This machine cannot isolate code that way.
    """
    mode = "namespaces" if isolation == "auto" else isolation
    with _jails_lock:
        found = _jails.get(mode)
        if found is not None and found.died is None:
            return found
        if found is not None:
            found.close()
        if platform.system() != "Linux":
            raise SandboxUnavailable(f"sandbox='local' needs Linux, not {platform.system()}")
        if mode == "none":
            warnings.warn("isolation='none': code runs with all rights of this process", RuntimeWarning, stacklevel=4)
        _jails[mode] = JailClient(mode)
        return _jails[mode]


def shutdown_jails() -> None:
    """Closes all jails of this process."""
    with _jails_lock:
        while _jails:
            _jails.popitem()[1].close()


def _forget_jails() -> None:
    """In a forked child: lets go of the parent's jails."""
    global _jails_lock
    _jails_lock = threading.Lock()
    for client in _jails.values():
        client.forget()
    _jails.clear()


atexit.register(shutdown_jails)
os.register_at_fork(after_in_child=_forget_jails)


class LocalSandbox:
    """One session. See `Sandbox` for what its methods do.

    Raises:
        SandboxUnavailable: This machine cannot isolate code in the mode that is asked for.
    """

    def __init__(self, isolation: str = "auto", limits: Limits | None = None) -> None:
        self._isolation = isolation
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._closed = False
        self._open()

    def _open(self) -> None:
        self._client = jail(self._isolation)
        self._number = self._client.new_session()
        self._limits_number = self._client.limits_number(self._limits)
        self._used = False
        self._alive = True

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
        head["s"] = self._number
        head["l"] = self._limits_number
        self._used = True
        reply = self._client.submit(head, body).wait()
        self._alive = bool(reply.head["alive"])
        return reply

    # --- files

    def write_file(self, path: str, data: bytes) -> None:
        """Writes a file of the workspace, with the directories above it.

        Raises:
            SandboxError: Not a path of the workspace, the workspace is full, or the session has ended.
            SandboxDied: The sandbox itself failed.
        """
        with self._lock:
            _check_file(self._request({"op": "put", "path": path}, data), path)

    def read_file(self, path: str) -> bytes:
        """Gives the content of a file of the workspace.

        Raises:
            SandboxError: There is no such regular file, or the session has ended.
            SandboxDied: The sandbox itself failed.
        """
        with self._lock:
            reply = self._request({"op": "get", "path": path})
            _check_file(reply, path)
            return reply.body

    # --- life

    def fork(self, n: int) -> list[LocalSandbox]:
        """Not supported by this backend yet."""
        raise SandboxError(f"fork({n}): not supported by this backend yet")

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
        if self._used and not self._closed and os.getpid() == self._client.pid:
            self._client.tell({"op": "close", "s": self._number})

    @property
    def alive(self) -> bool:
        """False once the session ended or was closed; `reset()` revives it."""
        return self._alive and not self._closed and self._client.died is None

    def __enter__(self) -> LocalSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalRunner:
    """Runs untrusted functions, each time in a fresh session; see `CodeRunner`.

    Raises:
        SandboxUnavailable: This machine cannot isolate code in the mode that is asked for.
    """

    def __init__(self, isolation: str = "auto", limits: Limits | None = None) -> None:
        self._client = jail(isolation)
        self._limits = self._client.limits_number(limits or Limits())

    def call_function(
        self, sources: Sequence[str], entry_point: str, calls: Sequence[Sequence[Any]], stop_at_error: bool = False
    ) -> FunctionAnswers:
        """Executes the sources one after the other in one module and calls its function with each argument list."""
        reply = self._ask({"op": "calls"}, request(sources, entry_point, calls, stop_at_error))
        status, message = _STATUSES[reply.head["status"]], str(reply.head["message"])
        load_error: str | None = None
        answers: tuple[Answer, ...] = ()
        if status is ExecStatus.OK:
            try:
                load_error, given = read_answers(reply.body)
                answers = tuple(Answer(value=value, error=error) for value, error in given[: len(calls)])
            except ValueError as error:
                status, message = ExecStatus.ERROR, str(error)
        return FunctionAnswers(
            status=status, message=message, load_error=load_error, answers=answers, seconds=reply.head["seconds"]
        )

    def run_tests(
        self, sources: Sequence[str], entry_point: str, tests: str, prelude: str = "", stop_at_failure: bool = False
    ) -> TestsOutcome:
        """Runs tests in a session of their own, against a stub of the sources' function."""
        solution = json.dumps({"sources": list(sources)}).encode()
        question = {"prelude": prelude, "tests": tests, "entry_point": entry_point, "stop": stop_at_failure}
        head = {"op": "tests", "solution_size": len(solution)}
        reply = self._ask(head, solution + json.dumps(question).encode())
        status = _STATUSES[reply.head["status"]]
        said: dict[str, Any] = {"load_error": None, "total": 0, "failures": []}
        if status is ExecStatus.OK:
            said = json.loads(reply.body)  # the tests' session runs trusted code only
        failures = tuple((int(item["index"]), str(item["test"]), one_line(item["error"])) for item in said["failures"])
        return TestsOutcome(
            status=status,
            message=str(reply.head["message"]),
            load_error=said["load_error"] and one_line(said["load_error"]),
            total=said["total"],
            failures=failures,
            seconds=reply.head["seconds"],
        )

    def _ask(self, head: dict[str, Any], body: bytes) -> Reply:
        return self._client.submit({**head, "s": self._client.new_session(), "l": self._limits}, body).wait()


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


def _check_file(reply: Reply, path: str) -> None:
    status = reply.head["status"]
    if status == "sandbox_died":
        raise SandboxDied(reply.head["message"])
    if status == "dead":
        raise SandboxError(f"{one_line(path)}: {_dead_message(reply.head)}")
    if status != "ok":
        raise SandboxError(f"{one_line(path)}: {reply.head['message']}")

"""An in-process executor for programs of our own: what scripted experts' templates wrote.

It isolates nothing and keeps no limits, so that demonstrations are made at thousands of programs per second. Never give
it a program that a model or a user wrote; `open_sandbox` cannot give one. For the programs it is meant for (prints,
values, exceptions; no files, no processes) results are those of a `local` session.
"""

from __future__ import annotations

import builtins
import io
import sys
import time
import types
from collections.abc import Sequence
from typing import Any

from ..core.errors import SandboxError
from .base import Answer, ExecResult, ExecStatus, FunctionAnswers, Limits, TestsOutcome
from .jail.calls import answer_all, load, read_answers, request
from .jail.session import Interpreter
from .jail.stub import examine


class TrustedSandbox:
    """A `Sandbox` and a `CodeRunner` in this very process. Each thread needs one of its own.

    Args:
        limits: Ignored but for its place in the signature of sandboxes.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        del limits
        self._closed = False
        self.reset()

    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        """Runs Python code; the last expression is echoed. No limit is kept."""
        del timeout_s
        if self._closed:
            raise SandboxError("the sandbox is closed")
        started = time.perf_counter()
        status, exit_status, message = self._interpreter.run(code)
        stdout, stderr = self._output.take()
        return ExecResult(
            stdout=stdout,
            stderr=stderr,
            exit_status=exit_status,
            status=ExecStatus.OK if status == "ok" else ExecStatus.ERROR,
            seconds=time.perf_counter() - started,
            message=message,
        )

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        """Not for trusted programs."""
        raise SandboxError("a TrustedSandbox runs no commands")

    def write_file(self, path: str, data: bytes) -> None:
        """Not for trusted programs."""
        raise SandboxError("a TrustedSandbox has no files")

    def read_file(self, path: str) -> bytes:
        """Not for trusted programs."""
        raise SandboxError("a TrustedSandbox has no files")

    def fork(self, n: int) -> list[TrustedSandbox]:
        """Not for trusted programs."""
        raise SandboxError("a TrustedSandbox cannot be copied")

    def reset(self) -> None:
        """Forgets all state."""
        output = self._output = _Output()
        self._interpreter = Interpreter(types.ModuleType("__main__"), output.names, output.echo, output.err.write)
        self._closed = False

    def close(self) -> None:
        """Ends the session; may be called twice."""
        self._closed = True

    @property
    def alive(self) -> bool:
        """False once closed."""
        return not self._closed

    def __enter__(self) -> TrustedSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- grading

    def call_function(
        self, sources: Sequence[str], entry_point: str, calls: Sequence[Sequence[Any]], stop_at_error: bool = False
    ) -> FunctionAnswers:
        """Executes the sources one after the other in one module and calls its function with each argument list."""
        started = time.perf_counter()
        body = answer_all(request(sources, entry_point, calls, stop_at_error), register=False)
        load_error, given = read_answers(body)
        return FunctionAnswers(
            status=ExecStatus.OK,
            message="",
            load_error=load_error,
            answers=tuple(Answer(value=value, error=error) for value, error in given),
            seconds=time.perf_counter() - started,
        )

    def run_tests(
        self, sources: Sequence[str], entry_point: str, tests: str, prelude: str = "", stop_at_failure: bool = False
    ) -> TestsOutcome:
        """Runs tests on the sources' function itself; no stub."""
        started = time.perf_counter()
        namespace, load_error = load(sources, register=False)
        candidate = namespace.get(entry_point)
        if load_error is None and candidate is None:
            load_error = f"NameError: the solution defines no function {entry_point!r}"
        found: dict[str, Any] = {"total": 0, "failures": []}
        if load_error is None:
            asked = {"prelude": prelude, "tests": tests, "entry_point": entry_point, "stop": stop_at_failure}
            found = examine(asked, candidate, {"__name__": "tests"})
        return TestsOutcome(
            status=ExecStatus.OK,
            message="",
            load_error=load_error,
            total=found["total"],
            failures=tuple((item["index"], item["test"], item["error"]) for item in found["failures"]),
            seconds=time.perf_counter() - started,
        )


class _Output:
    """The output streams of one in-process session; `print` of its programs writes here, not to this process's own."""

    def __init__(self) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.names = {**builtins.__dict__, "print": self._print}

    def _print(self, *values: object, sep: str | None = " ", end: str | None = "\n", **keywords: Any) -> None:
        file = keywords.get("file")
        mine = {None: self.out, sys.stdout: self.out, sys.stderr: self.err}
        builtins.print(*values, sep=sep, end=end, file=mine.get(file, file))

    def echo(self, value: Any) -> None:
        """What a REPL does with the value of an expression."""
        if value is not None:
            self.out.write(f"{value!r}\n")

    def take(self) -> tuple[str, str]:
        """Gives what was written since the last time."""
        texts = self.out.getvalue(), self.err.getvalue()
        for stream in (self.out, self.err):
            stream.seek(0)
            stream.truncate()
        return texts

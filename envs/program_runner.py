"""Runs an agent's programs and grades them: in a sandbox, or (for programs of our own experts) in this process.

A runner is what `CodeSandboxEnv` talks to. `SandboxRunner` is the real one. `InProcessRunner` executes programs in this
very process: it is for demonstrations alone, whose programs our own templates wrote, and no keyword reaches it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any, Protocol

from ..core.errors import SandboxDied
from ..rewards.execution import grade_code
from ..sandboxes.base import ExecResult, ExecStatus, Limits, Sandbox
from ..sandboxes.opening import open_sandbox

Case = Mapping[str, Any]
MAX_SHOWN = 2000
"""Characters of output that an agent reads per run."""

VISIBLE_TESTS = '''
def __show_tests(entry_point, cases):
    """The first failing case as got/want, or "ok"."""
    import json
    compact = json.JSONEncoder(separators=(",", ":"), default=repr).encode
    function = globals().get(entry_point)
    if function is None:
        return ""
    for case in cases:
        call = f"{entry_point}({','.join(map(compact, case['args']))})"
        want = compact(case["expected"])
        try:
            got = compact(function(*json.loads(json.dumps(case["args"]))))
        except BaseException as error:
            return f"{call}\\n{type(error).__name__}: {error}"[:80]
        if got != want:
            return f"{call}\\ngot {got[:60]}\\nwant {want}"
    return "ok"
'''


class Runner(Protocol):
    """What an environment needs to run programs of one episode."""

    def run(self, program: str, entry_point: str, tests: Sequence[Case]) -> str:
        """Runs a program in the agent's session and gives its output and the first failing visible test."""
        ...

    def grade(self, program: str, entry_point: str, tests: Sequence[Case] | str, prelude: str) -> bool:
        """Whether the program passes hidden tests, outside the agent's session."""
        ...

    def reset(self) -> None:
        """Forgets the agent's session."""
        ...

    def close(self) -> None:
        """Ends the session; may be called twice."""
        ...


class SandboxRunner:
    """Programs run in a sandbox session, which is opened when it is first needed."""

    def __init__(self, backend: str, isolation: str, image: str | None, limits: Limits) -> None:
        self._backend, self._isolation, self._image, self._limits = backend, isolation, image, limits
        self._session: Sandbox | None = None

    def run(self, program: str, entry_point: str, tests: Sequence[Case]) -> str:
        """See `Runner.run`; raises `SandboxDied` when the sandbox itself fails."""
        if self._session is None:
            self._session = open_sandbox(
                self._backend, isolation=self._isolation, image=self._image, limits=self._limits
            )
        result = self._checked(self._session.exec(program))
        if result.status is not ExecStatus.OK:
            return shown(result.stdout, failure_text(result))
        call = f"print(__show_tests({entry_point!r}, {list(map(dict, tests))!r})); del __show_tests"
        checked = self._checked(self._session.exec(f"{VISIBLE_TESTS}\n{call}"))
        verdict = checked.stdout.strip("\n") if checked.status is ExecStatus.OK else failure_text(checked)
        return shown(result.stdout, verdict)

    def grade(self, program: str, entry_point: str, tests: Sequence[Case] | str, prelude: str) -> bool:
        """See `Runner.grade`."""
        report = grade_code(
            program,
            tests,
            entry_point=entry_point,
            prelude=prelude,
            limits=self._limits,
            sandbox=self._backend,
            isolation=self._isolation,
            image=self._image,
            stop_at_first_failure=True,
        )
        return report.passed

    def reset(self) -> None:
        """Closes the session; the next run opens a fresh one."""
        self.close()

    def close(self) -> None:
        """Closes the session."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _checked(self, result: ExecResult) -> ExecResult:
        if result.status is ExecStatus.SANDBOX_DIED:
            self._session = None
            raise SandboxDied(result.message or "the sandbox died")
        if result.status is ExecStatus.DEAD or (self._session is not None and not self._session.alive):
            self.close()  # the agent's code ended its session: the next run gets a fresh one
        return result


@functools.lru_cache(maxsize=10_000)
def _compiled(program: str) -> CodeType:
    return compile(program, "<cell 1>", "exec")


class InProcessRunner:
    """Runs programs that our own templates wrote in this process; never give it a model's."""

    def __init__(self) -> None:
        self._globals: dict[str, Any] = {}

    def run(self, program: str, entry_point: str, tests: Sequence[Case]) -> str:
        """See `Runner.run`."""
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                exec(_compiled(program), self._globals)
        except Exception as error:
            return shown(output.getvalue(), f"{type(error).__name__}: {error}")
        exec(_compiled(VISIBLE_TESTS), self._globals)
        return shown(output.getvalue(), self._globals["__show_tests"](entry_point, tests))

    def grade(self, program: str, entry_point: str, tests: Sequence[Case] | str, prelude: str) -> bool:
        """See `Runner.grade`; data tests only."""
        names: dict[str, Any] = {}
        try:
            exec(_compiled(program), names)
            cases = [] if isinstance(tests, str) else tests
            return all(names[entry_point](*json.loads(json.dumps(case["args"]))) == case["expected"] for case in cases)
        except Exception:
            return False

    def reset(self) -> None:
        """Forgets everything that programs defined."""
        self._globals = {}

    def close(self) -> None:
        """Nothing to close."""


def failure_text(result: ExecResult) -> str:
    """What went wrong, in one line: the last line of a traceback, or the status's own message."""
    if result.status is ExecStatus.ERROR:
        lines = result.stderr.strip().splitlines()
        return lines[-1][:200] if lines else f"exit status {result.exit_status}"
    return result.message or f"error: {result.status}"


def shown(output: str, verdict: str) -> str:
    """Output and verdict as the agent reads them; long output keeps its head and tail."""
    output = output.rstrip("\n")
    if len(output) > MAX_SHOWN:
        half = MAX_SHOWN // 2
        output = f"{output[:half]}\n[... {len(output) - MAX_SHOWN} characters left out ...]\n{output[-half:]}"
    return "\n".join(part for part in (output, verdict) if part) or "(no output)"

"""Runs an agent's programs and grades them: in a sandbox, or (for programs of our own experts) in this process.

A runner is what `CodeSandboxEnv` talks to. `SandboxRunner` is the real one. `InProcessRunner` executes programs in this
very process: it is for demonstrations alone, whose programs our own templates wrote, and no keyword reaches it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any, Protocol

from ..core.errors import SandboxDied
from ..rewards.execution import grade_code
from ..rewards.report import GradeReport, TestStatus
from ..sandboxes.base import ExecResult, ExecStatus, Limits, Sandbox, SandboxConfig
from ..sandboxes.jail.values import same
from ..sandboxes.opening import open_sandbox
from .first_start import FirstStart

Case = Mapping[str, Any]
REPEATABLE = (ExecStatus.OK, ExecStatus.ERROR, "load_error")
"""Statuses that depend on the program alone, not on how busy the machine was."""
SHOWN_VALUE = 60
"""Characters of a wrong value that a visible test shows."""
_MARK = "\x1e"
"""Parts what the tested function printed from the verdict."""

VISIBLE_TESTS = '''
def __show_tests(entry_point, cases):
    """The first failing case as got/want, or "ok"; empty when there is nothing to test."""
    import json
    encode = json.JSONEncoder(separators=(",", ":"), default=repr).encode
    def compact(value):
        try:
            return encode(value)
        except (TypeError, ValueError):
            return repr(value)
    def same(got, want):
        if got is True or got is False or want is True or want is False:
            return got is want
        if isinstance(want, list):
            return isinstance(got, (list, tuple)) and len(got) == len(want) and all(map(same, got, want))
        if isinstance(want, dict):
            return isinstance(got, dict) and got.keys() == want.keys() and all(same(got[k], want[k]) for k in want)
        return got == want or (got != got and want != want)
    function = globals().get(entry_point)
    cases = json.loads(cases)
    if function is None or not cases:
        return ""
    for case in cases:
        call = f"{entry_point}({','.join(map(compact, case['args']))})"
        call = call if len(call) <= 200 else call[:197] + "..."
        want = case["expected"]
        try:
            got = function(*case["args"])
            if hasattr(got, "__next__") or isinstance(got, range):
                got = list(got)
            if not same(got, want):
                return f"{call}\\ngot {compact(got)[:SHOWN]}\\nwant {compact(want)[:200]}"
        except (Exception, SystemExit) as error:
            return f"{call}\\n{type(error).__name__}: {error}"[:max(80, len(call) + 60)]
    return "ok"
'''.replace("SHOWN", str(SHOWN_VALUE))
"""Compares as the hidden tests do (`jail.values.same`): a tuple equals a list, a bool no number, NaN itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What a run of a program gave.

    Example: `RunReport(output="hello", verdict="f([1])\\ngot 2\\nwant 1")`.
    """

    output: str = ""
    """What was printed."""
    error: str = ""
    """One line, when the program itself failed; visible tests did not run then."""
    traceback: str = ""
    """The same failure at full length, where there is more to say."""
    verdict: str = ""
    """`ok`, or the first visible test that failed; empty when there was nothing to test."""
    session_lost: bool = False
    """The program ended its session; the next one runs in a fresh session."""
    repeatable: bool = True
    """Whether the same program in the same state would give the same report on any machine."""

    @property
    def passed(self) -> bool:
        """Whether all visible tests passed."""
        return self.verdict == "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a program passed the hidden tests."""

    passed: bool
    repeatable: bool = True
    """See `RunReport.repeatable`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestShare:
    """Which share of tests a program passed, from 0 to 1."""

    __test__ = False

    share: float
    repeatable: bool = True
    """See `RunReport.repeatable`."""


class Runner(Protocol):
    """What an environment needs to run programs of one episode."""

    @property
    def scope(self) -> Hashable | None:
        """Equal for runners that give equal reports; None when reports must not be reused."""
        ...

    def run(self, program: str, entry_point: str, tests: Sequence[Case]) -> RunReport:
        """Runs a program in the agent's session, then the visible tests on what it defined.

        Raises:
            SandboxDied: Infrastructure failed; what the session held is lost.
        """
        ...

    def grade(self, program: str, entry_point: str, tests: Sequence[Case] | str, prelude: str) -> Verdict:
        """Grades a program with hidden tests, outside the agent's session.

        Raises:
            SandboxDied: Infrastructure failed; there is no verdict.
        """
        ...

    def share_passed(self, program: str, entry_point: str, tests: Sequence[Case], prelude: str) -> TestShare:
        """Grades a program with all of some tests, outside the agent's session.

        Raises:
            SandboxDied: Infrastructure failed; there is no share.
        """
        ...

    def fork(self, n: int) -> Sequence[Runner]:
        """Gives `n` runners with live copies of the agent's session.

        Raises:
            SandboxDied: Infrastructure failed; what the session held is lost.
        """
        ...

    def reset(self) -> None:
        """Forgets the agent's session; the next run gets a fresh one."""
        ...

    def close(self) -> None:
        """Ends the session; may be called twice."""
        ...


class SandboxRunner:
    """Programs run in a sandbox session, which is opened when it is first needed.

    Args:
        config: Which sandbox.
        limits: Of each run. A grading may use `timeout_s` of CPU time (and twice that of wall-clock time), so that a
            slow machine changes no verdict.
    """

    def __init__(self, config: SandboxConfig, limits: Limits) -> None:
        self._config, self._limits = config, limits
        self._grading_limits = replace(limits, cpu_s=limits.cpu_s or limits.timeout_s, timeout_s=2 * limits.timeout_s)
        self._session: Sandbox | None = None
        self._can_test = False
        """Whether the session has `VISIBLE_TESTS`; who damages them spoils what is read, not a grade."""
        self._start = FirstStart()

    @property
    def scope(self) -> Hashable | None:
        """See `Runner.scope`."""
        return self._config, self._limits

    def run(self, program: str, entry_point: str, tests: Sequence[Case]) -> RunReport:
        """See `Runner.run`; two round trips. A session is told once how to test: compiling that takes most of a run.

        Where the tests are inputs of a whole program, it runs as one on each of them, outside the session.
        """
        if tests and "stdin" in tests[0]:
            return self._run_on_inputs(program, tests)
        ran = self._exec(program)
        if ran.status is not ExecStatus.OK:
            return self._failed_report(ran, ran.stdout)
        call = f"print({_MARK!r} + __show_tests({entry_point!r}, {_json_of(tests)!r}))"
        tested = self._exec(call if self._can_test else f"{VISIBLE_TESTS}\n{call}")
        self._can_test = tested.status is ExecStatus.OK
        printed, _, verdict = tested.stdout.rpartition(_MARK)
        if tested.status is not ExecStatus.OK:
            return self._failed_report(tested, ran.stdout + tested.stdout)
        return RunReport(output=(ran.stdout + printed).strip("\n"), verdict=verdict.strip("\n"))

    def grade(self, program: str, entry_point: str, tests: Sequence[Case] | str, prelude: str) -> Verdict:
        """See `Runner.grade`."""
        report = self._report(program, entry_point, tests, prelude)
        return Verdict(passed=report.passed, repeatable=is_repeatable(report))

    def share_passed(self, program: str, entry_point: str, tests: Sequence[Case], prelude: str) -> TestShare:
        """See `Runner.share_passed`."""
        report = self._report(program, entry_point, tests, prelude, stop_at_first_failure=False)
        share = sum(result.passed for result in report.results) / max(1, report.total)
        return TestShare(share=share, repeatable=is_repeatable(report))

    def _report(
        self,
        program: str,
        entry_point: str,
        tests: Sequence[Case] | str,
        prelude: str,
        stop_at_first_failure: bool = True,
    ) -> GradeReport:
        with self._start.guarded():
            return grade_code(
                program,
                tests,
                entry_point=entry_point,
                prelude=prelude,
                limits=self._grading_limits,
                sandbox=self._config,
                stop_at_first_failure=stop_at_first_failure,
            )

    def _run_on_inputs(self, program: str, tests: Sequence[Case]) -> RunReport:
        report = self._report(program, "", tests, "")
        verdict = "ok"
        if report.failures:
            failure = report.failures[0]
            said = f"got {failure.got_repr}\nwant {failure.want_repr}"
            verdict = "\n".join(part for part in (f"stdin {failure.args_repr}", failure.error, said) if part)
        elif not report.passed:
            verdict = report.message
        return RunReport(verdict=verdict, repeatable=is_repeatable(report))

    def fork(self, n: int) -> list[SandboxRunner]:
        """See `Runner.fork`; a session that was not opened yet is opened by each copy for itself."""
        copies = [SandboxRunner(self._config, self._limits) for _ in range(n)]
        if self._session is not None:
            with self._start.guarded():
                sessions = self._session.fork(n)
            for copy, session in zip(copies, sessions, strict=True):
                copy._session, copy._can_test, copy._start = session, self._can_test, FirstStart(has_worked=True)
        return copies

    def reset(self) -> None:
        """Closes the session; the next run opens a fresh one."""
        self.close()

    def close(self) -> None:
        """Closes the session."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _exec(self, code: str) -> ExecResult:
        with self._start.guarded():
            if self._session is None:
                self._session = open_sandbox(self._config, limits=self._limits)
                self._can_test = False
            result = self._session.exec(code)
        if result.status is ExecStatus.SANDBOX_DIED:
            self._session = None
            raise SandboxDied(result.message or "the sandbox died")
        return result

    def _failed_report(self, result: ExecResult, output: str) -> RunReport:
        lost = result.status is ExecStatus.DEAD or (self._session is not None and not self._session.alive)
        if lost:
            self.close()
        return RunReport(
            output=output.strip("\n"),
            error=failure_text(result),
            traceback=result.stderr.strip("\n") if result.status is ExecStatus.ERROR else "",
            session_lost=lost,
            repeatable=result.status in REPEATABLE,
        )


@functools.lru_cache(maxsize=10_000)
def _compiled(program: str) -> CodeType:
    return compile(program, "<cell 1>", "exec")


class InProcessRunner:
    """Runs programs that our own templates wrote in this process; never give it a model's."""

    scope: Hashable | None = None

    def __init__(self) -> None:
        self._globals: dict[str, Any] = {}

    def run(self, program: str, entry_point: str, tests: Sequence[Case]) -> RunReport:
        """See `Runner.run`."""
        output, verdict, failure = io.StringIO(), "", ""
        with contextlib.redirect_stdout(output):
            try:
                exec(_compiled(program), self._globals)
                exec(_compiled(VISIBLE_TESTS), self._globals)
                verdict = self._globals.pop("__show_tests")(entry_point, _json_of(tests))
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
        return RunReport(output=output.getvalue().strip("\n"), error=failure, verdict=verdict)

    def grade(self, program: str, entry_point: str, tests: Sequence[Case] | str, prelude: str) -> Verdict:
        """See `Runner.grade`."""
        names: dict[str, Any] = {}
        if isinstance(tests, str):
            raise TypeError("only data tests can be graded in this process")
        try:
            exec(_compiled(prelude), names)
            exec(_compiled(program), names)
            passed = all(same(names[entry_point](*_copied(case["args"])), case["expected"]) for case in tests)
        except Exception:
            passed = False
        return Verdict(passed=passed)

    def share_passed(self, program: str, entry_point: str, tests: Sequence[Case], prelude: str) -> TestShare:
        """See `Runner.share_passed`."""
        passed = [self.grade(program, entry_point, [case], prelude).passed for case in tests]
        return TestShare(share=sum(passed) / max(1, len(passed)))

    def fork(self, n: int) -> Sequence[Runner]:
        """Not possible: what programs defined refers to the one namespace that they ran in."""
        raise NotImplementedError("programs that run in this process cannot be copied")

    def reset(self) -> None:
        """Forgets everything that programs defined."""
        self._globals = {}

    def close(self) -> None:
        """Nothing to close."""


def is_repeatable(report: GradeReport) -> bool:
    """Whether a verdict depends on the program alone."""
    ended = [result.status for result in report.results]
    return report.status in REPEATABLE and TestStatus.TIMEOUT not in ended and TestStatus.KILLED not in ended


def _json_of(tests: Sequence[Case]) -> str:
    return json.dumps([dict(case) for case in tests])


def _copied(arguments: Sequence[Any]) -> list[Any]:
    """Arguments of a call that a function may change without changing the test."""
    return json.loads(json.dumps(arguments))


def failure_text(result: ExecResult) -> str:
    """What went wrong, in one line: the last line of a traceback, or the status's own message."""
    if result.status is ExecStatus.ERROR:
        lines = result.stderr.strip().splitlines()
        return lines[-1][:200] if lines else result.message[:200] or f"exit status {result.exit_status}"
    return result.message or f"error: {result.status}"

"""Tests that are source text: asserts, functions `test_...`, or `check(candidate)`.

They run in a session of their own, against a stub whose calls cross to the solution's session (see
`sandboxes.jail.stub`), and a verdict is read from that session alone. With `same_session` they run where the solution
was loaded, which can then reach them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import SandboxDied, TaskError
from ..sandboxes.base import ExecStatus
from ..sandboxes.code_runner import CodeRunner, TestsOutcome
from .report import GradeReport, TestFailure, TestResult, TestStatus, status_named


def grade_source(
    runner: CodeRunner,
    sources: Sequence[str],
    tests: str,
    entry_point: str | None,
    prelude: str,
    stop_at_first_failure: bool,
    test_timeout_s: float | None,
    same_session: bool,
) -> GradeReport:
    """Gives the verdict of tests as source text.

    Raises:
        SandboxDied: Infrastructure failed.
        TaskError: The tests do not run, whatever the solution is.
    """
    outcome = runner.run_tests(
        sources,
        entry_point,
        tests,
        prelude=prelude,
        stop_at_failure=stop_at_first_failure,
        test_timeout_s=test_timeout_s,
        same_session=same_session,
    )
    if outcome.status is ExecStatus.SANDBOX_DIED:
        raise SandboxDied(outcome.message)
    if outcome.flaw:
        raise TaskError(outcome.flaw)
    results, failures = _read(outcome)
    if outcome.broken is not None:
        line, error = outcome.broken
        failures.append(TestFailure(index=-1, args_repr=line, got_repr="", want_repr="", error=error))
    status = "load_error" if outcome.load_error is not None else outcome.status.value
    ran = bool(results) and len(outcome.results) == len(results)
    return GradeReport(
        passed=status == ExecStatus.OK and ran and not failures,
        total=len(results),
        failures=tuple(failures),
        status=status,
        seconds=outcome.seconds,
        message=outcome.load_error or outcome.message,
        results=tuple(results),
        same_session=same_session,
    )


def _read(outcome: TestsOutcome) -> tuple[list[TestResult], list[TestFailure]]:
    results: list[TestResult] = []
    failures: list[TestFailure] = []
    for index, said in enumerate(outcome.results):
        status = status_named(said.status)
        results.append(TestResult(index=index, status=status, error=said.error, seconds=said.seconds))
        if status is not TestStatus.PASSED:
            failures.append(TestFailure(index=index, args_repr=said.test, got_repr="", want_repr="", error=said.error))
    rest = _status_of_the_rest(outcome)
    for index in range(len(results), outcome.total):
        error = outcome.load_error or outcome.message
        results.append(TestResult(index=index, status=rest, error=error))
    return results, failures


def _status_of_the_rest(outcome: TestsOutcome) -> TestStatus:
    if outcome.load_error is not None:
        return TestStatus.LOAD_ERROR
    if outcome.status is ExecStatus.OK or (outcome.results and outcome.status is ExecStatus.TIMEOUT):
        return TestStatus.NOT_RUN
    return status_named(outcome.status.value)

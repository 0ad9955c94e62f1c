"""Tests that are data: calls of a function, whose answers are compared here, on the trusted side.

The solution runs alone in a fresh session and is sent inputs only; its answers come back as plain built-in values. All
calls of one grading cross in one round trip, unless each has a time limit of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import SandboxDied
from ..sandboxes.base import ExecStatus
from ..sandboxes.code_runner import Answer, CodeRunner, FunctionAnswers
from ..sandboxes.jail.values import same
from .report import GradeReport, TestFailure, TestResult, TestStatus, short_repr, status_named


def grade_calls(
    runner: CodeRunner,
    sources: Sequence[str],
    tests: Sequence[Mapping[str, Any]],
    entry_point: str | None,
    stop_at_first_failure: bool,
    test_timeout_s: float | None,
) -> GradeReport:
    """Gives the verdict of `[{"args": [...], "expected": ...}, ...]`.

    Raises:
        SandboxDied: Infrastructure failed.
    """
    calls = [list(test["args"]) for test in tests]
    wanted = [test["expected"] for test in tests]
    given = runner.call_function(
        sources, entry_point, calls, stop_at_error=stop_at_first_failure, call_timeout_s=test_timeout_s
    )
    if given.status is ExecStatus.SANDBOX_DIED:
        raise SandboxDied(given.message)
    status = "load_error" if given.load_error is not None else given.status.value
    results: list[TestResult] = []
    failures: list[TestFailure] = []
    for index, want in enumerate(wanted):
        if failures and stop_at_first_failure:
            results.append(TestResult(index=index, status=TestStatus.NOT_RUN))
            continue
        answer = given.answers[index] if index < len(given.answers) else None
        results.append(_result(index, answer, want, given))
        if not results[-1].passed:
            failures.append(_failure(results[-1], answer, calls[index], want))
    return GradeReport(
        passed=status == ExecStatus.OK and not failures,
        total=len(calls),
        failures=tuple(failures),
        status=status,
        seconds=given.seconds,
        message=given.load_error or given.message,
        results=tuple(results),
    )


def _result(index: int, answer: Answer | None, want: Any, given: FunctionAnswers) -> TestResult:
    if answer is None:
        return TestResult(index=index, status=_status_without_answer(given), error=given.load_error or given.message)
    if answer.error is not None:
        return TestResult(
            index=index, status=status_named(answer.status.value), error=answer.error, seconds=answer.seconds
        )
    status = TestStatus.PASSED if _is_same(answer.value, want) else TestStatus.FAILED
    return TestResult(index=index, status=status, seconds=answer.seconds)


def _status_without_answer(given: FunctionAnswers) -> TestStatus:
    if given.load_error is not None:
        return TestStatus.LOAD_ERROR
    if given.status is ExecStatus.OK or (given.answers and given.status is ExecStatus.TIMEOUT):
        return TestStatus.NOT_RUN
    return status_named(given.status.value)


def _failure(result: TestResult, answer: Answer | None, arguments: list[Any], want: Any) -> TestFailure:
    has_value = answer is not None and answer.error is None
    return TestFailure(
        index=result.index,
        args_repr=short_repr(tuple(arguments)),
        got_repr=short_repr(answer.value) if answer is not None and has_value else "",
        want_repr=short_repr(want),
        error=result.error or ("" if has_value else "no answer"),
    )


def _is_same(got: Any, want: Any) -> bool:
    try:
        return same(got, want)
    except RecursionError:  # nested more deeply than an honest session sends
        return False

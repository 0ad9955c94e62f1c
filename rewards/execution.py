"""Grading code by running it against hidden tests that it never shares a process with.

Data tests: the solution runs alone in a fresh session and is sent inputs only; its answers come back as plain built-in
values and are compared here, on the trusted side. All calls of one grading cross in one round trip.

Tests as source text: they run in a second session, against a stub whose calls cross to the solution's session (see
`sandboxes.jail.stub`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import SandboxDied, TaskError
from ..sandboxes.base import CodeRunner, ExecStatus, FunctionAnswers, Limits, SandboxConfig, TestsOutcome
from ..sandboxes.jail.values import same
from ..sandboxes.opening import open_runner

_REPR_LENGTH = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class TestFailure:
    """One test that did not pass.

    Example: `TestFailure(index=2, args_repr="([1, 2],)", got_repr="3", want_repr="2", error="")`.
    """

    __test__ = False

    index: int
    args_repr: str
    """The arguments; for tests as source text, the test's first line."""
    got_repr: str
    want_repr: str
    error: str
    """The exception, if there was one instead of a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeReport:
    """The verdict of hidden tests on a solution."""

    passed: bool
    total: int
    """How many tests there are."""
    failures: tuple[TestFailure, ...]
    status: str
    """`"ok"` when the tests could run, else the `ExecStatus` value of what stopped them, or `"load_error"`."""
    seconds: float
    message: str = ""
    """One line when `status` is not `"ok"`."""


def grade_code(
    solution: str,
    tests: str | Sequence[Mapping[str, Any]],
    *,
    entry_point: str,
    prelude: str = "",
    limits: Limits | None = None,
    sandbox: str | SandboxConfig | CodeRunner = "local",
    isolation: str = "auto",
    image: str | None = None,
    stop_at_first_failure: bool = False,
) -> GradeReport:
    """Gives the verdict of hidden tests on a solution.

    Args:
        solution: Untrusted source that defines `entry_point`.
        tests: Data tests `[{"args": [...], "expected": ...}, ...]`, or source text with asserts, `test_...` functions
            or `check(candidate)`.
        entry_point: Name of the function under test.
        prelude: The task's own trusted source (helpers, imports), loaded before the solution.
        limits: What the solution may use; `timeout_s` is for all tests together.
        sandbox: Backend, a whole configuration, or a runner object.
        isolation: See `open_sandbox`.
        image: See `open_sandbox`.
        stop_at_first_failure: Report no failure after the first.

    Raises:
        SandboxDied: Infrastructure failed; there is no verdict.
        SandboxUnavailable: This machine cannot isolate code that way.
        TaskError: A test is malformed, or the tests' source does not run whatever the solution is.
    """
    if isinstance(sandbox, str):
        sandbox = SandboxConfig(backend=sandbox, isolation=isolation, image=image)
    runner = open_runner(sandbox, limits) if isinstance(sandbox, SandboxConfig) else sandbox
    sources = [prelude, solution] if prelude else [solution]
    if isinstance(tests, str):
        return _report(runner.run_tests(sources, entry_point, tests, prelude, stop_at_first_failure))
    try:
        calls = [list(test["args"]) for test in tests]
        wanted = [test["expected"] for test in tests]
    except (KeyError, TypeError) as error:
        raise TaskError('tests: each must be {"args": [...], "expected": ...}') from error
    given = runner.call_function(sources, entry_point, calls, stop_at_first_failure)
    if given.status is ExecStatus.SANDBOX_DIED:
        raise SandboxDied(given.message)
    return _compare(given, calls, wanted, stop_at_first_failure)


def _compare(given: FunctionAnswers, calls: list[list[Any]], wanted: list[Any], stop: bool) -> GradeReport:
    status = "load_error" if given.load_error is not None else given.status.value
    failures: list[TestFailure] = []
    for index, (arguments, want) in enumerate(zip(calls, wanted, strict=True)):
        got = given.answers[index] if index < len(given.answers) else None
        if got is not None and got.error is None and _is_same(got.value, want):
            continue
        error = (got.error or "") if got is not None else (given.load_error or given.message or "no answer")
        got_repr = "" if got is None or got.error is not None else _short(got.value)
        failures.append(
            TestFailure(
                index=index,
                args_repr=_short(tuple(arguments)),
                got_repr=got_repr,
                want_repr=_short(want),
                error=error,
            )
        )
        if stop:
            break
    return GradeReport(
        passed=status == ExecStatus.OK and not failures,
        total=len(calls),
        failures=tuple(failures),
        status=status,
        seconds=given.seconds,
        message=given.load_error or given.message,
    )


def _is_same(got: Any, want: Any) -> bool:
    try:
        return same(got, want)
    except RecursionError:  # nested more deeply than an honest session sends
        return False


def _report(outcome: TestsOutcome) -> GradeReport:
    if outcome.status is ExecStatus.SANDBOX_DIED:
        raise SandboxDied(outcome.message)
    if outcome.status is ExecStatus.ERROR:  # whatever the solution does ends as a failed test
        raise TaskError(f"the tests or their prelude do not run: {outcome.message}")
    status = "load_error" if outcome.load_error is not None else outcome.status.value
    failures = tuple(
        TestFailure(index=index, args_repr=test, got_repr="", want_repr="", error=error)
        for index, test, error in outcome.failures
    )
    return GradeReport(
        passed=status == ExecStatus.OK and not failures,
        total=outcome.total,
        failures=failures,
        status=status,
        seconds=outcome.seconds,
        message=outcome.load_error or outcome.message,
    )


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int with too many digits to print, or too deep
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _REPR_LENGTH else text[: _REPR_LENGTH - 3] + "..."

"""What a grading says: the verdict, the result of each test, and details of those that did not pass."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

REPR_LENGTH = 300


class TestStatus(StrEnum):
    """How one test ended. Those after `ERROR` have the names of the `ExecStatus` that ended the execution."""

    __test__ = False

    PASSED = "passed"
    FAILED = "failed"
    """A wrong answer, a wrong output, or a failed assertion."""
    ERROR = "error"
    """An exception, or a non-zero exit status."""
    TIMEOUT = "timeout"
    KILLED = "killed"
    OUTPUT_LIMIT = "output_limit"
    DISK_LIMIT = "disk_limit"
    MEMORY_LIMIT = "memory_limit"
    LOAD_ERROR = "load_error"
    """The solution itself could not be loaded."""
    NOT_RUN = "not_run"
    """Something had ended the tests before."""


def status_named(name: str) -> TestStatus:
    """Gives the status of that name; what no solution can cause counts as `KILLED`."""
    return TestStatus(name) if name in set(TestStatus) else TestStatus.KILLED


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """The result of one test.

    Example: `TestResult(index=2, status="timeout", error="timed out after 1 s", seconds=1.0)`.
    """

    __test__ = False

    index: int
    status: TestStatus
    error: str = ""
    """One line about what went wrong; empty for a test that passed and for a plain wrong answer."""
    seconds: float = 0.0
    """How long it took, 0 if it did not run. Where calls of a data test share one execution, the solution's process
    measured it, and may lie."""

    @property
    def passed(self) -> bool:
        """Whether the solution passed this test."""
        return self.status is TestStatus.PASSED


@dataclass(frozen=True, slots=True, kw_only=True)
class TestFailure:
    """One test that did not pass.

    Example: `TestFailure(index=2, args_repr="([1, 2],)", got_repr="3", want_repr="2", error="")`.
    """

    __test__ = False

    index: int
    """-1 for a statement between tests as source text."""
    args_repr: str
    """The arguments; for a program its input, for tests as source text the test's first line."""
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
    results: tuple[TestResult, ...] = ()
    """One for each of the `total` tests, in order."""
    same_session: bool = False
    """The tests shared a process with the solution: a verdict that a solution which means to can forge."""


def short_repr(value: Any) -> str:
    """Gives a value's repr, or the beginning of it."""
    if isinstance(value, str):
        value = value[:REPR_LENGTH]
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int with too many digits to print, or too deep
        text = f"<{type(value).__name__}>"
    return text if len(text) <= REPR_LENGTH else text[: REPR_LENGTH - 3] + "..."

"""What running untrusted code for a grader gives, and the protocol of whoever runs it. `opening` opens one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .base import ExecStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one call of an untrusted function gave: a plain value, or one line about why there is none."""

    value: Any = None
    error: str | None = None
    status: ExecStatus = ExecStatus.OK
    """`OK` for a value, `ERROR` for an exception, else what ended the call."""
    seconds: float = 0.0
    """As the function's own process measured it, except where each call is an execution of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionAnswers:
    """What calls of an untrusted function gave."""

    status: ExecStatus
    """`OK` when the process lived to answer, whatever the answers are."""
    message: str
    load_error: str | None
    """Why there is no function to call."""
    answers: tuple[Answer, ...]
    """One per argument list; fewer if it was to stop at the first exception, or time ran out."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TestOutcome:
    """What one of the tests that are source text said."""

    __test__ = False

    test: str
    """Its first line, or its function's name."""
    status: str
    """`"passed"`, `"failed"` (an assertion), `"error"` (another exception), or the `ExecStatus` of what ended it."""
    error: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TestsOutcome:
    """What tests that are source text said about an untrusted function."""

    __test__ = False

    status: ExecStatus
    """`OK` when the tests ran to their end, whatever they found."""
    message: str
    load_error: str | None
    """Why there is no function to test."""
    total: int
    """How many tests there are; 0 where the status left no time to find out."""
    results: tuple[TestOutcome, ...]
    """Of the first tests; fewer than `total` if something ended them."""
    broken: tuple[str, str] | None
    """First line and error of a statement between the tests that failed, which ended them."""
    flaw: str
    """What is wrong with the tests or their prelude, whatever the solution is; then there is no verdict."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOutcome:
    """What one run of a whole program gave."""

    status: ExecStatus
    """`KILLED` with `exit_status` 0 is a program that left by `os._exit(0)`."""
    message: str
    exit_status: int | None
    stdout: bytes
    is_cut: bool
    """Whether there was more output than was to be kept; then the middle is missing."""
    seconds: float


class CodeRunner(Protocol):
    """Runs untrusted source text, each time in a fresh process of its own."""

    def call_function(
        self,
        sources: Sequence[str],
        entry_point: str | None,
        calls: Sequence[Sequence[Any]],
        *,
        stop_at_error: bool = False,
        call_timeout_s: float | None = None,
    ) -> FunctionAnswers:
        """Executes the sources one after the other in one module and calls its function with each argument list.

        Args:
            sources: Source texts.
            entry_point: The function's name; None only loads the sources.
            calls: Argument lists.
            stop_at_error: Stop at the first exception.
            call_timeout_s: Makes each call an execution of its own, with this limit; what ends one ends no other, and
                the next ones get a fresh process. All calls together keep to the limits' `timeout_s`.
        """
        ...

    def run_tests(
        self,
        sources: Sequence[str],
        entry_point: str | None,
        tests: str,
        *,
        prelude: str = "",
        stop_at_failure: bool = False,
        test_timeout_s: float | None = None,
        same_session: bool = False,
    ) -> TestsOutcome:
        """Runs trusted tests, after their prelude, against the sources' function.

        Args:
            sources: Source texts.
            entry_point: The function's name; None only where tests and sources share a process.
            tests: The tests' source text.
            prelude: What the tests' own process executes before them.
            stop_at_failure: Stop at the first test that does not pass.
            test_timeout_s: As `call_timeout_s`, for each test.
            same_session: Run the tests in the process of the sources, which can then do to them what it wants.
        """
        ...

    def run_program(
        self, sources: Sequence[str], stdin: str, *, keep_bytes: int = 0, timeout_s: float | None = None
    ) -> ProgramOutcome:
        """Runs the last source as a script, after the others, with an input of its own.

        Args:
            sources: Source texts.
            stdin: What the program reads from standard input.
            keep_bytes: Keep at least so much of the output, whatever the limits say.
            timeout_s: Wall-clock limit of this run; None means the limits' own.
        """
        ...

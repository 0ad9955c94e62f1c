"""Tests of whole programs: what each prints for an input.

Each test runs the solution once in a fresh session, as `python main.py < input` would. It is passed if the program ends
with exit status 0 (also by `os._exit(0)`) and its output is right: line by line the same as the expected one, where
white space at the end of a line and empty lines at the end of the output do not count. With a `tolerance`, the words of
a line may also be numbers that differ by no more than that, absolutely or relative to the expected one.

The expected output never enters a session, and no session sees the input of another test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import SandboxDied, TaskError
from ..sandboxes.base import ExecStatus, Limits
from ..sandboxes.code_runner import CodeRunner, ProgramOutcome
from .report import GradeReport, TestFailure, TestResult, TestStatus, short_repr, status_named

_MIB = 1 << 20
_LONGEST_NUMBER = 400


def grade_programs(
    runner: CodeRunner,
    sources: Sequence[str],
    tests: Sequence[Mapping[str, Any]],
    limits: Limits,
    stop_at_first_failure: bool,
    test_timeout_s: float | None,
) -> GradeReport:
    """Gives the verdict of `[{"stdin": "...", "stdout": "..."}, ...]`.

    Raises:
        SandboxDied: Infrastructure failed.
        TaskError: No program can pass a test within the limits.
    """
    for index, test in enumerate(tests):
        _check_size(index, test, limits)
    left_s, seconds = limits.timeout_s, 0.0
    results: list[TestResult] = []
    failures: list[TestFailure] = []
    for index, test in enumerate(tests):
        if left_s <= 0 or (failures and stop_at_first_failure):
            results.append(TestResult(index=index, status=TestStatus.NOT_RUN))
            continue
        timeout_s = left_s if test_timeout_s is None else min(test_timeout_s, left_s)
        keep = 2 * len(_encoded(test["stdout"]))
        ran = runner.run_program(sources, test["stdin"], keep_bytes=keep, timeout_s=timeout_s)
        if ran.status is ExecStatus.SANDBOX_DIED:
            raise SandboxDied(ran.message)
        left_s -= ran.seconds
        seconds += ran.seconds
        results.append(_result(index, ran, test))
        if not results[-1].passed:
            failures.append(_failure(results[-1], ran, test))
    was_stopped = left_s <= 0 and not all(result.passed for result in results)
    return GradeReport(
        passed=not failures and all(result.passed for result in results),
        total=len(tests),
        failures=tuple(failures),
        status=ExecStatus.TIMEOUT if was_stopped else ExecStatus.OK,
        seconds=seconds,
        message=f"timed out after {limits.timeout_s:g} s" if was_stopped else "",
        results=tuple(results),
    )


def _check_size(index: int, test: Mapping[str, Any], limits: Limits) -> None:
    for name, most in (("stdout", limits.output_hard_mib), ("stdin", limits.tmp_mib)):
        if len(_encoded(test[name])) >= most * _MIB:
            limit = "output_hard_mib" if name == "stdout" else "tmp_mib"
            raise TaskError(f"tests[{index}]: its {name} does not fit into limits.{limit}={most}")


def _result(index: int, ran: ProgramOutcome, test: Mapping[str, Any]) -> TestResult:
    status, error = status_named(ran.status.value), ran.message
    if ran.status in (ExecStatus.OK, ExecStatus.KILLED) and ran.exit_status == 0:
        status, error = _judge(ran, test)
    return TestResult(index=index, status=status, error=error, seconds=ran.seconds)


def _judge(ran: ProgramOutcome, test: Mapping[str, Any]) -> tuple[TestStatus, str]:
    if ran.is_cut:
        return TestStatus.OUTPUT_LIMIT, "the output is far longer than the expected one, and was cut"
    got, want = _lines(ran.stdout), _lines(_encoded(test["stdout"]))
    for number in range(max(len(got), len(want))):
        if number >= len(got):
            return TestStatus.FAILED, f"the output ends before line {number + 1}"
        if number >= len(want):
            return TestStatus.FAILED, f"the output goes on in line {number + 1}"
        if got[number] != want[number] and not _are_close(got[number], want[number], test.get("tolerance")):
            return TestStatus.FAILED, f"line {number + 1} of the output differs"
    return TestStatus.PASSED, ""


def _lines(output: bytes) -> list[bytes]:
    lines = [line.rstrip() for line in output.split(b"\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _are_close(got: bytes, want: bytes, tolerance: float | None) -> bool:
    if tolerance is None:
        return False
    ours, theirs = got.split(), want.split()
    return len(ours) == len(theirs) and all(
        mine == yours or abs(_number(mine) - _number(yours)) <= tolerance * max(1.0, abs(_number(yours)))
        for mine, yours in zip(ours, theirs, strict=True)
    )


def _number(word: bytes) -> float:
    """Gives the number that a word is; NaN, which is close to nothing, if it is none."""
    try:
        number = float(word) if len(word) <= _LONGEST_NUMBER else math.nan
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _failure(result: TestResult, ran: ProgramOutcome, test: Mapping[str, Any]) -> TestFailure:
    return TestFailure(
        index=result.index,
        args_repr=short_repr(test["stdin"]),
        got_repr=short_repr(ran.stdout[:_SHOWN].decode("utf-8", "replace")),
        want_repr=short_repr(test["stdout"]),
        error=result.error,
    )


_SHOWN = 2000


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")

"""Tests that are executions of their own: what ends one decides that one alone."""

import runpy
import time
from pathlib import Path
from typing import Any

import pytest

from palaestra.core.errors import ConfigError
from palaestra.rewards import GradeReport, grade_code
from palaestra.sandboxes import Limits

_SOLUTIONS = runpy.run_path(str(Path(__file__).with_name("solutions.py")))
CHEATS: dict[str, str] = _SOLUTIONS["CHEATS"]
HONEST: dict[str, str] = _SOLUTIONS["HONEST"]
LIMITS = Limits(timeout_s=20, grace_s=0.1, memory_mib=256, processes=16, output_hard_mib=1)
DATA = [{"args": [n], "expected": n} for n in (1, -1, 2, -2, 3)]
ASSERTS = "\n".join(f"assert f({n}) == {n}" for n in (1, -1, 2, -2, 3))
FUNCTIONS = "\n".join(f"def test_{k}():\n    assert f({n}) == {n}" for k, n in enumerate((1, -1, 2, -2, 3)))
BOTH = pytest.mark.parametrize("tests", [DATA, ASSERTS, FUNCTIONS], ids=["data", "asserts", "functions"])
TOTALS = [([1, 2, 3], 6), ([10], 10), ([], 0)]
TOTAL_DATA = [{"args": [numbers], "expected": total} for numbers, total in TOTALS]
TOTAL_ASSERTS = "\n".join(f"assert total({numbers}) == {total}" for numbers, total in TOTALS)


def grade(solution: str, tests: Any, **keywords: Any) -> GradeReport:
    return grade_code(solution, tests, **{"limits": LIMITS, "entry_point": "f", "test_timeout_s": 0.3, **keywords})


def statuses(report: GradeReport) -> list[str]:
    assert [result.index for result in report.results] == list(range(report.total))
    return [result.status.value for result in report.results]


def when_negative(code: str) -> str:
    """A solution that does something else in two of the five tests."""
    return f"import os, signal, subprocess, sys, time\ndef f(n):\n    if n < 0:\n        {code}\n    return n\n"


@BOTH
@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("time.sleep(60)", "timeout", "timed out after 0.3 s"),
        ("while True: pass", "timeout", "timed out after 0.3 s"),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)", "timeout", "timed out after 0.3 s"),
        ("time.perf_counter = time.monotonic = lambda: 0.0; time.sleep(60)", "timeout", "timed out after 0.3 s"),
        ("subprocess.run(['sleep', '60'])", "timeout", "timed out after 0.3 s"),
        ("os._exit(0)", "killed", ""),
        ("os.kill(os.getpid(), 11); os.abort()", "killed", ""),
        ("os.execv('/bin/true', ['true'])", "killed", ""),
        ("while True: os.write(1, bytes(1 << 16))", "output_limit", "more than 1 MiB of output"),
        (
            "x = [os.fork() for _ in range(2)]; y = bytearray(100 << 20); time.sleep(60)",
            "memory_limit",
            "more than 256 MiB",
        ),
        ("raise ValueError('x')", "error", "ValueError: x"),
        ("sys.exit(0)", "error", "SystemExit: 0"),
        ("return -n", "failed", ""),
    ],
)
def test_what_ends_a_test_decides_that_one_alone(tests: Any, code: str, status: str, error: str) -> None:
    timeout_s = 5.0 if status == "memory_limit" else 0.3
    report = grade(when_negative(code), tests, test_timeout_s=timeout_s)
    assert statuses(report) == ["passed", status, "passed", status, "passed"]
    assert (report.passed, report.status, report.message) == (False, "ok", "")
    assert [failure.index for failure in report.failures] == [1, 3]
    assert all(error in report.results[index].error for index in (1, 3))
    if status == "timeout":
        assert all(0.3 <= report.results[index].seconds < 1.5 for index in (1, 3))


@BOTH
def test_without_a_limit_of_their_own_tests_end_together(tests: Any) -> None:
    report = grade(when_negative("os._exit(0)"), tests, test_timeout_s=None)
    decided = ["killed"] if tests is DATA else ["passed"]
    assert statuses(report) == decided + ["killed"] * 4
    report = grade(when_negative("time.sleep(60)"), tests, test_timeout_s=None, limits=Limits(timeout_s=0.5))
    assert (report.status, report.message) == ("timeout", "timed out after 0.5 s")
    expected = ["timeout"] * 5 if tests is DATA else ["passed", "timeout", "not_run", "not_run", "not_run"]
    assert statuses(report) == expected


@BOTH
def test_all_tests_together_keep_to_their_limit(tests: Any) -> None:
    started = time.monotonic()
    report = grade("import time\ndef f(n): time.sleep(60)", tests, limits=Limits(timeout_s=0.7, grace_s=0.1))
    timeouts = statuses(report).count("timeout")
    assert statuses(report) == ["timeout"] * timeouts + ["not_run"] * (5 - timeouts)
    assert 1 <= timeouts <= 3
    assert (report.passed, report.status, report.message) == (False, "timeout", "timed out after 0.7 s")
    assert time.monotonic() - started < 5


@BOTH
def test_the_first_failure_can_be_the_last(tests: Any) -> None:
    for code in ("os._exit(0)", "time.sleep(60)", "return 0"):
        report = grade(when_negative(code), tests, stop_at_first_failure=True)
        assert statuses(report)[0] == "passed"
        assert statuses(report)[2:] == ["not_run"] * 3
        assert [failure.index for failure in report.failures] == [1]


@BOTH
def test_after_the_first_failure_nothing_runs(tests: Any) -> None:
    solution = "import time\ndef f(n):\n    if n == 1: raise ValueError\n    time.sleep(60)"
    assert grade(solution, tests, stop_at_first_failure=True).seconds < 0.3


@BOTH
def test_the_next_test_meets_a_fresh_solution(tests: Any) -> None:
    solution = (
        "import os\nseen = []\ndef f(n):\n    seen.append(n)\n    if n == -1: os._exit(0)\n    return n + len(seen)"
    )
    report = grade(solution, tests)
    assert statuses(report) == ["failed", "killed", "failed", "failed", "failed"]
    if tests is DATA:
        assert [failure.got_repr for failure in report.failures] == ["2", "", "3", "0", "6"]


@BOTH
@pytest.mark.parametrize(
    ("solution", "status", "result"),
    [
        ("def f(n) return n", "load_error", "load_error"),
        ("1 / 0", "load_error", "load_error"),
        ("while True: pass", "timeout", "timeout"),
        ("import os\nos._exit(0)", None, None),
    ],
)
def test_a_solution_that_is_never_loaded_fails_all(
    tests: Any, solution: str, status: str | None, result: str | None
) -> None:
    report = grade(solution, tests, limits=Limits(timeout_s=1, grace_s=0.1))
    if status is None:
        status = result = "killed" if tests is DATA else "load_error"
    assert (report.passed, report.status, report.total) == (False, status, 5)
    assert statuses(report) == [result] * 5
    assert report.message


@pytest.mark.parametrize("tests", [TOTAL_DATA, TOTAL_ASSERTS], ids=["data", "asserts"])
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_does_not_pass(name: str, tests: Any) -> None:
    limits = Limits(timeout_s=1, grace_s=0.1, processes=16)
    report = grade(CHEATS[name], tests, entry_point="total", limits=limits, test_timeout_s=0.5)
    assert not report.passed
    assert report.total == len(report.results) == 3


@pytest.mark.parametrize("tests", [TOTAL_DATA, TOTAL_ASSERTS], ids=["data", "asserts"])
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_solution_passes(name: str, tests: Any) -> None:
    report = grade(HONEST[name], tests, entry_point="total", test_timeout_s=5)
    assert report.passed, report
    assert statuses(report) == ["passed"] * 3
    assert all(0 < result.seconds < 5 for result in report.results)


# --- tests as source text


def test_a_test_cannot_swallow_its_time_out() -> None:
    swallow = "try: f({})\nexcept: pass\nelse: assert False\n"
    tests = "assert f(1) == 1\n" + swallow.format(-1) + "assert f(2) == 2\n"
    for code, status in (("time.sleep(60)", "timeout"), ("os._exit(0)", "killed"), ("return 0", "failed")):
        assert statuses(grade(when_negative(code), tests)) == ["passed", status, "passed"]
    assert grade(when_negative("raise ValueError"), tests).passed
    assert not grade(when_negative("os._exit(0)"), tests, test_timeout_s=None).passed


def test_the_tests_own_loops_have_a_clock_too() -> None:
    tests = "assert f(1) == 1\ndef test_loop():\n    while f(2) == 2: pass\ndef test_last():\n    assert f(3) == 3\n"
    assert statuses(grade("def f(n): return n", tests)) == ["passed", "timeout", "passed"]
    busy = "def test_busy():\n    while True: pass\ndef test_last():\n    assert f(3) == 3\n"
    assert statuses(grade("def f(n): return n", busy)) == ["timeout", "passed"]


def test_statements_between_tests_run_again_in_a_fresh_session() -> None:
    tests = "n = 0\nn += f(1)\nassert f(-1) == -1\nn += f(1)\nassert n == f(2)\n"
    assert statuses(grade(when_negative("os._exit(0)"), tests)) == ["killed", "passed"]


def test_a_statement_between_tests_that_hangs_ends_them() -> None:
    report = grade(when_negative("time.sleep(60)"), "assert f(1) == 1\nx = f(-1)\nassert f(2) == 2\nassert f(3) == 3\n")
    assert statuses(report) == ["passed", "not_run", "not_run"]
    failure = report.failures[-1]
    assert (failure.index, failure.args_repr, failure.error) == (-1, "x = f(-1)", "timed out after 0.3 s")


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), "1", True])
def test_a_wrong_time_limit_is_an_error(timeout_s: Any) -> None:
    with pytest.raises(ConfigError, match="test_timeout_s"):
        grade("def f(n): return n", DATA, test_timeout_s=timeout_s)

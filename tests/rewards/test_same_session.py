"""Tests in the solution's own session: what they can that others cannot, and how little their verdict is worth."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from palaestra.core.errors import TaskError
from palaestra.rewards import GradeReport, grade_code
from palaestra.sandboxes import Limits

_SOLUTIONS = runpy.run_path(str(Path(__file__).with_name("solutions.py")))
CHEATS: dict[str, str] = _SOLUTIONS["CHEATS"]
HONEST: dict[str, str] = _SOLUTIONS["HONEST"]
LIMITS = Limits(timeout_s=10, grace_s=0.1, memory_mib=256, processes=16)
QUICK = Limits(timeout_s=1, grace_s=0.1, processes=16)
TOTAL = "assert total([1, 2, 3]) == 6\nassert total([10]) == 10\nassert total([]) == 0\n"
POINT = """
from dataclasses import dataclass
from collections import namedtuple

@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0
    def __add__(self, other): return Point(self.x + other.x, self.y + other.y)

Size = namedtuple('Size', 'width height')
def f(n, key=lambda x: x): return key(n)
def count():
    n = 0
    while True:
        yield n
        n += 1
"""


def grade(solution: str, tests: str, entry_point: str | None = "total", **keywords: Any) -> GradeReport:
    return grade_code(
        solution, tests, **{"limits": LIMITS, "entry_point": entry_point, "same_session": True, **keywords}
    )


def results(report: GradeReport) -> list[str]:
    assert report.total == len(report.results)
    assert report.same_session
    return [result.status.value for result in report.results]


@pytest.mark.parametrize(
    "test",
    [
        "assert Point(1) + Point(2, 3) == Point(3, 3) != Point(3)",
        "assert isinstance(Point(1), Point) and hash(Point(1)) == hash(Point(1))",
        "assert f(2, key=lambda x: x + 1) == candidate(3) == 3",
        "assert Size(1, 2).height == 2",
        "numbers = count()\nassert next(numbers) == 0 and next(numbers) == 1",
        "class Mine(Point): pass\nassert f(Mine(1)).x == 1",
    ],
)
def test_tests_may_need_the_solutions_classes_and_pass_functions(test: str) -> None:
    assert grade(POINT, test, "f").passed
    assert grade(POINT, test, "f", test_timeout_s=5).passed
    wrong = POINT.replace("self.y + other.y", "0").replace("return key(n)", "return 7").replace("n += 1", "n -= 1")
    wrong = wrong.replace("'width height'", "'width'").replace("frozen=True", "frozen=False")
    report = grade(wrong, test, "f")
    assert not report.passed
    assert report.failures


def test_the_report_says_so() -> None:
    assert grade(HONEST["plain"], TOTAL).same_session
    assert not grade(HONEST["plain"], TOTAL, same_session=False).same_session


def test_an_entry_point_is_needed_only_by_check() -> None:
    assert grade(POINT, "assert Point(1).y == 0", None).passed
    report = grade("x = 1", "assert x == 1", "f")
    assert (report.status, report.message) == ("load_error", "NameError: the solution defines no function 'f'")


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_solution_passes(name: str) -> None:
    report = grade(HONEST[name], TOTAL)
    assert report.passed, report
    assert results(report) == ["passed"] * 3


@pytest.mark.parametrize("name", [name for name in CHEATS if not name.startswith("equality:") or "no number" in name])
def test_a_cheat_without_a_share_in_the_tests_does_not_pass(name: str) -> None:
    report = grade(CHEATS[name], TOTAL, limits=QUICK if name.startswith("time:") else LIMITS)
    assert not report.passed
    assert len(results(report)) == 3


def test_an_answer_is_needed_that_only_the_tests_know_how_to_give() -> None:
    """Ids of requests are easy to guess; the token is not."""
    forge = """
import json, os, struct, sys
frame = sys._getframe()
while 'id' not in (frame.f_locals.get('head') or {}): frame = frame.f_back
number = frame.f_locals['head']['id']
def total(numbers):
    results = [{'test': '', 'status': 'passed', 'error': '', 'seconds': 0}] * 3
    said = {'token': 'TOKEN', 'load_error': None, 'results': results, 'broken': None, 'total': 3, 'is_over': True,
            'refused': ''}
    for guess in (number + STEP,):
        head, body = json.dumps({'id': guess, 's': 'ok', 'x': 0, 'm': ''}).encode(), json.dumps(said).encode()
        os.write(3, struct.pack('!II', len(head), len(body)) + head + body)
    os._exit(0)
"""
    for step in ("1", "2", "3"):
        report = grade(forge.replace("STEP", step), TOTAL)
        assert (report.passed, report.status) == (False, "killed")
        assert results(report) == ["killed"] * 3


def test_what_this_mode_does_not_promise() -> None:
    """A control: both of these fail where tests have a session of their own."""
    equal = CHEATS["equality: an object that equals everything"]
    patch = "passed = dict(test='', status='passed', error='', seconds=0)\nExamination._try = lambda *_: passed\n"
    for cheat in (equal, FIND + patch):
        assert grade(cheat, TOTAL).passed
        assert not grade(cheat, TOTAL, same_session=False).passed


FIND = """
import sys
frame = sys._getframe()
while 'examination' not in frame.f_globals: frame = frame.f_back
Examination = frame.f_globals['examination'].Examination
def total(numbers): return 0
"""
LIE = """
def lie(self, most):
    said = self.report(**SAID)
    said.update(refused='function', total=10 ** 9)
    return said
Examination.go_on = lie
"""


@pytest.mark.parametrize(
    "said",
    [
        "{}",
        "{'is_over': True}",
        "{'load_error': 'no'}",
        "{'broken': ['x', 'y'], 'is_over': True}",
        "{'results': 5}",
        "{'results': [{'test': '', 'status': 'fine', 'error': '', 'seconds': 0}] * 3}",
        "{'results': [{'test': '', 'status': 'passed', 'error': '', 'seconds': 0}] * 2, 'is_over': True}",
        "{'results': [{'test': '', 'status': 'passed', 'error': '', 'seconds': 'x'}] * 3, 'is_over': True}",
    ],
)
def test_lies_about_the_tests_are_no_more_than_failures(said: str) -> None:
    report = grade(FIND + LIE.replace("SAID", said), TOTAL)
    assert (report.passed, report.total) == (False, 3)
    assert report.seconds < 2


@pytest.mark.parametrize("change", ["__init__ = None", "go_on = None", "report = None", "_try = None"])
def test_a_solution_cannot_blame_the_tests(change: str) -> None:
    report = grade(f"{FIND}Examination.{change}\n", TOTAL)
    assert (report.passed, report.total) == (False, 3)


@pytest.mark.parametrize("test_timeout_s", [None, 0.3])
def test_time_is_shared_or_for_each_test(test_timeout_s: float | None) -> None:
    solution = "import time\ndef total(numbers):\n    if numbers == [10]: time.sleep(60)\n    return sum(numbers)"
    report = grade(solution, TOTAL, test_timeout_s=test_timeout_s, limits=QUICK)
    last = "not_run" if test_timeout_s is None else "passed"
    assert results(report) == ["passed", "timeout", last]
    assert report.status == ("timeout" if test_timeout_s is None else "ok")


def test_a_process_that_ends_is_replaced_where_tests_have_time_of_their_own() -> None:
    solution = "import os\ndef total(numbers):\n    if numbers == [10]: os._exit(0)\n    return sum(numbers)"
    assert results(grade(solution, TOTAL, test_timeout_s=1)) == ["passed", "killed", "passed"]
    assert results(grade(solution, TOTAL)) == ["killed"] * 3


def test_tasks_that_are_wrong_are_errors() -> None:
    for tests, prelude, message in (
        ("assert total(", "", "the tests or their prelude do not run: SyntaxError"),
        ("x = 1", "", "the tests' source holds no test"),
        (TOTAL, "1 / 0", "the tests or their prelude do not run: ZeroDivisionError"),
    ):
        with pytest.raises(TaskError, match=message):
            grade(HONEST["plain"], tests, prelude=prelude)
    for data in ([{"args": [], "expected": 1}], [{"stdin": "", "stdout": ""}]):
        with pytest.raises(TaskError, match="same_session=True: only tests as source text"):
            grade_code("", data, entry_point="total", same_session=True)

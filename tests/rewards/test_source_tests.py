"""Tests as source text: what counts as a test, what crosses to the solution, and whose fault a failure is."""

from typing import Any

import pytest

from palaestra.core.errors import TaskError
from palaestra.rewards import GradeReport, grade_code
from palaestra.sandboxes import Limits, open_sandbox

LIMITS = Limits(timeout_s=10, grace_s=0.1, memory_mib=256, processes=16)


def grade(solution: str, tests: Any, entry_point: str = "f", **keywords: Any) -> GradeReport:
    return grade_code(solution, tests, **{"limits": LIMITS, "entry_point": entry_point, **keywords})


def results(report: GradeReport) -> list[str]:
    assert report.total == len(report.results)
    return [result.status.value for result in report.results]


IDENTITY = "def f(x): return x"


# --- what is a test


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        ("assert f(1) == 1\nassert f(2) == 3\nassert f(3) == 3", ["passed", "failed", "passed"]),
        ("for n in range(3):\n    assert f(n) == n\nassert f(1) == 1", ["passed", "passed"]),
        ("for n in range(3):\n    assert f(n) == n + 1\nassert f(1) == 1", ["failed", "passed"]),
        ("if True:\n    assert f(1) == 1\nwith open('x', 'w'):\n    assert f(1) == 2", ["passed", "failed"]),
        ("try:\n    f(1)\nexcept ValueError: pass\nelse:\n    assert False", ["failed"]),
        ("match f(1):\n    case 2: pass\n    case _: assert False", ["failed"]),
        ("x = f(1)\nassert x == 1\ndel x", ["passed"]),
        ("def test_b():\n    assert f(1) == 1\ndef test_a():\n    assert f(1) == 2", ["passed", "failed"]),
        ("def test_a():\n    helper()\ndef helper():\n    assert f(1) == 2", ["failed"]),
        ("assert f(1) == 1\ndef check(g):\n    assert g(2) == 3\ndef test_a(): pass", ["passed", "passed", "failed"]),
        ("def check(candidate):\n    def inner():\n        assert candidate(1) == 1\n    inner()", ["passed"]),
        ("test_a = lambda: 1 / f(0)\nassert f(1)", ["passed", "error"]),
        ("for n in range(2):\n    exec(f'def test_{n}(): assert f({n}) == 0')", ["passed", "failed"]),
        ("class Case:\n    def test_a(self): assert False\nassert f(1)", ["passed"]),
        ("async def test_a():\n    assert f(1) == 1", ["error"]),
        ("def test_a():\n    yield f(1)", ["error"]),
    ],
)
def test_tests_are_asserts_functions_and_check(tests: str, expected: list[str]) -> None:
    report = grade(IDENTITY, tests)
    assert results(report) == expected
    assert report.passed is (set(expected) == {"passed"})


@pytest.mark.parametrize(
    "tests",
    [
        "x = f(1)",
        "def helper(): pass",
        "if __name__ == '__main__':\n    assert f(1) == 1",
        "class Case:\n    def test_a(self): assert f(1) == 1",
        "# nothing",
    ],
)
def test_without_a_test_there_is_no_verdict(tests: str) -> None:
    with pytest.raises(TaskError, match="the tests' source holds no test"):
        grade(IDENTITY, tests)


def test_a_task_says_how_many_tests_there_are_whatever_the_solution_does() -> None:
    tests = "assert f(1) == 1\nx = f(2)\nassert f(3) == 3\ndef test_a():\n    assert f(4) == 4\n"
    for solution, expected in (
        (IDENTITY, ["passed"] * 3),
        ("def f(x): return x if x != 2 else 1 / 0", ["passed", "not_run", "not_run"]),
        ("def f(x): exit()", ["error", "not_run", "not_run"]),
        ("1 / 0", ["load_error"] * 3),
        ("while True: pass", ["timeout"] * 3),
        ("import os\nos._exit(0)", ["load_error"] * 3),
    ):
        report = grade(solution, tests, limits=Limits(timeout_s=0.5, grace_s=0.1))
        assert results(report) == expected
        assert report.passed is (solution == IDENTITY)


def test_names_of_prelude_and_solution_are_no_tests() -> None:
    prelude = "def test_number(n): return n > 0\ndef check(n): raise ValueError\n"
    assert results(grade("def test_it(x): return x", "assert test_it(1)", "test_it", prelude=prelude)) == ["passed"]


# --- what crosses


@pytest.mark.parametrize(
    ("solution", "tests"),
    [
        ("def f(n, *, by=1): return n + by", "assert f(1) == 2\nassert f(1, by=2) == 3\nassert f(n=5) == 6"),
        ("def f(n): return n * f(n - 1) if n else 1", "import math\nassert f(200) == math.factorial(200)"),
        ("def f(): return float('nan')", "assert f() != f()\nimport math\nassert math.isnan(f())"),
        ("def f(): return (1, (2, [3, (4,)]))", "assert f() == (1, (2, [3, (4,)]))\nassert type(f()) is tuple"),
        ("def f(): return {1, 2}, frozenset({3}), b'x', None, 1j", "assert f() == ({1, 2}, {3}, b'x', None, 1j)"),
        ("def f():\n    yield 1\n    yield 2", "assert list(f()) == [1, 2]\nassert sum(f()) == 3"),
        ("def f(x): x.append(4); x[0] = 9", "x = [1]\nassert f(x) is None\nassert x == [9, 4]"),
        ("def f(x): x['b'] = {3}; del x['a']", "x = {'a': 1}\nf(x)\nassert x == {'b': {3}}"),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: list\n"
            "    def area(self): return self.x * len(self.y)\ndef f(): return P(1, [2])",
            "p = f()\nassert (p.x, p.y, p.area()) == (1, [2], 1)\nassert str(p) == 'P(x=1, y=[2])'",
        ),
        (
            "from collections import namedtuple\ndef f(): return namedtuple('P', 'x y')(1, 2)",
            "assert f() == (1, 2)\nx, y = f()\nassert y == f()[1] == 2",
        ),
        ("def f(n): return [f] if n else n", "assert f(0) == 0\nassert len(f(1)) == 1"),
        ("def f(): return 'a\\ud800\\n\\0'", "assert f() == 'a\\ud800\\n\\0'"),
    ],
)
def test_honest_values_pass(solution: str, tests: str) -> None:
    report = grade(solution, tests)
    assert report.passed, report.failures


def test_arrays_of_numpy_cross_as_lists() -> None:
    with open_sandbox() as sandbox:
        has_numpy = sandbox.exec("import numpy").ok
    stand_in = "class array(list):\n    def tolist(self): return list(self)\narray.__module__ = 'numpy'\n"
    solution = "import numpy\nfrom numpy import array\n" if has_numpy else stand_in
    assert grade(solution + "def f(x): return array([x, x + 1])", "assert f(1) == [1, 2]\nassert sum(f(2)) == 5").passed


@pytest.mark.parametrize(
    ("code", "caught"),
    [
        ("raise ValueError('bad')", "ValueError"),
        ("class Mine(ValueError): pass\n    raise Mine('bad')", "ValueError"),
        ("import json; json.loads('{')", "ValueError"),
        ("b'\\xff'.decode()", "UnicodeDecodeError"),
        ("{}['bad']", "KeyError"),
        ("[].pop()", "IndexError"),
        ("open('/bad')", "FileNotFoundError"),
        ("raise TaskFailed('bad', 5)", "TaskFailed"),
        ("class Mine(TaskFailed): pass\n    raise Mine('bad', 5)", "TaskFailed"),
        ("class Mine(Exception): pass\n    raise Mine('bad')", "Exception"),
        ("raise ExceptionGroup('bad', [ValueError()])", "Exception"),
    ],
)
def test_exceptions_that_tests_expect_arrive(code: str, caught: str) -> None:
    prelude = "class TaskFailed(Exception):\n    def __init__(self, text, code): super().__init__(text)\n"
    tests = (
        f"try:\n    f()\nexcept {caught} as error:\n    assert '' != str(error) or {caught!r} == 'UnicodeDecodeError'\n"
    )
    tests += "else:\n    assert False\n"
    assert grade(f"def f():\n    {code}", tests, prelude=prelude).passed
    other = "ZeroDivisionError" if caught != "ZeroDivisionError" else "KeyError"
    assert results(grade(f"def f():\n    {code}", tests.replace(caught, other), prelude=prelude)) == ["error"]
    assert results(grade("def f(): return 'bad'", tests, prelude=prelude)) == ["failed"]


def test_the_end_of_the_process_is_no_expected_exception() -> None:
    tests = "try: f(1)\nexcept Exception: pass\nelse: assert False\n"
    assert grade("def f(x): raise RuntimeError", tests).passed
    report = grade("import os\ndef f(x): os._exit(0)", tests)
    assert (results(report), report.failures[0].error) == (["killed"], "the solution's process has ended")


@pytest.mark.parametrize(
    ("tests", "kind"),
    [
        ("assert f(lambda x: x) is None", "function"),
        ("class A: pass\nassert f([A()]) is None", "list"),
        ("try: f(print)\nexcept TypeError: pass\nassert True", "builtin_function_or_method"),
    ],
)
def test_tests_that_pass_what_cannot_cross_are_errors(tests: str, kind: str) -> None:
    message = rf"the tests pass what cannot cross to the solution's session \({kind}\); same_session=True"
    with pytest.raises(TaskError, match=message):
        grade(IDENTITY, tests)


@pytest.mark.parametrize("value", ["object()", "[object()]", "{1: (f,)}"])
def test_a_solution_cannot_make_tests_pass_what_cannot_cross(value: str) -> None:
    report = grade(f"def f(x): return {value}", "x = f(1)\nassert f([x]) == [1]\nassert f(f(1)) == 1\nassert True")
    assert results(report) == ["error", "error", "passed"]


# --- whose fault it is


@pytest.mark.parametrize("tests", ["assert f(1) == 1", [{"args": [1], "expected": 1}]], ids=["source", "data"])
@pytest.mark.parametrize(
    ("prelude", "error"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("def x(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("while True: pass", "timed out"),
    ],
)
def test_a_prelude_that_fails_is_an_error_of_the_task(prelude: str, error: str, tests: Any) -> None:
    for solution in (IDENTITY, "1 / 0", "def f(:"):
        with pytest.raises(TaskError, match=f"prelude do(es)? not run: {error}"):
            grade(solution, tests, prelude=prelude, limits=Limits(timeout_s=0.5, grace_s=0.1))


ENDLESS = "import os, struct\nos.write(4, struct.pack('!II', 2, 1 << 27) + b'{}')\nwhile True: "
FEIGNED = """
import json, os, struct, sys
frame = sys._getframe()
while 'id' not in (frame.f_locals.get('head') or {}): frame = frame.f_back
head = {'id': frame.f_locals['head']['id'], 's': 'STATUS', 'x': 0, 'm': 'ZeroDivisionError: prelude'}
head = json.dumps(head).encode()
body = b'["ZeroDivisionError: the prelude failed",[]]'
os.write(3, struct.pack('!II', len(head), len(body)) + head + body)
os._exit(0)
"""


@pytest.mark.parametrize("tests", ["assert f(1) == 1", [{"args": [1], "expected": 1}]], ids=["source", "data"])
@pytest.mark.parametrize(
    "solution",
    [
        "raise ZeroDivisionError('the prelude failed')",
        FEIGNED.replace("STATUS", "ok"),
        FEIGNED.replace("STATUS", "error"),
        FEIGNED.replace("os.write(3", "os.write(4"),
        ENDLESS + "pass",
        ENDLESS + "os.write(4, bytes(1 << 20))",
    ],
)
def test_a_solution_cannot_blame_prelude_or_tests(solution: str, tests: Any) -> None:
    report = grade(solution, tests, prelude="x = 1", limits=Limits(timeout_s=2, grace_s=0.1, memory_mib=64))
    assert (report.passed, report.total) == (False, 1)
    assert report.status in ("load_error", "error", "timeout", "killed", "memory_limit")


def test_a_reply_without_end_is_a_failed_test() -> None:
    solution = (
        "import os, struct\ndef f(x):\n"
        "    os.write(4, struct.pack('!II', 2, (1 << 28) - 1) + b'{}')\n"
        "    while True: os.write(4, bytes(1 << 20))\n"
    )
    report = grade(solution, "assert f(1) == 1", limits=Limits(timeout_s=5, memory_mib=128))
    assert (report.passed, report.total) == (False, 1)


@pytest.mark.parametrize(
    ("tests", "error"),
    [("assert f(1) ==", "SyntaxError"), ("assert f(1)\nreturn 5", "SyntaxError"), ("x = (" * 300, "")],
)
def test_tests_that_do_not_run_are_no_verdict(tests: str, error: str) -> None:
    for solution in (IDENTITY, "1 / 0"):
        with pytest.raises(TaskError, match=f"the tests or their prelude do not run: {error}"):
            grade(solution, tests)

"""Verdicts on code: what passes, what fails and how it is reported, and what no cheat gets past."""

import math
import runpy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from palaestra.core.errors import SandboxDied, TaskError
from palaestra.rewards import GradeReport, grade_code
from palaestra.rewards.data_tests import same
from palaestra.sandboxes import ExecStatus, Limits, open_sandbox
from palaestra.sandboxes.code_runner import Answer, FunctionAnswers, ProgramOutcome, TestsOutcome
from palaestra.sandboxes.jail.calls import read_answers

_SOLUTIONS = runpy.run_path(str(Path(__file__).with_name("solutions.py")))
CHEATS: dict[str, str] = _SOLUTIONS["CHEATS"]
HONEST: dict[str, str] = _SOLUTIONS["HONEST"]
LIMITS = Limits(timeout_s=10, grace_s=0.1, cpu_s=3, memory_mib=256, processes=16)
QUICK = Limits(timeout_s=1, grace_s=0.1, processes=16)
DATA = [{"args": [[1, 2, 3]], "expected": 6}, {"args": [[10]], "expected": 10}, {"args": [[]], "expected": 0}]
SOURCES = {
    "check": (
        "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    assert candidate([1, 2, 3]) == 6\n"
        "    assert candidate([10]) == 10, 'one'\n    assert candidate([]) == 0\n"
    ),
    "asserts": "assert total([1, 2, 3]) == 6\nassert total([10]) == 10\nassert total([]) == 0\n",
    "functions": "def test_a():\n    assert total([1, 2, 3]) == 6\n\ndef test_b():\n    assert total([10]) == 10\n",
    "loops": "assert all(map(lambda n: total([n]) == n, [6, 10]))\nassert list(map(total, [[1], [2]])) == [1, 2]\n",
}
ALL_TESTS: dict[str, Any] = {"data": DATA, **SOURCES}


def grade(solution: str, tests: Any = DATA, entry_point: str = "total", **keywords: Any) -> GradeReport:
    return grade_code(solution, tests, entry_point=entry_point, **{"limits": LIMITS, **keywords})


def answer(source: str, expected: Any, arguments: Sequence[Any] = ()) -> bool:
    """Whether a function `f` with this body gives what is expected."""
    return grade(source, [{"args": list(arguments), "expected": expected}], "f").passed


# --- cheats and honest solutions


@pytest.mark.parametrize("kind", ALL_TESTS)
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_does_not_pass(name: str, kind: str) -> None:
    report = grade(CHEATS[name], ALL_TESTS[kind], limits=QUICK if name.startswith("time:") else LIMITS)
    assert not report.passed
    assert report.status != ExecStatus.SANDBOX_DIED
    assert report.failures or report.message
    assert report.message.isprintable()
    assert report.seconds < 20


def test_a_solution_cannot_end_the_loops_of_the_tests() -> None:
    for kind in ("StopIteration", "StopAsyncIteration"):
        report = grade(
            CHEATS["iteration: ends the test's loop"].replace("StopIteration", kind), "assert all(map(total, [[1]]))"
        )
        assert [failure.error for failure in report.failures] == [f"RuntimeError: {kind}: "]


def test_a_cheat_leaves_nothing_for_the_next_grading() -> None:
    with open_sandbox() as neighbour:
        assert neighbour.exec("x = 1").ok
        for name in ("patch: built-in functions", "processes: a bomb", "descriptors: noise on all"):
            assert not grade(CHEATS[name]).passed
            assert grade(HONEST["plain"]).passed
        assert neighbour.exec("x").stdout == "1\n"


@pytest.mark.parametrize("kind", ALL_TESTS)
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_solution_passes(name: str, kind: str) -> None:
    report = grade(HONEST[name], ALL_TESTS[kind])
    assert report.passed, report
    assert (report.status, report.message, report.failures) == ("ok", "", ())
    assert report.total == {"data": 3, "check": 1, "asserts": 3, "functions": 2, "loops": 2}[kind]


# --- what an answer may be


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(): return 10 ** 30", 10**30),
        ("def f(): return -(2 ** 62)", -(2**62)),
        ("def f(): return 0.1 + 0.2", 0.1 + 0.2),
        ("def f(): return 2.0", 2),
        ("def f(): return float('nan')", math.nan),
        ("def f(): return [float('nan'), float('inf')]", [math.nan, math.inf]),
        ("def f(): return (1, (2, (3, [4])))", (1, (2, (3, [4])))),
        ("def f(): return (1, 2)", [1, 2]),
        ("def f(): return {1: 'a', (2, 3): {'b': None}}", {1: "a", (2, 3): {"b": None}}),
        ("def f(): return {3, 1, 2}", {1, 2, 3}),
        ("def f(): return frozenset({1})", {1}),
        ("def f(): return b'a\\xff'", b"a\xff"),
        ("def f(): return 1 + 2j", 1 + 2j),
        ("def f(): return True", True),
        ("def f(): return None", None),
        ("def f(): return 'a\\ud800\\n\\0'", "a\ud800\n\0"),
        ("def f():\n    yield 1\n    yield 2", [1, 2]),
        ("def f(): return range(3)", [0, 1, 2]),
        ("def f(): return map(str, [1, 2])", ["1", "2"]),
        ("def f(): return {1: 2}.keys()", [1]),
        ("import collections\ndef f(): return collections.Counter('aab')", {"a": 2, "b": 1}),
        ("import collections\ndef f(): return collections.defaultdict(list, {1: [2]})", {1: [2]}),
        ("import collections\ndef f(): return [collections.OrderedDict(a=1), collections.deque([2])]", [{"a": 1}, [2]]),
        ("class L(list): pass\nclass S(set): pass\ndef f(): return L([S([1])])", [{1}]),
        (
            "class F(frozenset): pass\nclass B(bytes): pass\ndef f(): return [F([1]), B(b'x'), bytearray(b'y')]",
            [{1}, b"x", b"y"],
        ),
        ("import collections\ndef f(): return collections.namedtuple('P', 'x y')(1, 2)", (1, 2)),
        ("import enum\nclass E(enum.IntEnum):\n    A = 3\ndef f(): return E.A", 3),
        ("def f(): return list(range(100_000))", list(range(100_000))),
        ("def f(): return {i: str(i) for i in range(5000)}", {i: str(i) for i in range(5000)}),
    ],
)
def test_plain_values_come_back_as_they_are(source: str, expected: Any) -> None:
    assert answer(source, expected)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(): return True", 1),
        ("def f(): return 0", False),
        ("def f(): return '1'", 1),
        ("def f(): return [1, 2]", [2, 1]),
        ("def f(): return [1, 2]", {1, 2}),
        ("def f(): return {1: [2]}", {1: [3]}),
        ("def f(): return {1: 2, 3: 4}", {1: 2}),
        ("def f(): return {True: 1}", {1: 1}),
        ("def f(): return b'a'", "a"),
        ("def f(): return float('nan')", 0.0),
        ("def f(): return object()", "object"),
        ("def f(): return f", None),
        ("def f(): print(1)", "1"),
    ],
)
def test_values_that_differ_fail(source: str, expected: Any) -> None:
    assert not answer(source, expected)


def test_an_int_may_have_more_digits_than_python_prints() -> None:
    assert answer("def f(): return 10 ** 5000", 10**5000)
    report = grade("def f(): return 10 ** 5000", [{"args": [], "expected": 10**5001}], "f")
    assert (report.passed, report.failures[0].got_repr, report.failures[0].want_repr) == (False, "<int>", "<int>")


def test_numbers_of_numpy_are_numbers() -> None:
    with open_sandbox() as sandbox:
        if not sandbox.exec("import numpy").ok:
            stand_in = "class int64:\n    def tolist(self): return 3\nint64.__module__ = 'numpy'\n"
            assert answer(stand_in + "def f(): return [int64()]", [3])
            return
    assert answer("import numpy\ndef f(): return [numpy.int64(3), numpy.array([[1.5], [2]])]", [3, [[1.5], [2]]])


def test_a_value_that_lies_about_its_numpy_type_gains_nothing() -> None:
    liar = "class Liar:\n    def tolist(self): return self\n    def __eq__(self, other): return True\n"
    assert not answer(liar + "Liar.__module__ = 'numpy'\ndef f(): return Liar()", 3)


def test_arguments_arrive_as_they_are_and_fresh_for_each_test() -> None:
    arguments: list[Any] = [[1], (2, 3), {"a": {4}}, None, 5.5, "x", 10**20, b"y", math.inf]
    assert answer(
        "def f(*arguments): return [type(a).__name__ for a in arguments]",
        [type(a).__name__ for a in arguments],
        arguments,
    )
    shared = [1]
    tests = [{"args": [shared, shared], "expected": [1, 2]}, {"args": [shared, shared], "expected": [1, 2]}]
    assert grade("def f(a, b):\n    a.append(2)\n    b.append(3)\n    return a", tests, "f").passed
    assert shared == [1]


def test_what_a_solution_does_to_its_arguments_is_seen_by_tests_as_source() -> None:
    tests = (
        "data = [3, 1, 2]\nassert sort(data) is None\nassert data == [1, 2, 3]\nd = {'a': 1}\nsort(d)\nassert d == {}\n"
    )
    solution = "def sort(x):\n    x.sort() if isinstance(x, list) else x.clear()"
    assert grade(solution, tests, "sort").passed
    assert not grade("def sort(x): sorted(x)", tests, "sort").passed


def test_a_solution_may_be_a_class_or_give_functions() -> None:
    counter = "class Counter:\n    def __init__(self): self.n = 0\n    def add(self, k=1): self.n += k; return self.n\n"
    tests = "c = Counter()\nassert c.add() == 1\nassert c.add(k=4) == 5\nassert c.n == 5\n"
    assert grade(counter, tests, "Counter").passed
    assert grade("def adder(n): return lambda x: x + n", "assert adder(3)(4) == 7", "adder").passed
    assert not grade("def adder(n): return lambda x: x", "assert adder(3)(4) == 7", "adder").passed


# --- the report


def test_each_failure_is_reported() -> None:
    tests = [{"args": [n], "expected": 10 // n if n else "?"} for n in (5, 0, 3)]
    report = grade("def f(n): return 10 // n if n != 3 else 'a\\x1b'", tests, "f")
    assert (report.passed, report.total, report.status, report.message) == (False, 3, "ok", "")
    division, text = report.failures
    assert (division.index, division.args_repr, division.got_repr, division.want_repr) == (1, "(0,)", "", "'?'")
    assert division.error.startswith("ZeroDivisionError: ")
    assert (text.index, text.got_repr, text.want_repr, text.error) == (2, "'a\\x1b'", "3", "")


def test_the_first_failure_can_be_the_last() -> None:
    tests = [{"args": [n], "expected": n} for n in range(5)]
    report = grade("def f(n): return n if n < 2 else 1 // 0", tests, "f", stop_at_first_failure=True)
    assert (report.total, [failure.index for failure in report.failures]) == (5, [2])
    source = "assert f(0) == 0\nassert f(2) == 2\nassert f(3) == 3\n"
    report = grade("def f(n): return 0", source, "f", stop_at_first_failure=True)
    assert [(failure.index, failure.args_repr) for failure in report.failures] == [(1, "assert f(2) == 2")]


def test_failures_of_tests_as_source_name_their_line() -> None:
    report = grade("def total(numbers): return 6", SOURCES["asserts"])
    assert (report.passed, report.total, report.status) == (False, 3, "ok")
    assert [failure.index for failure in report.failures] == [1, 2]
    assert report.failures[0].args_repr == "assert total([10]) == 10"
    assert report.failures[0].error == "AssertionError: "
    report = grade("def total(numbers): return 6", "total([1])\nx = total([]) - 6\n1 / x\nassert True\n")
    assert [(failure.index, failure.args_repr) for failure in report.failures] == [(-1, "1 / x")]


@pytest.mark.parametrize("tests", [DATA, SOURCES["asserts"]], ids=["data", "source"])
@pytest.mark.parametrize(
    ("solution", "status", "message"),
    [
        ("def total(numbers) return 6", "load_error", "SyntaxError"),
        ("1 / 0", "load_error", "ZeroDivisionError: division by zero"),
        ("x = 1", "load_error", "NameError"),
        ("import time\ndef total(numbers): time.sleep(60)", "timeout", "timed out after 1 s"),
        ("def total(numbers):\n    x = []\n    while True: x.append(bytes(1 << 20))", "ok", ""),
        (
            "import os\nx = [os.fork() for _ in range(3)]\ny = bytearray(100 << 20)\nimport time\ntime.sleep(60)",
            "memory_limit",
            "256 MiB",
        ),
        ("while True: print('x' * 10_000)", "output_limit", "more than 1 MiB of output"),
    ],
)
def test_each_breach_has_its_status(solution: str, tests: Any, status: str, message: str) -> None:
    limits = Limits(timeout_s=1 if status == "timeout" else 20, memory_mib=256, output_hard_mib=1)
    report = grade(solution, tests, limits=limits)
    if solution == "x = 1" and isinstance(tests, str):
        status, message = "ok", ""  # every test fails
    assert not report.passed
    assert report.status == status, report
    assert message in report.message


def test_a_process_that_ends_itself_is_killed_or_a_failed_test() -> None:
    report = grade(CHEATS["exit: os._exit(0)"])
    assert (report.status, report.total, len(report.failures)) == ("killed", 3, 3)
    assert "exited with status 0" in report.message
    report = grade(CHEATS["exit: os._exit(0)"], SOURCES["asserts"])
    assert (report.status, len(report.failures)) == ("ok", 3)
    assert "the solution's process has ended" in report.failures[0].error


def test_messages_of_a_solution_are_printable_lines() -> None:
    for tests in (DATA, SOURCES["asserts"]):
        report = grade("def total(numbers): raise ValueError('a\\ud800\\x1b[2J\\nb')", tests)
        assert report.failures[0].error == "ValueError: a  [2J b"
        assert grade("raise ValueError('\\ud800')", tests).message == "ValueError:  "


# --- prelude, tests, infrastructure


def test_the_prelude_is_there_for_solution_and_tests() -> None:
    prelude = "import math\ndef double(x): return 2 * x\n"
    solution = "def f(x): return double(x) + math.floor(0.5)"
    assert grade(solution, [{"args": [2], "expected": 4}], "f", prelude=prelude).passed
    assert grade(solution, "assert f(3) == double(3)", "f", prelude=prelude).passed
    assert grade(solution, [{"args": [2], "expected": 4}], "f").failures[0].error.startswith("NameError")


def test_the_tests_prelude_is_not_the_solutions() -> None:
    prelude = "def double(x): return 2 * x\n"
    cheat = "def double(x): return 0\ndef f(x): return 0"
    assert not grade(cheat, "assert f(3) == double(3)", "f", prelude=prelude).passed


@pytest.mark.parametrize("tests", [[{"args": [1]}], [{"expected": 1}], [1], [{"args": 1, "expected": 1}]])
def test_a_malformed_test_is_an_error(tests: Any) -> None:
    with pytest.raises(TaskError, match=r'tests\[0\]: must be \{"args"'):
        grade("def f(x): return x", tests, "f")


def test_tests_that_do_not_run_are_no_verdict() -> None:
    with pytest.raises(TaskError, match="the tests or their prelude do not run: SyntaxError"):
        grade("def f(x): return x", "assert f(1) ==", "f")


class DeadRunner:
    """Infrastructure that has failed."""

    def call_function(self, *arguments: Any, **keywords: Any) -> FunctionAnswers:
        return FunctionAnswers(
            status=ExecStatus.SANDBOX_DIED, message="gone", load_error=None, answers=(Answer(value=6),) * 3, seconds=0.0
        )

    def run_tests(self, *arguments: Any, **keywords: Any) -> TestsOutcome:
        return TestsOutcome(
            status=ExecStatus.SANDBOX_DIED,
            message="gone",
            load_error=None,
            total=0,
            results=(),
            broken=None,
            flaw="",
            seconds=0.0,
        )

    def run_program(self, *arguments: Any, **keywords: Any) -> ProgramOutcome:
        return ProgramOutcome(
            status=ExecStatus.SANDBOX_DIED, message="gone", exit_status=None, stdout=b"6\n", is_cut=False, seconds=0.0
        )


PROGRAM_TESTS = [{"stdin": "1 2 3\n", "stdout": "6\n"}]


@pytest.mark.parametrize("tests", [DATA, SOURCES["asserts"], PROGRAM_TESTS], ids=["data", "source", "programs"])
def test_a_failure_of_infrastructure_is_no_verdict(tests: Any) -> None:
    with pytest.raises(SandboxDied, match="gone"):
        grade_code("", tests, entry_point="total", sandbox=DeadRunner())


# --- answers that no honest session sends


FORGE = """
import json, os, struct, sys
def forge(body):
    frame = sys._getframe()
    while 'id' not in (frame.f_locals.get('head') or {}): frame = frame.f_back
    head = json.dumps({'id': frame.f_locals['head']['id'], 's': 'ok', 'x': 0, 'm': ''}).encode()
    data = struct.pack('!II', len(head), len(body)) + head + body
    while data: data = data[os.write(3, data):]
    os._exit(0)
"""
SAME_HASHES = """b'[null,[[0,{"$":"KIND","v":[' + b','.join(
    b'ITEM' % (((1 << 61) - 1) * i) for i in range(2, 200_000)
) + b']},0]]]'"""


@pytest.mark.parametrize(
    "body",
    [
        "b'[null,[[0,' + b'[' * 900 + b']' * 900 + b',0],[0,10,0],[0,0,0]]]'",
        "b'[null,[[0,' + b'{\"$\":\"t\",\"v\":[' * 400 + b']}' * 400 + b',0]]]'",
        "b'[null,[[0,{\"$\":\"c\",\"v\":[' + b'9' * 400 + b',0]},0]]]'",
        "b'[null,[[0,{\"$\":\"f\",\"v\":' + b'9' * 400 + b'},0]]]'",
        'b\'[null,[[0,{"$":[],"v":0},0]]]\'',
        'b\'[null,[[0,{"$":"d","v":[[1]]},0]]]\'',
        'b\'[null,[[0,{"$":"s","v":[[1]]},0]]]\'',
        "b'[' + b'[' * 800 + b']' * 800 + b',[[0,6,0],[0,10,0],[0,0,0]]]'",
        "b'[null,[[0,[' + b'[],' * 3_000_000 + b'[]],0]]]'",
        SAME_HASHES.replace("KIND", "s").replace("ITEM", '{"$":"i","v":"%x"}'),
        SAME_HASHES.replace("KIND", "d").replace("ITEM", '[{"$":"i","v":"%x"},0]'),
        "b'[null,[[0,6,[]],[0,10,0],[0,0,0]]]'",
        "b'[null,[[0,6],[0,10],[0,0]]]'",
        "b'\\xff\\xfe'",
        "b'{}'",
        "b'[null,[[0,6,0],[0,10,0],[0,0,0]]] '",
        "b''",
    ],
)
def test_a_forged_answer_is_a_failure_and_costs_little(body: str) -> None:
    started = time.process_time()
    report = grade(f"{FORGE}\ndef total(numbers): forge({body})")
    assert not report.passed
    assert all(len(failure.got_repr) <= 300 for failure in report.failures)
    assert time.process_time() - started < 5


def test_a_session_can_claim_no_impossible_time() -> None:
    _, answers = read_answers(b"[null,[[0,1,NaN],[0,1,-5],[0,1,1e400],[1,2,0.5]]]")
    assert [seconds for _, _, seconds in answers] == [0.0, 0.0, 1e9, 0.5]


def test_values_are_compared_without_hashing_what_dicts_hold() -> None:
    assert same({1: [{2}], "a": {3: (4, math.nan)}}, {"a": {3: [4, math.nan]}, 1: [{2}]})
    assert not same({1: [{2}]}, {1: [{3}]})
    assert not same({1: 2}, {True: 2})

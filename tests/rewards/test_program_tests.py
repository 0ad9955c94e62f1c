"""Verdicts on whole programs: what passes, how output is compared, and what no program sees."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from palaestra.core.errors import TaskError
from palaestra.rewards import GradeReport, TestStatus, grade_code
from palaestra.sandboxes import ExecStatus, Limits

_HERE = Path(__file__)
_PROGRAMS = runpy.run_path(str(_HERE.with_name("programs.py")))
RIGHT: dict[str, str] = _PROGRAMS["RIGHT"]
WRONG: dict[str, str] = _PROGRAMS["WRONG"]
CHEATS: dict[str, str] = runpy.run_path(str(_HERE.with_name("solutions.py")))["CHEATS"]
LIMITS = Limits(timeout_s=10, grace_s=0.1, cpu_s=3, memory_mib=256, processes=16)
QUICK = Limits(timeout_s=1, grace_s=0.1, processes=16)
TESTS = [{"stdin": "1 2\n3 4\n", "stdout": "3\n7\n"}, {"stdin": "10 -4", "stdout": "6"}]


def grade(program: str, tests: Any = TESTS, **keywords: Any) -> GradeReport:
    return grade_code(program, tests, **{"limits": LIMITS, **keywords})


def verdict(program: str, stdin: str, stdout: str, **test: Any) -> GradeReport:
    return grade(program, [{"stdin": stdin, "stdout": stdout, **test}])


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_passes(name: str) -> None:
    report = grade(RIGHT[name])
    assert report.passed, report
    assert (report.status, report.message, report.failures, report.total) == ("ok", "", (), 2)
    assert [result.status for result in report.results] == ["passed", "passed"]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_fails(name: str) -> None:
    report = grade(WRONG[name])
    assert (report.passed, report.status, report.total) == (False, "ok", 2)
    assert report.failures[0].error
    assert all(failure.error.isprintable() for failure in report.failures)


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_of_functions_is_no_right_program(name: str) -> None:
    program = f"{CHEATS[name]}\nprint(total([int(word) for word in input().split()]))"
    tests = [{"stdin": "1 2 3\n", "stdout": "6\n"}, {"stdin": "10\n", "stdout": "10\n"}]
    report = grade(program, tests, limits=QUICK if name.startswith("time:") else LIMITS)
    assert not report.passed
    assert report.failures
    assert report.seconds < 20


# --- how a program ends


@pytest.mark.parametrize(
    ("program", "status", "error"),
    [
        ("print(1)", "failed", "line 1 of the output differs"),
        ("print(3)\nprint(7)\nprint(1)", "failed", "the output goes on in line 3"),
        ("print(3)", "failed", "the output ends before line 2"),
        ("raise ValueError('x\\x1b')", "error", "ValueError: x "),
        ("exit(5)", "error", "the program exited with status 5"),
        ("import os; os._exit(5)", "killed", "the session's process exited with status 5"),
        ("import os; os.abort()", "killed", "was killed by signal"),
        ("while True: pass", "timeout", "timed out after 0.5 s"),
        ("while True: print('x' * 10_000)", "output_limit", "more than 1 MiB of output"),
        ("x = [bytes(1 << 20) for _ in range(1000)]", "memory_limit", "MemoryError"),
        ("open('x', 'wb').write(bytes(100 << 20))", "disk_limit", ""),
    ],
)
def test_each_end_has_its_status(program: str, status: str, error: str) -> None:
    limits = Limits(timeout_s=10, memory_mib=256, output_hard_mib=1)
    report = grade(program, limits=limits, test_timeout_s=0.5 if status == "timeout" else None)
    assert (report.passed, report.status) == (False, "ok")
    assert (report.results[0].status, report.results[0].index) == (status, 0)
    assert error in report.results[0].error
    assert "session was killed" not in report.results[0].error
    assert report.failures[0].error == report.results[0].error


def test_a_failure_shows_input_and_outputs() -> None:
    failure = grade("print('a\\x1b' * 1000)").failures[0]
    assert (failure.index, failure.args_repr, failure.want_repr) == (0, "'1 2\\n3 4\\n'", "'3\\n7\\n'")
    assert failure.got_repr.startswith("'a\\x1ba")
    assert len(failure.got_repr) <= 300


def test_time_is_shared_or_for_each_test() -> None:
    program = "import time\nn = int(input())\nif n < 0: time.sleep(60)\nprint(n)"
    tests = [{"stdin": f"{n}\n", "stdout": f"{n}\n"} for n in (1, -1, 2, -2, 3)]
    report = grade(program, tests, test_timeout_s=0.3)
    assert [result.status for result in report.results] == ["passed", "timeout", "passed", "timeout", "passed"]
    assert (report.passed, report.status, [failure.index for failure in report.failures]) == (False, "ok", [1, 3])
    report = grade(program, tests, limits=QUICK)
    assert [result.status for result in report.results] == ["passed", "timeout", "not_run", "not_run", "not_run"]
    assert (report.status, report.message) == ("timeout", "timed out after 1 s")
    assert 0.9 < report.seconds < 3


def test_the_first_failure_can_be_the_last() -> None:
    tests = [{"stdin": "", "stdout": text} for text in "112131"]
    report = grade("print(1)", tests, stop_at_first_failure=True)
    statuses = ["passed", "passed", "failed", "not_run", "not_run", "not_run"]
    assert [result.status for result in report.results] == statuses
    assert (report.total, [failure.index for failure in report.failures]) == (6, [2])


# --- how output is compared


@pytest.mark.parametrize(
    ("got", "want", "tolerance", "is_right"),
    [
        ("a\nb\n", "a\nb", None, True),
        ("a  \r\nb\t\n\n \n", "a\nb\n", None, True),
        ("", "\n\n", None, True),
        ("a\n\nb\n", "a\nb\n", None, False),
        ("\na\n", "a\n", None, False),
        (" a\n", "a\n", None, False),
        ("a b\n", "a  b\n", None, False),
        ("A\n", "a\n", None, False),
        ("1.0\n", "1\n", None, False),
        ("\u00e9\u4e2d\n", "\u00e9\u4e2d\n", None, True),
        ("1.0000001 x\n", "1 x\n", 1e-6, True),
        ("1000000.5\n", "1000000\n", 1e-6, True),
        ("1.1\n", "1\n", 1e-6, False),
        ("1 2\n", "1\n2\n", 1e-6, False),
        ("nan\n", "1\n", 1e-6, False),
        ("inf\n", "1\n", 1e-6, False),
        ("x\n", "1\n", 1e9, False),
        ("1\n", "x\n", 1e9, False),
        ("9" * 5000 + "\n", "1\n", 1e300, False),
    ],
)
def test_output_is_compared_as_judges_do(got: str, want: str, tolerance: float | None, is_right: bool) -> None:
    test = {} if tolerance is None else {"tolerance": tolerance}
    assert verdict(f"import sys\nsys.stdout.write({got!r})", "", want, **test).passed is is_right


def test_long_output_is_compared_to_its_end() -> None:
    lines = "\n".join(map(str, range(40_000)))
    assert len(lines) > 3 * 64 * 1024
    counting = "print(*range(40_000), sep='\\n')"
    assert verdict(counting, "", lines).passed
    wrong = counting.replace("range(40_000)", "range(20_000), 'x', *range(20_001, 40_000)")
    assert verdict(wrong, "", lines).results[0].error == "line 20001 of the output differs"


def test_output_that_was_cut_is_said_to_be() -> None:
    kept = "print('a' * 32768 + '\\n... [5 bytes left out] ...\\n' + 'b' * 32768)"
    for program in ("print('a' * 1_000_000)", kept, "print('1' + ' ' * 1_000_000)"):
        result = verdict(program, "", "1").results[0]
        assert (result.status, "was cut" in result.error) == ("output_limit", True)
    assert verdict("print('1' + ' ' * 10_000)", "", "1").passed


def test_a_program_cannot_print_the_mark_of_a_cut() -> None:
    head, tail = "a" * 32768, "b" * 32768
    expected = f"{head}\n... [1000 bytes left out] ...\n{tail}"
    assert not verdict(f"print({head!r} + 'x' * 1000 + {tail!r}, end='')", "", expected).passed
    assert verdict(f"print({expected!r})", "", expected).passed


def test_a_long_input_arrives() -> None:
    numbers = "\n".join(map(str, range(300_000)))
    assert verdict("import sys\nprint(sum(map(int, sys.stdin)))", numbers, str(sum(range(300_000)))).passed
    program = "import sys\ntext = sys.stdin.read()\nsys.stdin.seek(0)\nprint(text == sys.stdin.read(), len(text))"
    assert verdict(program, numbers, f"True {len(numbers)}").passed


# --- what a program sees


def test_a_program_sees_nothing_of_other_tests() -> None:
    program = (
        "import glob, os, sys\n"
        "text = input()\n"
        "folders = [os.environ['HOME'], os.environ['TMPDIR']]\n"
        "assert os.getcwd() == folders[0], os.getcwd()\n"
        "assert [os.listdir(folder) for folder in folders] == [['main.py'], []]\n"
        "for folder in folders: open(folder + '/seen', 'w').write(text)\n"
        "if os.fork() == 0:\n    import time; time.sleep(60)\n"
        "print(len(glob.glob('/proc/[0-9]*')) <= 3, text)\n"
    )
    tests = [{"stdin": f"{n}\n", "stdout": f"True {n}\n"} for n in range(5)]
    assert grade(program, tests).passed


def test_the_prelude_is_loaded_before_a_program() -> None:
    report = grade(
        "print(double(int(input())))", [{"stdin": "4", "stdout": "8"}], prelude="def double(x): return 2 * x"
    )
    assert report.passed
    with pytest.raises(TaskError, match="the prelude does not run: ZeroDivisionError"):
        grade("print(1)", [{"stdin": "4", "stdout": "1"}], prelude="1 / 0")
    assert not grade("1 / 0", [{"stdin": "4", "stdout": "8"}], prelude="x = 1").passed


# --- malformed tests


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ([], "tests: there are none"),
        (" \n", "tests: there are none"),
        ([{"stdin": ""}], r'tests\[0\]: must be \{"args"'),
        ([{"stdin": "", "stdout": ""}, {"stdin": 5, "stdout": ""}], r"tests\[1\]: must be"),
        ([{"input": "", "output": ""}], r"tests\[0\]: must be"),
        ([{"stdin": "", "stdout": ""}, {"args": [], "expected": 1}], r"tests\[1\]: a data test among program tests"),
        ([{"stdin": "", "stdout": "", "args": [], "expected": 1}], r"tests\[0\]: must be"),
        ([{"stdin": "", "stdout": "", "tolerance": -1}], r"tests\[0\]: tolerance=-1: must be a number from 0"),
        ([{"stdin": "", "stdout": "", "tolerance": True}], r"tests\[0\]: tolerance=True"),
        (
            [{"stdin": "", "stdout": "x" * (2 << 20)}],
            r"tests\[0\]: its stdout does not fit into limits.output_hard_mib=2",
        ),
        ([{"stdin": "x" * (1 << 20), "stdout": ""}], r"tests\[0\]: its stdin does not fit into limits.tmp_mib=1"),
    ],
)
def test_a_malformed_test_is_an_error(tests: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        grade("print(1)", tests, limits=Limits(output_hard_mib=2, tmp_mib=1), entry_point="f")


def test_only_programs_need_no_entry_point() -> None:
    assert grade("print(1)", [{"stdin": "", "stdout": "1"}], entry_point="unused").passed
    for tests in ([{"args": [], "expected": 1}], "assert f() == 1"):
        with pytest.raises(TaskError, match="entry_point: must be the name of the function"):
            grade("def f(): return 1", tests)


def test_statuses_are_those_of_executions() -> None:
    own = {"passed", "failed", "load_error", "not_run"}
    assert {status.value for status in TestStatus} - own < {status.value for status in ExecStatus}

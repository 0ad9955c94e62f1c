"""What a run shows of the visible tests agrees with what the hidden tests would say, in the sandbox and in-process."""

from collections.abc import Iterator

import pytest

from palaestra.envs.program_runner import InProcessRunner, SandboxRunner
from palaestra.sandboxes import Limits, SandboxConfig

NAN = float("nan")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxRunner]:
    runner = SandboxRunner(SandboxConfig(), Limits())
    yield runner
    runner.close()


@pytest.mark.parametrize(
    ("answer", "expected", "passes"),
    [
        ("1.0", 1, True),
        ("True", 1, False),
        ("1", True, False),
        ("(1, [2.0])", [1, [2]], True),
        ("map(abs, [-1, 2])", [1, 2], True),
        ("range(2)", [0, 1], True),
        ("'ab'", ["a", "b"], False),
        ("{'b': 1, 'a': (2,)}", {"a": [2], "b": 1}, True),
        ("{1: 2}", {"1": 2}, False),
        ("{(1, 2): 3}", {"a": 1}, False),
        ("float('nan')", NAN, True),
        ("[float('inf')]", [float("inf")], True),
        ("None", None, True),
        ("x.append(3) or x", [1, 3], True),
    ],
)
def test_visible_and_hidden_tests_agree(sandbox: SandboxRunner, answer: str, expected: object, passes: bool) -> None:
    program, tests = f"def f(x, y):\n    return {answer}", [{"args": [[1], NAN], "expected": expected}]
    assert sandbox.grade(program, "f", tests, "").passed == passes
    for runner in (sandbox, InProcessRunner()):
        report = runner.run(program, "f", tests)
        assert report.passed == passes
        assert report.error == ""
    assert passes or report.verdict.startswith("f([1],NaN)\ngot ")


def test_one_line_says_what_went_wrong_with_text_that_is_none(sandbox: SandboxRunner) -> None:
    assert "UnicodeDecodeError" in sandbox.run("\ud800", "f", []).error


def test_a_program_that_spoils_the_visible_tests_spoils_one_answer_and_no_grade(sandbox: SandboxRunner) -> None:
    wrong, tests = "def f(x):\n    return 0", [{"args": [1], "expected": 1}]
    sandbox.reset()
    assert sandbox.run(wrong, "f", tests).verdict == "f(1)\ngot 0\nwant 1"
    assert "TypeError" in sandbox.run(f"__show_tests = None\n{wrong}", "f", tests).error
    assert sandbox.run(wrong, "f", tests).verdict == "f(1)\ngot 0\nwant 1"
    lying = f"__show_tests = lambda *_: 'ok'\n{wrong}"
    assert sandbox.run(lying, "f", tests).verdict == "ok"
    assert not sandbox.grade(lying, "f", tests, "").passed
    sandbox.reset()
    assert sandbox.run(wrong, "f", tests).verdict == "f(1)\ngot 0\nwant 1"

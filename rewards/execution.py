"""Grading code by running it against hidden tests that it never shares a process with.

Tests have one of three shapes: calls with the values that they should give (`data_tests`), source text with asserts
(`source_tests`), or inputs of a whole program with what it should print (`program_tests`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from ..core.errors import SandboxDied, TaskError
from ..sandboxes.base import ExecStatus, Limits, SandboxConfig, check_seconds
from ..sandboxes.code_runner import CodeRunner
from ..sandboxes.opening import open_runner
from .data_tests import grade_calls
from .program_tests import grade_programs
from .report import GradeReport
from .source_tests import grade_source

Shape = Literal["source", "data", "program"]


def grade_code(
    solution: str,
    tests: str | Sequence[Mapping[str, Any]],
    *,
    entry_point: str | None = None,
    prelude: str = "",
    limits: Limits | None = None,
    sandbox: str | SandboxConfig | CodeRunner = "local",
    isolation: str = "auto",
    image: str | None = None,
    stop_at_first_failure: bool = False,
    test_timeout_s: float | None = None,
    same_session: bool = False,
) -> GradeReport:
    """Gives the verdict of hidden tests on a solution.

    Args:
        solution: Untrusted source that defines `entry_point`, or is a whole program.
        tests: Data tests `[{"args": [...], "expected": ...}, ...]`; program tests `[{"stdin": "...", "stdout": "..."},
            ...]`, each with an optional `"tolerance"` for numbers; or source text with asserts, `test_...` functions or
            `check(candidate)`.
        entry_point: Name of the function under test; program tests need none.
        prelude: The task's own trusted source (helpers, imports), loaded before the solution.
        limits: What the solution may use; `timeout_s` is for all tests together, the rest for each execution.
        sandbox: Backend, a whole configuration, or a runner object.
        isolation: See `open_sandbox`.
        image: See `open_sandbox`.
        stop_at_first_failure: Report no failure after the first; later tests count as not run.
        test_timeout_s: Makes each test an execution of its own, with this time limit. What ends one (time, memory, an
            exit) decides that test alone; the next ones meet a freshly loaded solution. Without it, data tests share
            one execution, and so do tests as source text: what ends it ends them all. Programs always run one by one.
        same_session: Run tests as source text in the solution's own process. For tests that need the solution's
            classes, or pass functions to it; a solution that means to can then forge the verdict, and the report says
            so.

    Raises:
        SandboxDied: Infrastructure failed; there is no verdict.
        SandboxUnavailable: This machine cannot isolate code that way.
        TaskError: A test is malformed, or the tests or their prelude do not run whatever the solution is.
    """
    shape = _shape(tests)
    if entry_point is None and shape != "program" and not same_session:
        raise TaskError("entry_point: must be the name of the function under test")
    if same_session and shape != "source":
        raise TaskError("same_session=True: only tests as source text can run in the solution's session")
    if test_timeout_s is not None:
        check_seconds("test_timeout_s", test_timeout_s)
    if isinstance(sandbox, str):
        sandbox = SandboxConfig(backend=sandbox, isolation=isolation, image=image)
    runner = open_runner(sandbox, limits) if isinstance(sandbox, SandboxConfig) else sandbox
    sources = [prelude, solution] if prelude else [solution]
    stop, timeout_s = stop_at_first_failure, test_timeout_s
    if isinstance(tests, str):
        report = grade_source(runner, sources, tests, entry_point, prelude, stop, timeout_s, same_session)
    elif shape == "data":
        report = grade_calls(runner, sources, tests, entry_point, stop, timeout_s)
    else:
        report = grade_programs(runner, sources, tests, limits or Limits(), stop, timeout_s)
    if prelude and not report.passed and (report.status != ExecStatus.OK or shape == "program"):
        _check_prelude(runner, prelude)
    return report


def _shape(tests: str | Sequence[Mapping[str, Any]]) -> Shape:
    """Gives the shape of well-formed tests.

    Raises:
        TaskError: They are not; the message names the first test that is wrong.
    """
    if not tests or (isinstance(tests, str) and not tests.strip()):
        raise TaskError("tests: there are none")
    if isinstance(tests, str):
        return "source"
    first = _shape_of(0, tests[0])
    for index, test in enumerate(tests):
        shape = _shape_of(index, test)
        if shape != first:
            raise TaskError(f"tests[{index}]: a {shape} test among {first} tests")
    return first


def _shape_of(index: int, test: object) -> Shape:
    fields = cast("Mapping[str, Any]", test if isinstance(test, Mapping) else {})
    is_data = isinstance(fields.get("args"), (list, tuple)) and "expected" in fields
    is_program = isinstance(fields.get("stdin"), str) and isinstance(fields.get("stdout"), str)
    if is_data == is_program:
        raise TaskError(
            f'tests[{index}]: must be {{"args": [...], "expected": ...}} or {{"stdin": "...", "stdout": "..."}}'
        )
    tolerance: Any = fields.get("tolerance")
    if is_program and tolerance is not None and not (type(tolerance) in (int, float) and 0 <= tolerance < math.inf):
        raise TaskError(f"tests[{index}]: tolerance={tolerance!r}: must be a number from 0")
    return "data" if is_data else "program"


def _check_prelude(runner: CodeRunner, prelude: str) -> None:
    """Raises TaskError if a prelude fails by itself. What the solution's process says about that is no evidence."""
    given = runner.call_function([prelude], None, [])
    if given.status is ExecStatus.SANDBOX_DIED:
        raise SandboxDied(given.message)
    if given.status is not ExecStatus.OK or given.load_error is not None:
        raise TaskError(f"the prelude does not run: {given.load_error or given.message}")

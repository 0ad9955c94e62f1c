"""One row of each shape in which data sets of programming tasks come, graded as it is."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from palaestra.rewards import GradeReport, grade_code

ROWS: dict[str, dict[str, Any]] = {
    row["shape"]: row
    for row in map(json.loads, Path(__file__).with_name("task_rows.jsonl").read_text(encoding="utf-8").splitlines())
}


def pairs(inputs: list[str], outputs: list[str]) -> list[dict[str, str]]:
    return [{"stdin": stdin, "stdout": stdout} for stdin, stdout in zip(inputs, outputs, strict=True)]


def human_eval(row: dict[str, Any], solution: str, **keywords: Any) -> GradeReport:
    prompt = row["prompt"]
    return grade_code(prompt + solution, row["test"], entry_point=row["entry_point"], prelude=prompt, **keywords)


def mbpp(row: dict[str, Any], solution: str, **keywords: Any) -> GradeReport:
    (name,) = [node.name for node in ast.parse(row["code"]).body if isinstance(node, ast.FunctionDef)]
    tests = "\n".join(row["test_list"] + row["challenge_test_list"])
    return grade_code(solution, tests, entry_point=name, prelude=row["test_setup_code"], **keywords)


def apps(row: dict[str, Any], solution: str, **keywords: Any) -> GradeReport:
    return grade_code(solution, pairs(**row["input_output"]), **keywords)


def code_contests(row: dict[str, Any], solution: str, **keywords: Any) -> GradeReport:
    tests = [pair for kind in ("public_tests", "private_tests") for pair in pairs(*row[kind].values())]
    return grade_code(solution, tests, **keywords)


GRADERS = {"human_eval": human_eval, "mbpp": mbpp, "apps": apps, "code_contests": code_contests}
RIGHT = {
    "human_eval": [ROWS["human_eval"]["canonical_solution"]],
    "mbpp": [ROWS["mbpp"]["code"]],
    "apps": ROWS["apps"]["solutions"],
    "code_contests": ROWS["code_contests"]["solutions"]["solution"],
}
TOTALS = {"human_eval": 1, "mbpp": 4, "apps": 3, "code_contests": 2}


@pytest.mark.parametrize("test_timeout_s", [None, 5.0], ids=["together", "one by one"])
@pytest.mark.parametrize("shape", GRADERS)
def test_a_row_is_graded(shape: str, test_timeout_s: float | None) -> None:
    row, grade = ROWS[shape], GRADERS[shape]
    for solution in RIGHT[shape]:
        report = grade(row, solution, test_timeout_s=test_timeout_s)
        assert report.passed, report
        assert report.total == len(report.results) == TOTALS[shape]
    for solution in ["", *row["wrong"]]:
        report = grade(row, solution, test_timeout_s=test_timeout_s)
        assert not report.passed, solution
        assert report.total == len(report.results) == TOTALS[shape]

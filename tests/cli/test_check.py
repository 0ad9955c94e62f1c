"""`palaestra check`: findings, exit status, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.syspath_prepend(repository / "examples")
    monkeypatch.syspath_prepend(repository / "tests" / "envs")


def test_an_environment_without_findings_gives_status_0(palaestra: Any) -> None:
    result = palaestra("check", "own_environment:Market-v0", "-n", 10)
    assert result.exit_code == 0, result.output
    assert "  1 ok   making: is a tool env that its id makes" in result.stdout
    assert "steps_per_s" in result.stdout
    assert "own_environment:Market-v0: 39 passed, 0 failed, 1 skipped" in result.stdout


def test_a_finding_says_what_to_write_and_gives_status_1(palaestra: Any) -> None:
    result = palaestra("check", "broken_environments:BrokenUndocumented-v0", "--only", "making")
    assert result.exit_code == 1, result.output
    assert "  7 FAIL making: documents its tools" in result.stdout
    assert "found: tool weigh: argument thing is not described" in result.stdout
    assert "write: Give each tool a docstring" in result.stdout


def test_a_check_that_hangs_is_a_finding(palaestra: Any) -> None:
    result = palaestra("check", "broken_environments:BrokenSleepy-v0", "--only", "24", "--timeout", "0.2")
    assert result.exit_code == 1, result.output
    assert "found: it was still running after 0.2 s" in result.stdout


def test_the_report_is_json_for_programs(palaestra: Any) -> None:
    result = palaestra("check", "broken_environments:BrokenForgiving-v0", "--only", "failures,8", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["ok"], told["env_id"]) == (False, "broken_environments:BrokenForgiving-v0")
    assert [row["number"] for row in told["results"]] == [8, 30, 31, 32]
    assert [row["outcome"] for row in told["results"]] == ["passed", "passed", "failed", "passed"]
    assert set(told["results"][0]) == {"number", "subject", "name", "outcome", "finding", "fix", "seconds"}


def test_a_plain_id_with_keywords_is_played_by_our_own_agents(palaestra: Any) -> None:
    arguments = ["--only", "agents", "-n", 4, "--env", 'families=["repair"]', "--json"]
    result = palaestra("check", "CodeSandbox-v0", *arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["figures"]
    assert figures["oracle (repair)"] == 1.0
    assert figures["null-test-reader (repair)"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["CodeSandbocks-v0"], "did you mean 'CodeSandbox-v0'?"),
        (["nowhere:Id-v0"], "no environment 'nowhere:Id-v0'"),
        (["own_environment:Market-v0", "--only", "determinsm"], "did you mean 'determinism'?"),
        (["own_environment:Market-v0", "--env", "max_turnz=3"], "did you mean 'max_turns'?"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(palaestra: Any, fails: Any, arguments: list[str], said: str) -> None:
    fails(palaestra("check", *arguments), said)

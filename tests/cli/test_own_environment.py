"""`module:Id-v0` of one's own in every command that takes an id: `envs`, `demos`, `eval`, `train`, `check`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from palaestra.core.records import episode_from_record, read_records

MARKET = "own_environment:Market-v0"
TINY = (
    "processes=1", "demos.n=40", "vocab_size=300", "model.hidden_size=16", "model.intermediate_size=32",
    "model.layers=1", "model.heads=2", "grpo.steps=1", "grpo.groups_per_step=2", "grpo.group_size=2",
    "env.max_turns=2", "rollout.max_turn_tokens=8", "evaluation.n=6", "report=false",
)  # fmt: skip
OWN = (f"env.id={MARKET}", "env.families=[]", "env.levels=[]", "demos.mix={careful=1, hasty=1}")


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch, repository: Path) -> str:
    monkeypatch.syspath_prepend(repository / "examples")
    return MARKET


def test_envs_shows_it(palaestra: Any, market: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    result = palaestra("envs", market)
    assert result.exit_code == 0, result.output
    for word in ("price(name)", "pay(amount)", "baskets", "levels 1 to 3", "max_turns=10", "split='train'"):
        assert word in result.stdout


@pytest.mark.parametrize("processes", [1, 2])
def test_demos_are_made_by_its_own_experts(palaestra: Any, market: str, tmp_path: Path, processes: int) -> None:
    output = tmp_path / "market.jsonl"
    result = palaestra("demos", market, "-n", 40, "-o", output, "--processes", processes)
    assert result.exit_code == 0, result.output
    episodes = [episode_from_record(record) for record in read_records(output, "episodes")]
    assert {episode.info["expert"] for episode in episodes} == {"careful", "hasty"}
    assert all(episode.success for episode in episodes if episode.info["expert"] == "careful")


def test_demos_name_the_experts_that_there_are(palaestra: Any, fails: Any, market: str) -> None:
    fails(palaestra("demos", market, "--experts", "carefull=1"), "did you mean 'careful'?")
    fails(palaestra("demos", market, "--families", "basket"), "did you mean 'baskets'?")


@pytest.mark.parametrize(("agent", "success"), [("oracle", 1.0), ("careful", 1.0), ("null-calls-pay", 0.0)])
def test_eval_plays_its_own_agents(palaestra: Any, market: str, tmp_path: Path, agent: str, success: float) -> None:
    figures = tmp_path / "figures.json"
    result = palaestra("eval", market, "--agent", agent, "-n", 10, "--levels", "2", "--json", figures)
    assert result.exit_code == 0, result.output
    assert json.loads(figures.read_text())["success"] == success


def test_eval_names_the_agents_that_there_are(palaestra: Any, fails: Any, market: str) -> None:
    fails(palaestra("eval", market, "--agent", "orakle", "-n", 2), "did you mean 'oracle'?")


def test_a_policy_is_trained_in_it_and_evaluated(palaestra: Any, fails: Any, market: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = palaestra("train", "quickstart", f"run={folder}", *TINY, *OWN)
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "summary.json").read_text())["heldout_n"] == 6
    stored = read_records(folder / "episodes" / "policy_heldout.jsonl", "episodes")
    assert {episode_from_record(record).family for record in stored} == {"baskets"}
    result = palaestra("eval", market, "--model", folder / "policy", "-n", 4, "--greedy")
    assert result.exit_code == 0, result.output
    assert f"{folder}/recipe.toml" in result.stdout.replace("\n", ""), "the run's settings are found by the id"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["env.families=['compose']"], "families='compose'"),
        (["demos.mix={carefull=1}"], "demos.mix: expert 'carefull'; did you mean 'careful'?"),
        (["env.id=nowhere:Market-v0"], "no environment 'nowhere:Market-v0'"),
    ],
)
def test_a_recipe_that_does_not_fit_is_one_line(
    palaestra: Any, fails: Any, market: str, tmp_path: Path, changed: list[str], said: str
) -> None:
    fails(palaestra("train", "quickstart", f"run={tmp_path / 'run'}", *TINY, *OWN, *changed), said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["envs", "{id}"],
        ["demos", "{id}", "-n", "4", "--processes", "2"],
        ["eval", "{id}", "--agent", "careful", "-n", "4"],
        ["check", "{id}", "--only", "1,11"],
    ],
)
def test_a_module_in_the_current_folder_is_found(repository: Path, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "stall.py").write_text((repository / "examples" / "own_environment.py").read_text())
    words = [word.format(id="stall:Market-v0") for word in command]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "palaestra", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""The ablation of long tasks in miniature: one SFT policy, equal budgets, a table with the arms."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TINY = (
    "demos.n=40", "vocab_size=300", "model.hidden_size=16", "model.intermediate_size=32", "model.layers=1",
    "model.heads=2", "processes=1", "env.max_turns=3", "rollout.max_turn_tokens=8", "rollout.max_context_tokens=1024",
    "grpo.groups_per_step=1", "evaluation.n=6",
)  # fmt: skip


@pytest.mark.slow
def test_two_arms_in_miniature(repository: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    script = repository / "benchmarks" / "horizon.py"
    command = [sys.executable, script, "--quick", "--json", figures, "--runs", tmp_path / "runs", "--tokens", "300"]
    result = subprocess.run(
        [*command, "--only", "outcome", "branching", "--with", *TINY], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(figures.read_text())
    arms = {"outcome/0", "branching/0"}
    assert set(report["results"]) == {"sft/0", *arms}
    assert {report["results"][arm]["tokens"] // 100 for arm in arms} <= set(range(3, 6))  # the last step may go over
    assert report["targets"]["branching: success, sampled"]["value"] == [report["results"]["branching/0"]["sampled"]]
    assert report["targets"]["highest mean success, sampled"]["value"] in {arm.removesuffix("/0") for arm in arms}
    assert "branching: turns per episode" in result.stdout

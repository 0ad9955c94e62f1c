"""Run folders that cannot be written, disks that fill up, damaged models and run folders: one line each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from training_runs import TINY

from palaestra.agents.store import load_episodes
from palaestra.learners.checkpoint import CheckpointStore
from palaestra.learners.metrics import read_metrics
from palaestra.models.loading import load_model

SMALL = (*TINY, "processes=1", "demos.n=60", "grpo.checkpoint_every=1", "report=false")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Any]:
    """`small_disk(kib)` mounts a disk of that size, or gives the mounted one another size; gives its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def sized(kib: int) -> Path:
        nonlocal mounted
        how = f"{'remount,' if mounted else ''}size={kib}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", folder], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("this machine does not allow mounting")
        mounted = True
        return folder

    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    yield sized
    if mounted:
        subprocess.run(["umount", "-l", folder], check=True)  # lazily: a failing test may leave files open


def everything_loads(folder: Path) -> None:
    """Whatever has its final name is whole."""
    if (folder / "recipe.toml").exists():
        tomllib.loads((folder / "recipe.toml").read_text())
    if (folder / "metrics.jsonl").exists():
        read_metrics(folder)
    for path in folder.glob("episodes/*.jsonl"):
        list(load_episodes(path))
    for name in ("sft", "policy"):
        if (folder / name).exists():
            load_model(folder / name)
    CheckpointStore(folder / "checkpoints").load_latest()


def test_a_disk_that_fills_up_anywhere_is_one_line_and_the_run_goes_on(
    palaestra: Any, fails: Any, small_disk: Any
) -> None:
    """Each time the disk is a little larger, so that the run gets a little further."""
    stuck: set[str] = set()
    disk = small_disk(4)
    folder, filler = disk / "run", disk / "filler"
    filler.write_bytes(bytes(4096))
    first = ["quickstart", f"run={folder}", *SMALL]
    fails(palaestra("train", *first), f"cannot write run folder {folder}: No space left on device")
    assert list(folder.iterdir()) == []
    filler.unlink()
    for kib in (4, 8, 60, 160, 240, 400):
        small_disk(kib)
        begun = (folder / "recipe.toml").exists()
        result = palaestra("train", *([folder / "recipe.toml", "--resume"] if begun else first))
        everything_loads(folder)
        if result.exit_code == 0:
            break
        fails(result, "cannot write", "No space left on device", f"continue with: palaestra train {folder}/recipe.toml")
        stuck.add(result.stderr.partition(f"{folder}/")[2].partition(":")[0].partition("/")[0])
    assert stuck == {"tb", "metrics.jsonl", "sft", "episodes", "checkpoints"}
    small_disk(4000)
    result = palaestra("train", folder / "recipe.toml", "--resume")
    assert result.exit_code == 0, result.output
    assert [row["step"] for row in read_metrics(folder) if row["stage"] == "grpo"] == [1, 2, 3, 4]
    everything_loads(folder)


def test_a_run_folder_that_cannot_be_written_is_one_line(
    palaestra: Any, fails: Any, tmp_path: Path, small_disk: Any
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        fails(palaestra("train", "quickstart", f"run={place}"), f"cannot write run folder {place}", "choose run=FOLDER")
    disk = small_disk(64)
    (disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for place in (disk / "run", disk / "new"):
        fails(palaestra("train", "quickstart", f"run={place}"), "Read-only file system; choose run=FOLDER")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('env.families=["compos"]', "did you mean 'compose'?"),
        ("env.id=CodeSandbocks-v0", "did you mean 'CodeSandbox-v0'?"),
        ("env.levels=[99]", "levels=99"),
        ("env.train_levels=[98]", "levels=98"),
        ("env.keywords={max_turnz=3}", "did you mean 'max_turns'?"),
        ("demos.mix={carefull=1}", "did you mean 'careful'?"),
        ("model.device=tpu", "device='tpu'"),
        ("evaluation.n=0", "evaluation.n=0: must be at least 1"),
    ],
)
def test_a_typo_is_found_before_a_run_folder_is_touched(
    palaestra: Any, fails: Any, tmp_path: Path, override: str, said: str
) -> None:
    fails(palaestra("train", "quickstart", f"run={tmp_path}/run", override), said)
    assert not (tmp_path / "run").exists()


def test_a_task_file_that_leaves_none_to_be_judged_by_is_found_at_once(
    palaestra: Any, fails: Any, tmp_path: Path
) -> None:
    row = {"prompt": "Give x.", "entry_point": "f", "tests": [{"args": [1], "expected": 1}], "family": "compose"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    given = f'env.keywords.tasks="{tmp_path}/mine.jsonl"'
    said = 'none of the 1 given tasks is for split \'heldout\': give some "split": "heldout"'
    fails(palaestra("train", "quickstart", f"run={tmp_path}/run", given), said)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_moved_aside_and_the_user_is_told(palaestra: Any, fails: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = palaestra("train", "quickstart", f"run={folder}", *SMALL, "grpo.steps=1")
    assert result.exit_code == 0, result.output
    model = folder / "policy"

    (tmp_path / "no tokenizer").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, tmp_path / "no tokenizer" / name)
    shutil.copytree(model, tmp_path / "cut weights")
    os.truncate(tmp_path / "cut weights" / "model.safetensors", 5000)
    shutil.copytree(model, tmp_path / "no weights")
    (tmp_path / "no weights" / "model.safetensors").unlink()
    for number, name in enumerate(("no tokenizer", "cut weights", "no weights", "nothing")):
        result = palaestra("train", "quickstart", f"run={folder}", f"model={tmp_path / name}", "processes=1")
        fails(result, str(tmp_path / name))
        moved = f"the run that was in {folder} is now {folder}.1"
        assert (moved in result.stdout.replace("\n", "")) == (number == 0), "a folder that holds nothing is used again"
        fails(palaestra("eval", "CodeSandbox-v0", "--model", tmp_path / name, "-n", 1), str(tmp_path / name))
    assert (tmp_path / "run.1" / "summary.json").exists()
    fails(palaestra("eval", "CodeSandbox-v0", "--model", tmp_path / "run.1"), "is the folder of a run: its model is")


def test_what_a_resume_finds_damaged_is_named(palaestra: Any, fails: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert palaestra("train", "quickstart", f"run={folder}", *SMALL, "grpo.steps=2").exit_code == 0
    recipe, metrics = folder / "recipe.toml", folder / "metrics.jsonl"
    shutil.rmtree(folder / "policy")

    good = metrics.read_text()
    metrics.write_text(good.replace("{", "", 1))
    fails(palaestra("train", recipe, "--resume"), f"{metrics}, line 1: not JSON", "delete the line")
    metrics.write_text(good)

    for state in folder.glob("checkpoints/*/state.pt"):
        os.truncate(state, 1000)
    fails(palaestra("train", recipe, "--resume"), "is damaged", f"delete {folder}/checkpoints to do its stage again")
    shutil.rmtree(folder / "checkpoints")
    assert palaestra("train", recipe, "--resume").exit_code == 0
    assert [row["step"] for row in read_metrics(folder) if row["stage"] == "grpo"] == [1, 2]

    os.truncate(folder / "sft" / "model.safetensors", 1000)
    fails(palaestra("train", recipe, "--resume"), f"cannot load the model in {folder}/sft")
    recipe.write_bytes(b"\xff\xfe")
    fails(palaestra("train", recipe, "--resume"), "is not valid TOML")

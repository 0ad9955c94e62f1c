"""`palaestra train`: recipes, overrides, and how a run ends for its user."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest


def test_a_dry_run_prints_a_recipe_that_can_be_trained(palaestra: Any, tmp_path: Path) -> None:
    first = palaestra("train", "quickstart", "grpo.steps=7", "seed=3", "model=some/folder", "--dry-run")
    assert first.exit_code == 0, first.output
    recipe = tomllib.loads(first.stdout)
    assert (recipe["grpo"]["steps"], recipe["seed"], recipe["model"]["path"]) == (7, 3, "some/folder")
    (tmp_path / "mine.toml").write_text(first.stdout)
    assert palaestra("train", tmp_path / "mine.toml", "--dry-run").stdout == first.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quickstrat"], "did you mean 'quickstart'?"),
        (["nowhere/mine.toml"], "cannot read recipe nowhere/mine.toml"),
        (["quickstart", "grpo.stepz=10"], "did you mean 'steps'?"),
        (["quickstart", "grpoo=1"], "unknown key"),
        (["quickstart", "gpro.steps=1"], "did you mean 'grpo'?"),
        (["quickstart", "grpo.steps"], "write key=value"),
        (["quickstart", "grpo.steps=many"], "grpo.steps"),
        (["quickstart", "seed.x=1"], "seed"),
        (["quickstart", "grpo.clip_low=-1"], "clip_low"),
        (["quickstart", "processes=3"], "groups_per_step"),
    ],
)
def test_a_bad_recipe_or_override_is_one_line(palaestra: Any, fails: Any, arguments: list[str], said: str) -> None:
    fails(palaestra("train", *arguments, "--dry-run"), said)


def test_a_damaged_recipe_is_one_line(palaestra: Any, fails: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[grpo\nsteps = 1")
    fails(palaestra("train", tmp_path / "mine.toml"), "mine.toml is not valid TOML")


def test_a_run_folder_that_cannot_be_written_is_one_line(palaestra: Any, fails: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fails(palaestra("train", "quickstart", f"run={tmp_path}/file/run"), "cannot write run folder", "choose run=FOLDER")


def test_resuming_nothing_is_one_line(palaestra: Any, fails: Any, tmp_path: Path) -> None:
    fails(palaestra("train", "quickstart", f"run={tmp_path}/none", "--resume"), "nothing to resume")


def test_a_missing_model_folder_is_one_line(palaestra: Any, fails: Any, tmp_path: Path) -> None:
    recipe = ["quickstart", f"run={tmp_path}/run", f"model={tmp_path}/none", "processes=1", "demos.n=4"]
    fails(palaestra("train", *recipe), f"no model folder {tmp_path}/none")

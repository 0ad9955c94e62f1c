"""The folder of one training run: what lies where, and what may be resumed.

runs/NAME/
    recipe.toml        the resolved recipe
    summary.json       the figures, written at the end
    metrics.jsonl      one row per logged step; tb/ has the same for TensorBoard
    sft/  policy/      ordinary transformers folders; with model.lora, policy/ holds an adapter of the model in sft/
    policy-merged/     with model.lora.save_merged: the same policy as an ordinary folder
    checkpoints/       what `--resume` continues from
    episodes/          evaluation episodes, and some of training, JSON lines
    run_id             what the run is called by dashboards, where it logs to any
"""

from __future__ import annotations

import contextlib
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from ..core.errors import CheckpointError, RecordError, StorageError
from .config import Recipe, recipe_to_data
from .metrics import FILE_NAME as METRICS_FILE

_MAY_CHANGE_ON_RESUME = ("run", "report", "evaluation", "threads", "kept_groups", "log_to", "project", "run_name")


class RunFolder:
    """Paths of a run, and its two small files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def summary(self) -> Path:
        """The figures at the end of the run."""
        return self.path / "summary.json"

    @property
    def sft(self) -> Path:
        """The SFT policy, which is also the reference policy of GRPO."""
        return self.path / "sft"

    @property
    def policy(self) -> Path:
        """The trained policy; with `model.lora` an adapter."""
        return self.path / "policy"

    @property
    def merged_policy(self) -> Path:
        """The trained policy as an ordinary folder, with `model.lora.save_merged`."""
        return self.path / "policy-merged"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints of the stage that is under way."""
        return self.path / "checkpoints"

    def episodes(self, name: str) -> Path:
        """File of the evaluation episodes of this name, such as `"policy_heldout"`."""
        return self.path / "episodes" / f"{name}.jsonl"

    @property
    def holds_results(self) -> bool:
        """Whether anything of a run would be lost with this folder; a recipe alone is nothing."""
        kept = (self.summary, self.sft, self.policy, self.checkpoints, self.path / "episodes")
        rows = self.path / METRICS_FILE
        return any(path.exists() for path in kept) or (rows.is_file() and rows.stat().st_size > 0)

    def start(self, recipe: Recipe, resume: bool) -> Path | None:
        """Makes the folder ready: writes the recipe, or checks it against the one that is resumed.

        A folder that already holds a run is moved aside, never overwritten.

        Returns:
            Where an earlier run was moved to, if there was one.

        Raises:
            CheckpointError: There is nothing to resume, or the recipe differs from the stored one.
            StorageError: The folder cannot be written.
        """
        if resume:
            self._check_same_recipe(recipe)
        try:
            moved = None if resume else self._move_aside()
            self.path.mkdir(parents=True, exist_ok=True)
            _write_whole(self.recipe, tomli_w.dumps(recipe_to_data(recipe)))
        except OSError as error:
            raise StorageError(f"cannot write run folder {self.path}: {error.strerror}; choose run=FOLDER") from error
        return moved

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the figures, whole or not at all."""
        try:
            _write_whole(self.summary, json.dumps(summary, indent=2) + "\n")
        except OSError as error:
            raise StorageError(f"cannot write {self.summary}: {error.strerror}") from error

    def read_summary(self) -> dict[str, Any]:
        """Reads the figures of a finished run."""
        try:
            return json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordError(f"cannot read {self.summary}: {error}") from error

    def _check_same_recipe(self, recipe: Recipe) -> None:
        try:
            stored = tomllib.loads(self.recipe.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"nothing to resume in {self.path}: {error.strerror}; leave out --resume") from error
        except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
            raise CheckpointError(f"{self.recipe} is damaged: {error}") from error
        wanted = tomllib.loads(tomli_w.dumps(recipe_to_data(recipe)))
        for name in sorted({*stored, *wanted} - set(_MAY_CHANGE_ON_RESUME)):
            if stored.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"{name}={wanted.get(name)!r} differs from the run in {self.path} ({stored.get(name)!r}); "
                    "resume with the same recipe or choose another run=FOLDER"
                )

    def _move_aside(self) -> Path | None:
        if not self.holds_results:
            return None
        path = self.path.resolve()
        number = 1
        while (free := path.with_name(f"{path.name}.{number}")).exists():
            number += 1
        path.rename(free)
        return self.path.with_name(free.name) if self.path.name else free


def _write_whole(path: Path, text: str) -> None:
    """Writes a small file whole or not at all, also when the disk is full."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise

"""What a run folder holds, read for its report; what is not there yet is said, not an error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..core.errors import RecordError
from ..core.records import episode_from_record, read_records
from ..core.trajectories import Episode
from ..learners.kept_groups import FILE as TRAINING_FILE
from ..learners.metrics import FILE_NAME as METRICS_FILE
from ..learners.metrics import Row as MetricRow
from ..learners.metrics import read_metrics
from .run_settings import RECIPE_FILE, read_recipe

EPISODE_FILES = {
    "sft_heldout": "held-out episodes before GRPO",
    "policy_heldout": "held-out episodes after GRPO",
    "sft_heldout_greedy": "greedy held-out episodes before GRPO",
    "policy_heldout_greedy": "greedy held-out episodes after GRPO",
}
"""Files of `episodes/`, and what they hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """A run, finished or not."""

    folder: Path
    recipe: dict[str, Any]
    summary: dict[str, Any]
    metrics: dict[str, list[MetricRow]]
    """Rows of `metrics.jsonl` by stage, in order of their steps."""
    episodes: dict[str, list[Episode]]
    """Episodes by file, without `.jsonl`; an empty list where there is no file."""
    missing: list[str]
    """One sentence for each file that is not there."""

    @property
    def failures(self) -> list[tuple[str, Episode]]:
        """Evaluation episodes that infrastructure ended, with the file that they are in."""
        return [(name, episode) for name in EPISODE_FILES for episode in self.episodes.get(name, ()) if episode.failed]

    def column(self, stage: str, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric, where it is a finite number."""
        rows = self.metrics.get(stage, [])
        pairs = [(float(row["step"]), value) for row in rows if (value := number(row, name)) is not None]
        return [step for step, _ in pairs], [value for _, value in pairs]


def read_run(folder: Path) -> RunData:
    """Reads everything that the folder has.

    Raises:
        RecordError: The folder is missing, holds no run, or one of its files is damaged.
        ConfigError: The stored recipe is damaged.
    """
    if not folder.is_dir():
        raise RecordError(f"no run folder {folder}; `palaestra train quickstart` makes runs/quickstart")
    missing: list[str] = []
    recipe_path, metrics_path, summary_path = (folder / name for name in (RECIPE_FILE, METRICS_FILE, "summary.json"))
    if not any(path.exists() for path in (recipe_path, metrics_path, summary_path)):
        raise RecordError(f"{folder} holds no run: none of {RECIPE_FILE}, {METRICS_FILE}, summary.json is there")

    def present(path: Path, what: str) -> bool:
        if not path.exists():
            missing.append(f"{path.relative_to(folder)}: {what}")
        return path.exists()

    recipe = read_recipe(recipe_path) if present(recipe_path, "the recipe") else {}
    summary = _read_summary(summary_path) if present(summary_path, "the run has not finished") else {}
    metrics = _read_metrics(folder) if present(metrics_path, "no step has been logged yet") else {}
    training = folder / "episodes" / f"{TRAINING_FILE}.jsonl"
    held_out = {
        name: read_episodes(path) if present(path := folder / "episodes" / f"{name}.jsonl", what) else []
        for name, what in EPISODE_FILES.items()
    }
    return RunData(
        folder=folder,
        recipe=recipe,
        summary=summary,
        metrics=metrics,
        episodes={**held_out, TRAINING_FILE: read_episodes(training) if training.exists() else []},
        missing=missing,
    )


def number(values: Mapping[str, Any], key: str) -> float | None:
    """A finite number under a key, or None."""
    value: Any = values.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def read_episodes(path: Path) -> list[Episode]:
    """Reads an episodes file; an error names the file and the episode."""
    episodes: list[Episode] = []
    for record in read_records(path, "episodes"):
        try:
            episodes.append(episode_from_record(record))
        except RecordError as error:
            raise RecordError(f"{path}, episode {len(episodes) + 1}: {error}") from error
    return episodes


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read {path}: {error}") from error
    if not isinstance(summary, dict):
        raise RecordError(f"{path}: expected a JSON object")
    return cast(dict[str, Any], summary)


def _read_metrics(folder: Path) -> dict[str, list[MetricRow]]:
    stages: dict[str, list[MetricRow]] = {}
    for row in read_metrics(folder):
        stages.setdefault(str(row.get("stage", "")), []).append(row)
    return stages

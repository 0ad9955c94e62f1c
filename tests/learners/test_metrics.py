from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from palaestra.core.errors import StorageError
from palaestra.learners.metrics import MetricsWriter, read_metrics


def row(stage: str, step: int, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "step": step, "loss": 1.0 / step, **more}


def test_rows_are_on_disk_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        metrics.log(row("sft", 1, kl_seq=math.nan, note="first"))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[0]) == {"stage": "sft", "step": 1, "loss": 1.0, "kl_seq": None, "note": "first"}


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path) as metrics:
        for step in (1, 2, 4):
            metrics.log(row("grpo", step, kl_seq=math.nan))
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert events.Tags()["scalars"] == ["grpo/loss"]
    assert [(e.step, e.value) for e in events.Scalars("grpo/loss")] == [(1, 1.0), (2, 0.5), (4, 0.25)]


def test_resume_continues_and_drops_what_came_after(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        for step in (1, 2):
            metrics.log(row("sft", step))
        for step in (1, 2, 3):
            metrics.log(row("grpo", step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "grpo", "st')  # what a killed process leaves
    with MetricsWriter(tmp_path, resume=True) as metrics:
        metrics.drop_after("grpo", 1)
        metrics.log(row("grpo", 2, again=True))
    rows = read_metrics(tmp_path)
    assert [(r["stage"], r["step"]) for r in rows] == [("sft", 1), ("sft", 2), ("grpo", 1), ("grpo", 2)]
    assert rows[-1]["again"]


def test_without_resume_old_rows_are_gone(tmp_path: Path) -> None:
    for _ in range(2):
        with MetricsWriter(tmp_path) as metrics:
            metrics.log(row("sft", 1))
    assert len(read_metrics(tmp_path)) == 1


def test_further_sinks_and_disabled_writers(tmp_path: Path) -> None:
    class Memory:
        def __init__(self) -> None:
            self.rows: list[Mapping[str, Any]] = []

        def log(self, row: Mapping[str, Any]) -> None:
            self.rows.append(row)

        def close(self) -> None:
            pass

    sink = Memory()
    with MetricsWriter(tmp_path / "on", sinks=[sink]) as metrics:
        metrics.log(row("sft", 1))
    assert [r["step"] for r in sink.rows] == [1]
    with MetricsWriter(tmp_path / "off", enabled=False, sinks=[sink]) as metrics:
        metrics.log(row("sft", 2))
        metrics.drop_after("sft", 0)
    assert not (tmp_path / "off").exists()
    assert len(sink.rows) == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"^cannot write .*metrics\.jsonl: Not a directory$"):
        MetricsWriter(tmp_path / "file" / "run")

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from palaestra.core.errors import RecordError, StorageError
from palaestra.learners.metrics import MetricsWriter, TensorBoardSink, read_metrics


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


def test_a_resume_from_the_start_of_a_stage_logs_no_step_twice(tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint does the stage again, and nobody calls `drop_after`."""
    with MetricsWriter(tmp_path) as metrics:
        for stage, step in (("sft", 20), ("sft", 40), ("grpo", 1), ("grpo", 2)):
            metrics.log(row(stage, step))
    with MetricsWriter(tmp_path, resume=True) as metrics:
        metrics.log(row("grpo", 1, again=True))
        metrics.log(row("grpo", 2, again=True))
    rows = read_metrics(tmp_path)
    assert [(r["stage"], r["step"]) for r in rows] == [("sft", 20), ("sft", 40), ("grpo", 1), ("grpo", 2)]
    assert all(r["again"] for r in rows[2:])


@pytest.mark.parametrize("damage", [b"{oops\n", b"[1]\n", b"\xff\n"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"stage": "sft", "step": 1}\n' + damage + b"{}\n")
    for read in (read_metrics, lambda folder: MetricsWriter(folder, resume=True)):
        with pytest.raises(RecordError, match=r"metrics\.jsonl(, line 2: .*; delete the line| is damaged: .*)$"):
            read(tmp_path)


def test_a_full_disk_is_an_error_of_the_row_that_met_it(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    sink.close()
    with open("/dev/full", "wb") as sink._file:
        sink._records._writer = sink._file
        with pytest.raises(StorageError, match=r"^cannot write .*events\.out.*: No space left on device$"):
            sink.log(row("sft", 1))
        sink.close()


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

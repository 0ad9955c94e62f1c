"""Progress where there is no terminal: lines as things happen, and none for long only where nothing happens."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from palaestra.learners import progress
from palaestra.learners.progress import StageProgress

ROW: dict[str, Any] = {"success": 0.5, "kl_seq": 1.0, "beta": 0.1, "mean_turns": 2.0, "loss": 1.25}


def lines_of(log: io.StringIO) -> list[str]:
    return [" ".join(line.split()[2:]) for line in log.getvalue().splitlines()]


def test_a_log_has_a_line_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    with StageProgress(True, time.time(), Console(file=log, width=200)) as shown:
        with shown.task("making demonstrations") as task:
            task.update(1, 2)
        with shown.task("SFT") as task:
            for step in range(1, 6):
                task.sft_step(step, 5, ROW)
    assert lines_of(log) == ["making demonstrations: done (0.0 s)", "SFT: loss 1.250 after 5 steps (0.0 s)"]


def test_a_long_stage_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    log = io.StringIO()
    with StageProgress(True, time.time(), Console(file=log, width=200)) as shown:
        with shown.task("SFT") as task:
            task.sft_step(20, 40, ROW)
            task.sft_step(21, 40, {})
            assert lines_of(log) == ["SFT: 20 of 40 loss 1.250", "SFT: 21 of 40 loss 1.250"]
        with shown.task("GRPO") as task:
            task.grpo_step(3, 60, ROW)
    assert "step 3 success 0.500 KL 1.00 beta 0.100 turns 2.00" in lines_of(log)


def test_other_processes_and_lost_logs_are_silent() -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    log = io.StringIO()
    for shown in (StageProgress(False, 0.0, Console(file=log)), StageProgress(True, 0.0, Console(file=Full()))):
        with shown, shown.task("SFT") as task:
            task.sft_step(20, 40, ROW)
        shown.say("more")
    assert log.getvalue() == ""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from palaestra.cli.summary_view import print_summary
from palaestra.core.trajectories import Turn

SUMMARY = {
    "sft_success": 0.4,
    "rl_success": 0.85,
    "sft_success_greedy": 0.35,
    "rl_success_greedy": 0.96,
    "rl_success_hard": 0.76,
    "heldout_n": 80,
    "kl_seq": 2.81,
    "seconds_total": 254.2,
}


def printed(summary: dict[str, Any], folder: Path, width: int = 100) -> str:
    stream = io.StringIO()
    print_summary(summary, folder, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_summary_has_both_sides_and_a_task_that_was_learned(run_folder: Path) -> None:
    text = printed(SUMMARY, run_folder)
    assert "40.0 % │     85.0 % │ +45.0 points" in text
    assert "greedy" in text
    assert "KL to the SFT policy: 2.81 nats" in text
    assert "compose/2" in text
    assert "after SFT: wrong" in text
    assert "after GRPO: right" in text
    assert "+     x = x[1::2]" in text
    assert "reward 1 (submitted)" in text


@pytest.mark.parametrize("width", [40, 80, 160])
def test_no_line_is_wider_than_the_terminal(run_folder: Path, width: int) -> None:
    assert max(map(len, printed(SUMMARY, run_folder, width).splitlines())) <= width


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    text = printed({"sft_success": 0.4, "rl_success": None, "kl_seq": float("nan")}, tmp_path)
    assert "40.0 %" in text
    assert "KL" not in text
    assert "greedy" not in text


def test_a_damaged_episodes_file_does_not_hide_the_figures(run_folder: Path) -> None:
    (run_folder / "episodes/sft_heldout.jsonl").write_text("garbage\n\n")
    assert "85.0 %" in printed(SUMMARY, run_folder)


def test_what_the_policy_wrote_cannot_steer_the_terminal(
    run_folder: Path, make_episode: Any, save_episodes: Any
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J[bold red]x[/]"
    turns = (Turn(action=f"run\n{evil}", observation=evil, messages=({"role": "user", "content": evil},)),)
    save_episodes(run_folder / "episodes/sft_heldout.jsonl", [make_episode(0, False, turns=turns)])
    save_episodes(run_folder / "episodes/policy_heldout.jsonl", [make_episode(0, True, turns=turns)])
    text = printed(SUMMARY, run_folder)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert r"\x1b[2J[bold red]x[/]" in text

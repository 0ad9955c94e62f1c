"""`palaestra eval` on a real `transformers serve`, with a tiny model that calls tools in the server's own form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palaestra.agents.store import load_episodes
from palaestra.models.loading import load_model
from palaestra.models.served_model import ServedModel
from palaestra.models.server import ModelServer

pytestmark = pytest.mark.timeout(400)


def test_native_calls_solve_the_tasks(palaestra: Any, tool_caller: Any, tmp_path: Path) -> None:
    save, figures = tmp_path / "episodes.jsonl", tmp_path / "figures.json"
    result = palaestra(*tool_caller.evaluation("native"), "--save", save, "--json", figures)
    assert result.exit_code == 0, result.output
    measured = json.loads(figures.read_text())
    assert (measured["success"], measured["n"], measured["failures"]) == (1.0, 12, 0)
    assert measured["parse_error_rate"] == 0.0
    assert measured["usage"]["requests"] == 24
    assert measured["usage"]["retries"] == 0
    assert 24 < measured["usage"]["completion_tokens"] < 24 * 30
    for episode in load_episodes(save):
        first, second = episode.trajectories[0].turns
        assert first.action == tool_caller.actions[0]
        assert second.action == tool_caller.actions[1]
        assert second.messages[0]["role"] == "tool"


def test_the_same_model_is_asked_for_text(palaestra: Any, tool_caller: Any, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    result = palaestra(*tool_caller.evaluation("text"), "-n", 3, "--json", figures)
    assert result.exit_code == 0, result.output
    measured = json.loads(figures.read_text())
    assert (measured["n"], measured["failures"]) == (3, 0)


def test_our_own_server_gives_the_same_calls(palaestra: Any, tool_caller: Any, tmp_path: Path) -> None:
    model, tokenizer = load_model(tool_caller.folder)
    served = ServedModel(model, tokenizer, name="caller", folder=str(tool_caller.folder), rows=4, max_context=1024)
    saves = {"native": tmp_path / "native.jsonl", "text": tmp_path / "text.jsonl"}
    with ModelServer(served, host="127.0.0.1", port=0) as server:
        ours = ("--base-url", server.url, "--model", "caller")
        for form, save in saves.items():
            result = palaestra(*tool_caller.evaluation(form), *ours, "--save", save)
            assert result.exit_code == 0, result.output
    for episode in load_episodes(saves["native"]):
        assert episode.success
        assert tuple(turn.action for turn in episode.trajectories[0].turns) == tool_caller.actions
    assert not any(episode.failed for episode in load_episodes(saves["text"]))


def test_a_wrong_name_is_said_in_one_line(palaestra: Any, fails: Any, tool_caller: Any) -> None:
    fails(palaestra(*tool_caller.evaluation("native"), "--model", "huge"), "status 400", "pinned to")

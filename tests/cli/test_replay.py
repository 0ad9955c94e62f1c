"""`palaestra replay`: equal, different, failed; where the environment is known from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from palaestra.agents.episode_origin import EpisodeOrigin
from palaestra.agents.store import load_episodes, save_episodes
from palaestra.core.errors import SandboxDied
from palaestra.core.trajectories import Episode, Trajectory, Turn
from palaestra.envs.program_session import ProgramSession

MARKET = "own_environment:Market-v0"


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.syspath_prepend(repository / "examples")


@pytest.fixture
def demos(palaestra: Any, tmp_path: Path) -> Path:
    """Twelve demonstrations of all families, by two experts."""
    path = tmp_path / "demos.jsonl"
    result = palaestra(
        "demos", "CodeSandbox-v0", "-n", 12, "--families", "compose,repair", "--experts", "reviewer=1,sloppy=1",
        "--processes", 1, "-o", path, "--env", "prompt_style=compact",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return path


def changed(episode: Episode, number: int, **fields: Any) -> Episode:
    """The episode with one turn changed (0: the last)."""
    trajectory = episode.trajectories[0]
    turns = list(trajectory.turns)
    turns[number - 1] = dataclasses.replace(turns[number - 1], **fields)
    return dataclasses.replace(episode, trajectories=(dataclasses.replace(trajectory, turns=tuple(turns)),))


def written(path: Path, episodes: list[Episode], like: Path | None = None) -> Path:
    """The episodes in a file that has another one's header."""
    save_episodes(path, episodes)
    if like is not None:
        lines = [like.read_text().splitlines()[0], *path.read_text().splitlines()[1:]]
        path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_demonstrations_are_what_the_sandbox_gives(palaestra: Any, demos: Path) -> None:
    result = palaestra("replay", demos, "--all")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{demos}: 12 of 12 equal, 0 differ\n"


def test_one_episode_is_shown_turn_by_turn(palaestra: Any, demos: Path) -> None:
    number, episode = next((i, e) for i, e in enumerate(load_episodes(demos), 1) if e.info["expert"] == "reviewer")
    result = palaestra("replay", demos, "--episode", number)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"episode {number}: {episode.task_id}, seed {episode.seed}\n")
    assert "the first 1 actions are another's" in result.stdout
    turns = episode.trajectories[0].turns
    assert all(turn.action in result.stdout and turn.observation in result.stdout for turn in turns)
    assert f"equal: {len(turns)} turns, reward {episode.reward:g} (submitted)" in result.stdout


@pytest.mark.parametrize(
    ("fields", "what", "shown"),
    [
        ({"observation": "not this"}, "observation of turn", ["-not this", "+"]),
        ({"reward": 0.125}, "reward of turn", ["-0.125"]),
        ({"parse_error": "never said"}, "parse error of turn", ["-never said", "+null"]),
    ],
)
def test_the_first_difference_is_shown(
    palaestra: Any, demos: Path, tmp_path: Path, fields: dict[str, Any], what: str, shown: list[str]
) -> None:
    episodes = list(load_episodes(demos))
    last = len(episodes[2].trajectories[0].turns)
    episodes[2] = changed(episodes[2], last, **fields)
    path = written(tmp_path / "changed.jsonl", episodes, demos)
    result = palaestra("replay", path, "--episode", 3)
    assert result.exit_code == 1
    assert f"{what} {last}\n--- recorded\n+++ now\n" in result.stdout
    assert all(f"\n{line}" in result.stdout for line in shown)
    assert result.stdout.endswith(f"differs at turn {last}\n")
    whole = palaestra("replay", path, "--all")
    assert whole.exit_code == 1
    assert f"differs: episode 3 ({episodes[2].task_id}), {what} {last}\n" in whole.stdout
    assert whole.stdout.endswith("11 of 12 equal, 1 differ\n")


def test_a_changed_action_shows_in_what_comes_back(palaestra: Any, demos: Path, tmp_path: Path) -> None:
    episodes = [changed(next(load_episodes(demos)), 1, action="nonsense")]
    result = palaestra("replay", written(tmp_path / "x.jsonl", episodes, demos), "--episode", 1)
    assert result.exit_code == 1
    assert "+error: say run, edit or submit" in result.stdout


def test_other_keywords_show_at_the_reset(palaestra: Any, demos: Path) -> None:
    result = palaestra("replay", demos, "--episode", 1, "--env", "prompt_style=full")
    assert result.exit_code == 1
    assert "messages of the reset" in result.stdout
    assert "+[system]" in result.stdout
    result = palaestra("replay", demos, "--episode", 1, "--env", "max_turns=1")
    assert "differs at turn 1" in result.stdout


def test_episodes_of_a_task_are_found_by_its_id(palaestra: Any, fails: Any, demos: Path) -> None:
    task_id = next(load_episodes(demos)).task_id
    assert palaestra("replay", demos, "--task-id", task_id).stdout.startswith(f"episode 1: {task_id}, ")
    fails(palaestra("replay", demos, "--task-id", "compose:train:1:1"), "no episode of task 'compose:train:1:1'")


def test_a_file_from_before_headers_named_environments_needs_options(
    palaestra: Any, fails: Any, demos: Path, tmp_path: Path
) -> None:
    old = written(tmp_path / "old.jsonl", list(load_episodes(demos)))
    assert "about" not in old.read_text().splitlines()[0]
    fails(palaestra("replay", old, "--all"), "does not name its environment: add --env-id")
    keywords = ["--env-id", "CodeSandbox-v0", "--env", "prompt_style=compact"]
    assert palaestra("replay", old, "--all", *keywords).exit_code == 0


def test_an_evaluation_names_its_environment_and_task_file(palaestra: Any, tmp_path: Path) -> None:
    tasks, path = tmp_path / "tasks.jsonl", tmp_path / "episodes.jsonl"
    row = {"prompt": "Double x.", "entry_point": "f", "tests": [{"args": [2], "expected": 4}], "reference": "x"}
    tasks.write_text(json.dumps({**row, "reference": "def f(x):\n    return 2 * x"}) + "\n")
    keywords = ["--env", f"tasks={tasks}", "--env", "max_turns=4"]
    done = palaestra("eval", "CodeSandbox-v0", "--agent", "oracle", "--save", path, *keywords)
    assert done.exit_code == 0, done.output
    assert palaestra("replay", path, "--all").exit_code == 0
    tasks.write_text(tasks.read_text().replace("Double", "Triple"))
    result = palaestra("replay", path, "--episode", 1)
    assert result.exit_code == 1
    assert "messages of the reset" in result.stdout


def test_a_run_folder_is_replayed_by_its_recipe(palaestra: Any, fails: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = palaestra("eval", MARKET, "--agent", "careful", "-n", 6, "--save", tmp_path / "e.jsonl", "--levels", "1,2")
    assert done.exit_code == 0, done.output
    written(run / "episodes" / "sft_heldout.jsonl", list(load_episodes(tmp_path / "e.jsonl")))
    (run / "recipe.toml").write_text(
        f'[env]\nid = "{MARKET}"\nlevels = [1, 2]\nmax_turns = 10\nprompt_style = "full"\n'
    )
    result = palaestra("replay", run, "--all")
    assert result.exit_code == 0, result.output
    assert "sft_heldout.jsonl: 6 of 6 equal" in result.stdout
    fails(palaestra("replay", run, "--all", "--file", "sft_heldot"), "did you mean 'sft_heldout'?")


def failed(episode: Episode) -> Episode:
    """An episode whose last step met a failure of infrastructure."""
    trajectory = dataclasses.replace(episode.trajectories[0], turns=episode.trajectories[0].turns[:-1])
    return dataclasses.replace(
        episode,
        trajectories=(trajectory,),
        reward=float("nan"),
        success=None,
        stop_reason="failed",
        terminated=False,
        truncated=True,
        failure={"kind": "sandbox_died", "message": "gone", "retryable": True},
    )


def test_failures_that_were_recorded_are_no_difference(palaestra: Any, demos: Path, tmp_path: Path) -> None:
    episodes = list(load_episodes(demos))[:3]
    path = written(tmp_path / "x.jsonl", [episodes[0], failed(episodes[1]), episodes[2]], demos)
    result = palaestra("replay", path, "--all")
    assert result.exit_code == 0, result.output
    assert "infrastructure: 1 had failed when they were recorded: 2\n" in result.stdout
    assert result.stdout.endswith("2 of 3 equal, 0 differ\n")
    assert "then infrastructure failed: sandbox_died: gone" in palaestra("replay", path, "--episode", 2).stdout


def test_failures_now_are_no_difference_either(palaestra: Any, demos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise SandboxDied("it went away")

    monkeypatch.setattr(ProgramSession, "grade", dies)
    result = palaestra("replay", demos, "--all")
    assert result.exit_code == 2
    assert "infrastructure: 12 failed now" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("error: infrastructure: 12 episodes failed now: sandbox_died")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give exactly one of --episode N, --task-id TASK and --all"),
        (["--all", "--episode", "1"], "give exactly one"),
        (["--episode", "13"], "has 12 episodes"),
        (["--all", "--file", "x"], "is no run folder"),
        (["--all", "--env", "max_turnz=3"], "did you mean 'max_turns'?"),
        (["--all", "--env-id", "CodeSandbocks-v0"], "did you mean 'CodeSandbox-v0'?"),
    ],
)
def test_wrong_options_are_one_line(palaestra: Any, fails: Any, demos: Path, arguments: list[str], said: str) -> None:
    fails(palaestra("replay", demos, *arguments), said)


def test_what_cannot_be_played_again_is_one_line(palaestra: Any, fails: Any, tmp_path: Path) -> None:
    side = Trajectory(segments=(), turns=(Turn(action="a", observation="b"),))
    fields: dict[str, Any] = {"family": "f", "level": 1, "seed": 1, "reward": 0.0, "success": False}
    two = Episode(task_id="baskets:train:1:1", trajectories=(side, side), stop_reason="submitted", **fields)
    save_episodes(tmp_path / "two.jsonl", [two], EpisodeOrigin(env_id=MARKET))
    fails(palaestra("replay", tmp_path / "two.jsonl", "--all"), "2 agents cannot be played again")
    gone = dataclasses.replace(two, trajectories=(side,), task_id="fruit:train:1:1")
    save_episodes(tmp_path / "gone.jsonl", [gone], EpisodeOrigin(env_id=MARKET))
    fails(palaestra("replay", tmp_path / "gone.jsonl", "--all"), "unknown family")
    fails(palaestra("replay", tmp_path, "--all"), "holds no episodes")

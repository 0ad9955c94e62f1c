"""`palaestra play`: through a pipe, in a terminal, and what is saved."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from palaestra.agents.episode_origin import origin_of
from palaestra.agents.store import load_episodes
from palaestra.core.errors import SandboxDied
from palaestra.core.records import read_about
from palaestra.envs.program_session import ProgramSession

TASK = ("CodeSandbox-v0", "--task-id", "compose:train:1:7", "--env", "prompt_style=compact")
ACTIONS = "run\ndef f(x):\n    return 1\n.\nwhat now\n\nsubmit\n"


@pytest.fixture
def play() -> Callable[..., Any]:
    """`play("run\\n...", *arguments)`: what is typed, and the options."""
    from palaestra.cli.main import app

    def call(typed: str | bytes, *arguments: object) -> Any:
        given = ["play", *map(str, arguments)]
        return CliRunner().invoke(app, given, input=typed, prog_name="palaestra")

    return call


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.syspath_prepend(repository / "examples")


def test_actions_through_a_pipe_are_a_transcript(play: Any) -> None:
    result = play(ACTIONS, *TASK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("compose:train:1:7, seed ")
    assert "Take x, drop 2 items, then find the min." in lines
    assert "- edit(old, new): Replace one line (or one unique passage) of your last program, then run it." in lines
    assert "10 turns" in lines
    assert [line for line in lines if line.startswith(">")] == [">", "> what now", "> submit"]
    assert "got 1" in lines
    assert "error: say run, edit or submit" in lines
    assert lines[-2:] == ["failed the hidden tests", "no success, reward 0 (submitted), 3 turns"]
    assert "\x1b" not in result.stdout


def test_an_episode_of_ones_own_environment_is_won_line_by_line(play: Any) -> None:
    result = play("price milk\npay 1\n", "own_environment:Market-v0", "--seed", 3, "--level", 1)
    assert result.exit_code == 0, result.output
    assert "baskets:train:1:3, seed 3" in result.stdout
    assert "that is not the sum" in result.stdout


def test_what_was_played_is_saved_with_where_and_can_be_added_to(play: Any, palaestra: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    for typed in (ACTIONS, "run\nx\n.\n"):
        result = play(typed, *TASK, "--seed", 5, "--save", path)
        assert result.exit_code == 0, result.output
        assert f"saved: {path}" in result.stdout
    first, second = load_episodes(path)
    turns = first.trajectories[0].turns
    assert [turn.action for turn in turns] == ["run\ndef f(x):\n    return 1", "what now", "submit"]
    assert turns[1].parse_error == "error: say run, edit or submit"
    assert (first.seed, first.success, first.info) == (5, False, {"expert": "player"})
    assert (second.stop_reason, second.terminated, second.truncated) == ("quit", False, True)
    origin = origin_of(read_about(path, "episodes"))
    assert origin is not None
    assert origin.env_id == "CodeSandbox-v0"
    assert origin.keywords == {"split": "train", "families": ["compose"], "prompt_style": "compact"}
    assert palaestra("replay", path, "--all").stdout.endswith("2 of 2 equal, 0 differ\n")


def test_a_file_of_other_settings_is_not_added_to(play: Any, fails: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    play("quit\n", *TASK, "--save", path)
    fails(play("quit\n", "CodeSandbox-v0", "--save", path), "other settings")
    (tmp_path / "other").write_text("{}\n")
    fails(play("quit\n", *TASK, "--save", tmp_path / "other"), "expected a file of schema")


def test_agents_can_be_watched(play: Any, tmp_path: Path) -> None:
    path = tmp_path / "seen.jsonl"
    result = play("", *TASK, "--agent", "careful", "--seed", 1, "--save", path)
    assert result.exit_code == 0, result.output
    assert "    x = x[2:]" in result.stdout
    assert "success, reward 1 (submitted)" in result.stdout
    assert next(load_episodes(path)).info == {"expert": "careful"}


def test_a_task_id_names_its_family(play: Any) -> None:
    result = play("quit\n", "CodeSandbox-v0", "--task-id", "repair:heldout:2:5")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("repair:heldout:2:5, seed ")


def test_commands_and_the_end_of_the_input(play: Any) -> None:
    result = play("help\ntools\ntask\n", *TASK)
    assert result.exit_code == 0
    assert result.stdout.count("Take x, drop 2 items") == 2
    assert result.stdout.count("- run(code)") == 2
    assert "only a line with a dot alone ends" in result.stdout
    assert result.stdout.endswith("no success, reward 0 (quit), 0 turns\n")


def test_observations_cannot_reach_the_terminal(play: Any) -> None:
    result = play("run print('\\x1b[31mred')\n", *TASK)
    assert r"\x1b[31mred" in result.stdout
    assert "\x1b" not in result.stdout


def test_failures_of_infrastructure_are_saved_and_end_with_status_2(
    play: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def dies(*_: object) -> None:
        raise SandboxDied("it went away")

    monkeypatch.setattr(ProgramSession, "run", dies)
    result = play("run x\n", *TASK, "--save", tmp_path / "x.jsonl")
    assert result.exit_code == 2
    assert "error: sandbox_died: it went away" in result.stderr
    assert next(load_episodes(tmp_path / "x.jsonl")).failure == {
        "kind": "sandbox_died",
        "message": "it went away",
        "retryable": True,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["CodeSandbox-v0", "--split", "heldot"], "did you mean 'heldout'?"),
        (["CodeSandbox-v0", "--task-id", "compose:train:99:1"], "compose has levels"),
        (["CodeSandbox-v0", "--agent", "carefull"], "did you mean 'careful'?"),
        (["CodeSandbox-v0", "--agent", "careful", "--model", "x"], "at most one of --agent and --model"),
        (["CodeSandbox-v0", "--level", "two"], "write whole numbers"),
        (["CodeSandbox-v0", "--env", "max_turnz=3"], "did you mean 'max_turns'?"),
        (["CartPole-v1"], "CartPole-v1: unknown keyword 'split'"),
    ],
)
def test_wrong_options_are_one_line(play: Any, fails: Any, arguments: list[str], said: str) -> None:
    fails(play("", *arguments), said)


def test_input_that_is_not_text_is_one_line(play: Any, fails: Any) -> None:
    fails(play(b"run \xff\xfe\n", *TASK), "not UTF-8")


class Terminal:
    """`palaestra play` in a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-P", "-m", "palaestra", "play", *map(str, arguments)]
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        self.seen = ""

    def wait_for(self, text: str, patience_s: float = 60) -> None:
        deadline = time.monotonic() + patience_s
        while text not in self.seen:
            if time.monotonic() > deadline:
                raise TimeoutError(self.seen)
            if select.select([self._ours], [], [], 0.2)[0]:
                self.seen += os.read(self._ours, 65536).decode()

    def interrupt_until(self, text: str) -> None:
        """Sends SIGINT, and again where it came just before the process waited: readline sees it at the next key."""
        for _ in range(20):
            time.sleep(0.5)
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                return self.wait_for(text, patience_s=3)
        raise AssertionError(self.seen)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


def test_a_terminal_has_prompts_and_colours_and_ctrl_c_ends_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    with Terminal(*TASK, "--save", path) as terminal:
        terminal.wait_for("turn 1 of 10> ")
        terminal.type("run\n")
        terminal.wait_for("... ")
        terminal.type("def f(x): return 1\n\n")
        terminal.wait_for("turn 2 of 10> ")
        terminal.interrupt_until("saved: ")
        assert terminal.process.wait(30) == 130
    assert "\x1b[" in terminal.seen
    assert "Traceback" not in terminal.seen
    episode = next(load_episodes(path))
    assert (episode.stop_reason, len(episode.trajectories[0].turns)) == ("interrupted", 1)


def test_ctrl_d_leaves_the_episode(tmp_path: Path) -> None:
    with Terminal(*TASK) as terminal:
        terminal.wait_for("turn 1 of 10> ")
        terminal.type("\x04")
        terminal.wait_for("(quit), 0 turns")
        assert terminal.process.wait(30) == 0

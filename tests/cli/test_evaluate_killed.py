"""An evaluation that is killed again and again goes on, repeats nothing, and ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from palaestra.agents.evaluation_journal import attempt_key
from palaestra.agents.store import load_episodes

TASKS, SAMPLES = 120, 3
PATIENCE_S = 120.0


pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="kills process groups"),
    pytest.mark.timeout(600),
]


def test_kills_of_a_scripted_agent(palaestra: Any, tmp_path: Path) -> None:
    survives(palaestra, tmp_path, 3, "--agent", "mixed")


def test_ten_kills_of_an_endpoints_client(palaestra: Any, tmp_path: Path, chat_server: Any) -> None:
    chat_server.delay_s = 0.01

    def answer(body: dict[str, Any]) -> str:
        """Depends on the request alone, as an ideal server's would."""
        return "run\nprint(1)" if len(body["messages"]) < 4 and body["seed"] % 3 else "submit\ndef f(x):\n    return 0"

    chat_server.answer = answer
    survives(palaestra, tmp_path, 10, "--base-url", chat_server.url, "--model", "tiny", "--num-envs", "8")


def test_ten_kills_of_a_client_of_transformers_serve(palaestra: Any, tmp_path: Path, tool_caller: Any) -> None:
    survives(palaestra, tmp_path, 10, *tool_caller.evaluation("native")[2:], tasks=12, samples=10)


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, chat_server: Any) -> None:
    chat_server.delay_s = 0.05
    save = tmp_path / "episodes.jsonl"
    server = ["--base-url", chat_server.url, "--model", "tiny", "--num-envs", "4"]
    process = start("eval", "CodeSandbox-v0", *server, "-n", 100, "--save", save)
    wait_for(lambda: lines(save) > 1, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    said, last = err.splitlines()[-2:]
    assert said.endswith(f" episodes are in {save}; --resume runs the others")
    assert abs(int(said.split()[0]) - (lines(save) - 1)) <= 1, "the signal may come while one is written"
    assert last == "interrupted"


def survives(
    palaestra: Any, tmp_path: Path, kills: int, *agent: object, tasks: int = TASKS, samples: int = SAMPLES
) -> None:
    """However often it is killed, the result holds each episode exactly once, and equals that of one that was not."""
    evaluation = ["eval", "CodeSandbox-v0", *agent, "-n", tasks, "--samples", samples, "--save"]
    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    rng = random.Random(7)
    resumed_from: list[int] = []
    done: list[Any] = []
    for _ in range(kills):
        before = lines(killed)
        resumed_from.append(before)
        process = start(*evaluation, killed, "--resume")
        wait_for(lambda before=before: lines(killed) > before, process)
        time.sleep(rng.uniform(0, 0.03))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was killed, not done"
        known, done = done, [attempt_key(episode) for episode in load_episodes(killed)]
        assert set(known) < set(done), "nothing is lost"
        assert len(done) == len(set(done)) > 0, "no episode is there twice"
    assert resumed_from == sorted(set(resumed_from)), "each start went on from where the last one was killed"
    assert resumed_from[-1] < tasks * samples

    last = start(*evaluation, killed, "--resume")
    out, err = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, err
    assert f"{len(done)} episodes are in {killed}" in out
    assert palaestra(*evaluation, whole).exit_code == 0
    assert killed.read_bytes() == whole.read_bytes()
    assert [attempt_key(episode) for episode in load_episodes(killed)] == [
        (task, sample) for task in range(tasks) for sample in range(samples)
    ]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "palaestra", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(happened: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)

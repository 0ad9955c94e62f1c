"""Run folders with made-up but plausible contents; makes `training_runs` importable."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from palaestra.core.records import episode_to_record, write_records
from palaestra.core.trajectories import Episode, Segment, Trajectory, Turn

sys.path.append(str(Path(__file__).parent))

RECIPE = """
name = "quickstart"
run = "runs/quickstart"
seed = 0
[env]
id = "CodeSandbox-v0"
families = ["compose"]
levels = [1, 2, 2, 3]
max_turns = 10
prompt_style = "compact"
[rollout]
max_turn_tokens = 64
max_context_tokens = 512
[demos]
n = 40000
mix = { careful = 0.18, hasty = 0.75, sloppy = 0.07 }
[grpo]
steps = 100
kl_target = 3.0
"""
PROGRAM = "def f(x):\n    x = [a - b for a, b in zip(x, x[1:])]\n    x = x[::2]\n    return x[0] if x else 0"
PROMPT = "Take x, take differences, take every second item, then get the first item."


def turn(action: str, observation: str, *, prompt: str = "", reply: str = "", error: str | None = None) -> Turn:
    messages = ({"role": "user", "content": prompt},) if prompt else ({"role": "tool", "content": reply},)
    return Turn(action=action, observation=observation, messages=messages, parse_error=error)


def episode(index: int, success: bool | None, prompt: str = PROMPT, turns: tuple[Turn, ...] | None = None) -> Episode:
    level = (1, 2, 2, 3)[index % 4]
    if turns is None and success:
        got = "f([9,4,4,5,3])\ngot 5\nwant 0"
        turns = (
            turn(f"run\n{PROGRAM}", got, prompt=f"{prompt} ({index})"),
            turn("edit\n    x = x[::2]\n    x = x[1::2]", "ok", reply=got),
            turn("submit", "", reply="ok"),
        )
    elif turns is None:
        turns = (turn(f"submit\n{PROGRAM}", "", prompt=f"{prompt} ({index})"),)
    tokens = np.arange(6, dtype=np.int32)
    mask = np.array([0, 0, 1, 1, 0, 1], dtype=np.bool_)
    segment = Segment(
        token_ids_T=tokens, action_mask_T=mask, logprobs_T=np.where(mask, -0.5, np.nan).astype(np.float32)
    )
    failure = None
    if success is None:
        failure = {"kind": "sandbox_died", "message": "the sandbox stopped answering", "retryable": True}
    return Episode(
        task_id=f"compose:heldout:{level}:{index}",
        family="compose",
        level=level,
        seed=index,
        trajectories=(Trajectory(segments=(segment,), turns=turns),),
        reward=math.nan if success is None else float(success),
        success=success,
        stop_reason="failed" if success is None else "submitted",
        terminated=success is not None,
        truncated=success is None,
        failure=failure,
    )


def save(path: Path, episodes: list[Episode]) -> None:
    write_records(path, "episodes", map(episode_to_record, episodes))


def metric_rows(sft_steps: int, grpo_steps: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {"stage": "sft", "step": i * 10, "loss": 3.5 * math.exp(-i / 12) + 0.15 + 0.02 * rng.normal(), "grad_norm": 1.0}
        for i in range(1, sft_steps + 1)
    ]
    for i in range(1, grpo_steps + 1):
        success = 0.9 - 0.5 * math.exp(-i / 25) + 0.03 * rng.normal()
        kl = 3.2 * (1 - math.exp(-i / 15)) + 0.3 * rng.normal()
        rows.append(
            {
                "stage": "grpo",
                "step": i,
                "reward_mean": success,
                "reward_std": 0.4,
                "success": success,
                "kl_seq": abs(kl),
                "kl_token": abs(kl) / 40,
                "beta": 0.05 + 0.001 * i,
                "entropy": 0.35 - 0.002 * i,
                "grad_norm": None if i == 7 else 0.8 + 0.2 * rng.random(),
                "zero_variance_share": 0.2 + 0.004 * i,
                "truncation_rate": 0.0,
                "failures": 1 if i == 40 else 0,
                "parse_errors": 0.02,
                "mean_turns": 2.0 + 0.02 * i,
                "seconds_generation": 0.9 + 0.1 * rng.random(),
                "seconds_environment": 0.3,
                "seconds_reference": 0.3,
                "seconds_update": 1.1,
            }
        )
    return rows


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run: success rises from 40 % to 85 %, and one held-out episode failed."""
    folder = tmp_path / "quickstart"
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metric_rows(30, 100)))
    before = [episode(i, i % 5 in (0, 3)) for i in range(80)]
    after = [episode(i, i % 20 not in (0, 6, 13)) for i in range(79)] + [episode(79, None)]
    greedy = [episode(i, i % 30 != 0) for i in range(80)]
    save(folder / "episodes" / "sft_heldout.jsonl", before)
    save(folder / "episodes" / "policy_heldout.jsonl", after)
    save(folder / "episodes" / "sft_heldout_greedy.jsonl", before)
    save(folder / "episodes" / "policy_heldout_greedy.jsonl", greedy)
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


SUMMARY = {
    "seed": 0,
    "sft_success": 0.4,
    "sft_success_greedy": 0.4,
    "rl_success": 0.85,
    "rl_success_greedy": 0.962,
    "rl_success_hard": 0.76,
    "heldout_n": 80,
    "kl_seq": 2.81,
    "seconds_total": 254.2,
    "seconds_sft": 101.0,
    "seconds_rl": 140.0,
}


@pytest.fixture
def palaestra() -> Callable[..., Any]:
    """Runs the command line in this process: `palaestra("report", "runs/x")` gives click's Result."""
    from palaestra.cli.main import app

    def call(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="palaestra")

    return call


@pytest.fixture
def fails() -> Callable[..., None]:
    """Checks the error contract: status 2, one line on stderr with these fragments, no traceback."""

    def check(result: Any, *fragments: str) -> None:
        assert result.exit_code == 2, result.output
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: ")
        for fragment in fragments:
            assert fragment in lines[0], lines[0]

    return check


@dataclass(frozen=True)
class ToolCallerServer:
    """`transformers serve` with a model that solves its twelve tasks by tool calls."""

    url: str
    folder: Path
    tasks: Path
    actions: tuple[str, ...]

    def evaluation(self, tool_calls: str) -> tuple[object, ...]:
        """The arguments of its evaluation."""
        return (
            "eval", "CodeSandbox-v0", "--base-url", self.url, "--model", self.folder, "--tool-calls", tool_calls,
            "--env", f"tasks={self.tasks}", "--env", "max_turns=3", "--max-turn-tokens", 30, "--greedy",
            "--num-envs", 4,
        )  # fmt: skip


@pytest.fixture(scope="session")
def tool_caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToolCallerServer]:
    """The real server, offline, on a free port."""
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi: pip install '.[test]' brings it")
    pytest.importorskip("openai", reason="transformers serve needs openai: pip install '.[test]' brings it")
    from server_process import ServerProcess
    from tool_caller import ACTIONS, save_tool_caller, write_tasks

    place = tmp_path_factory.mktemp("tool_caller")
    tasks = write_tasks(place / "tasks.jsonl", 12)
    folder = save_tool_caller(place / "model", tasks)
    serve = [sys.executable, "-P", "-c", "from transformers.cli.transformers import app; app()", "serve", str(folder)]
    with ServerProcess(
        [*serve, "--host", "127.0.0.1", "--port", "0", "--device", "cpu"],
        r"running on (http://127\.0\.0\.1:\d+)",
        {"HF_HUB_OFFLINE": "1"},
    ) as server:
        yield ToolCallerServer(f"{server.url}/v1", folder, tasks, ACTIONS)


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    """`make_episode(index, success)`: an episode of the compose family; success None is a failure."""
    return episode


@pytest.fixture
def save_episodes() -> Callable[[Path, list[Episode]], None]:
    """Writes an episodes file."""
    return save

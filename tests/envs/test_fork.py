"""Copies of live episodes."""

import runpy
from pathlib import Path

import gymnasium as gym
import pytest

from palaestra.core.errors import ConfigError
from palaestra.envs.base import ToolEnv
from palaestra.envs.options import EnvOptions
from palaestra.envs.registration import make_env


@pytest.fixture
def env():
    env = make_env("CodeSandbox-v0", levels=[2], reuse_results=False)
    env.reset(seed=3)
    yield env
    env.close()


def test_copies_go_their_own_ways(env) -> None:
    env.step("run\nx = 1\nprint(x)")
    first, second = env.unwrapped.fork(2)
    assert first.step("run\nx += 1\nprint(x)")[0].startswith("2")
    assert first.step("run\nx += 1\nprint(x)")[0].startswith("3")
    assert second.step("run\nprint(x)")[0].startswith("1")
    assert env.step("run\nx += 10\nprint(x)")[0].startswith("11")
    assert [copy.turns_left for copy in (env.unwrapped, first, second)] == [8, 7, 8]
    assert first.task == env.unwrapped.task
    answers = [copy.step("submit\ndef f(x): return 0") for copy in (first, second)]
    assert [answer[2] for answer in answers] == [True, True]
    assert env.step("run\nprint(x)")[0].startswith("11")
    for copy in (first, second):
        copy.close()
    env.close()


def test_copies_draw_the_same_next_task_and_can_be_copied_before_anything_ran(env) -> None:
    (copy,) = env.unwrapped.fork(1)
    assert copy.step("run\nprint(7)") == env.step("run\nprint(7)")
    assert copy.reset()[1]["task_id"] == env.reset()[1]["task_id"]
    copy.close()


def test_remembered_programs_run_in_a_copy_when_the_next_one_needs_them() -> None:
    for _ in range(2):  # the second time, the first program is answered from memory
        env = make_env("CodeSandbox-v0", levels=[2])
        env.reset(seed=4)
        env.step("run\nx = 41")
        (copy,) = env.unwrapped.fork(1)
        assert copy.step("run\nprint(x + 1)")[0].startswith("42")
        env.close()
        copy.close()


def test_no_copies_of_nothing(env) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        env.unwrapped.fork(0)
    env.step("submit\ndef f(x): return 0")
    with pytest.raises(gym.error.ResetNeeded):
        env.unwrapped.fork(1)
    other = ToolEnv(EnvOptions(), {"x": None})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="ToolEnv cannot be forked"):
        other.fork(1)


def test_the_example_gives_each_action_its_share(repository: Path) -> None:
    credit = runpy.run_path(str(repository / "examples" / "branching.py"))["credit"]
    steps, reward = credit(seed=7, branches=4)
    assert len(steps) > 2
    assert sum(step.advantage for step in steps) == pytest.approx(reward - steps[0].value_before)
    assert any(step.advantage for step in steps)
    assert credit(seed=7, branches=4) == (steps, reward)

"""The contract kit over the shipped families, and over environments that break the contract."""

import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from palaestra.core.tasks import Task, task_id_of
from palaestra.envs.base import EnvOptions, ToolEnv
from palaestra.envs.self_check import CHECKS, self_check
from palaestra.envs.tools import tool
from palaestra.rewards.base import Grade


class GuessFamily:
    name = "guess"
    levels = (1, 2)

    def generate(self, seed: int, split: str, level: int) -> Task:
        number = random.Random(f"{seed}{split}{level}").randint(1, 10**level)
        task_id = task_id_of(self.name, split, level, seed)
        return Task(
            task_id=task_id, family=self.name, split=split, level=level, prompt=f"Guess 1..{10**level}.",
            secret={"number": number, "proof": f"the number to find is {number}"},
        )  # fmt: skip


class GuessEnv(ToolEnv):
    """A whole environment of one's own: the smallest that says higher or lower."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(EnvOptions(**keywords), {"guess": GuessFamily()})

    def _start(self, task: Task) -> None:
        self.best = 0

    @tool
    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: What you think it is.
        """
        secret = self.task.secret["number"]
        if number == secret:
            self._submit(Grade(reward=1.0, success=True, components={"found": 1.0}))
            return "found"
        return "lower" if number > secret else "higher"


class Forgetful(GuessEnv):
    """Draws its observations from nowhere."""

    def reset(self, **keywords: Any) -> Any:
        observation, info = super().reset(**keywords)
        return observation + str(random.random()), info


class NumpyBools(GuessEnv):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, np.bool_(terminated), truncated, info


class Blabber(GuessEnv):
    """Tells what is secret."""

    def reset(self, **keywords: Any) -> Any:
        observation, info = super().reset(**keywords)
        return observation, {**info, "hint": self.task.secret["proof"]}


class Forgiving(GuessEnv):
    """Rewards what died."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, 0.0 if truncated else reward, terminated, truncated, info


for kind in (GuessEnv, Forgetful, NumpyBools, Blabber, Forgiving):
    gym.register(id=f"Test{kind.__name__}-v0", entry_point=kind)


def problems(env_id: str, **keywords: Any) -> dict[str, str]:
    results = self_check(env_id, **keywords)
    assert len(results) == len(CHECKS)
    return {result.name: result.problem for result in results if result.problem}


@pytest.mark.parametrize("family", ["compose", "repair", "trace"])
@pytest.mark.parametrize("prompt_style", ["full", "compact"])
def test_code_sandbox_keeps_the_contract(family: str, prompt_style: str) -> None:
    assert problems("CodeSandbox-v0", families=[family], prompt_style=prompt_style) == {}


def test_an_environment_of_ones_own_keeps_the_contract_and_can_be_won() -> None:
    assert problems("TestGuessEnv-v0") == {}
    env = GuessEnv(levels=[1])
    env.reset(seed=1)
    low, high = 1, 10
    for _ in range(5):
        middle = (low + high) // 2
        answer, reward, terminated, _, info = env.step(f"guess {middle}")
        if terminated:
            break
        low, high = (low, middle - 1) if answer == "lower" else (middle + 1, high)
    assert (answer, reward, info["success"], info["reward_components"]) == ("found", 1.0, True, {"found": 1.0})


@pytest.mark.parametrize(
    ("env_id", "check", "said"),
    [
        ("TestForgetful-v0", "repeats resets of one seed", "something else the next time"),
        ("TestForgetful-v0", "tells what it promises in infos", "does not say what the observation says"),
        ("TestNumpyBools-v0", "takes any text as an action", "must be bool"),
        ("TestBlabber-v0", "keeps secrets", "shows a part of its secret"),
        ("TestForgiving-v0", "never rewards a failure of infrastructure", "was rewarded with 0.0"),
    ],
)
def test_broken_environments_are_found_out(env_id: str, check: str, said: str) -> None:
    assert said in problems(env_id)[check]

import gymnasium as gym
import numpy as np
import pytest

from palaestra.envs.registration import make_vector_env
from palaestra.envs.vector import ToolVectorEnv


@pytest.fixture(params=[0, 4])
def envs(request):
    envs = make_vector_env("CodeSandbox-v0", 4, workers=request.param, levels=[1], prompt_style="compact")
    yield envs
    envs.close()


def test_make_vec_uses_our_vector_entry_point() -> None:
    envs = gym.make_vec("CodeSandbox-v0", num_envs=3, vectorization_mode="vector_entry_point", levels=[1])
    assert isinstance(envs, ToolVectorEnv)
    observations, infos = envs.reset(seed=5)
    assert len(observations) == 3
    assert len(set(infos["task_id"])) == 3
    observations, rewards, terminated, truncated, infos = envs.step(["submit"] * 3)
    assert rewards.tolist() == [0.0] * 3
    assert not terminated.any()
    assert not truncated.any()
    assert observations[0].startswith("error: there is no program")
    envs.close()
    envs.close()


def test_without_lockstep_everyone_is_answered_by_number(envs) -> None:
    envs.send_reset([0, 1, 2, 3], [7, 7, 8, 9])
    first = {outcome.id: outcome for outcome in envs.recv(4)}
    assert first[0].observation == first[1].observation != first[2].observation
    envs.send(["run\nprint(2)", "run\nprint(3)"], [2, 3])
    assert {outcome.id: outcome.observation for outcome in envs.recv(2)} == {2: "2", 3: "3"}
    assert envs.recv(1, timeout_s=0.01) == []


def test_a_mask_resets_only_some(envs) -> None:
    before, _ = envs.reset(seed=1)
    after, _ = envs.reset(seed=50, options={"reset_mask": np.array([True, False, False, True])})
    assert after[1:3] == before[1:3]
    assert after[0] != before[0]


def test_errors_of_environments_are_raised_to_the_caller(envs) -> None:
    envs.send(["submit"], [0])
    with pytest.raises(gym.error.ResetNeeded):
        envs.recv(1)

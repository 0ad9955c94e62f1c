import copy
import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from palaestra.core.errors import SandboxDied
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


def make_one() -> gym.Env:
    return gym.make("palaestra:CodeSandbox-v0", levels=[1])


@pytest.mark.parametrize("shared_memory", [None, False, True])
def test_gymnasiums_own_vectors_give_the_same_observations_or_say_what_to_change(shared_memory: bool | None) -> None:
    if shared_memory:
        with pytest.raises(ValueError, match="shared_memory=False"):
            AsyncVectorEnv([make_one] * 2, shared_memory=True)
        return
    envs = SyncVectorEnv([make_one] * 2) if shared_memory is None else AsyncVectorEnv([make_one] * 2, False)
    ours = gym.make_vec("CodeSandbox-v0", num_envs=2, levels=[1])
    for actions in (None, ["run\nprint(2)", "run\nprint(3)"], ["submit\ndef f(x): return 0", "hello"]):
        given, wanted = (vector.reset(seed=5) if actions is None else vector.step(actions) for vector in (envs, ours))
        assert list(given[0]) == list(wanted[0])
        for one, other in zip(given[1:-1], wanted[1:-1], strict=True):
            np.testing.assert_array_equal(one, other)
        assert given[-1]["task_id"].tolist() == wanted[-1]["task_id"].tolist()
    envs.close()
    ours.close()


def test_infos_of_different_kinds_stand_side_by_side() -> None:
    """One environment succeeds, one goes on, one fails: None is not False, and no info is lost."""
    envs = gym.make_vec("CodeSandbox-v0", num_envs=3, levels=[1], on_failure="info")
    envs.reset(seed=1)

    def die(code: str) -> str:
        raise SandboxDied("gone")

    envs.envs[2].unwrapped.run = die
    reference = envs.envs[0].unwrapped.task.secret["reference"]
    _, rewards, terminated, truncated, infos = envs.step([f"submit\n{reference}", "run\nx = 1", "run\nx = 1"])
    assert rewards[:2].tolist() == [1.0, 0.0]
    assert math.isnan(rewards[2])
    assert (terminated.tolist(), truncated.tolist()) == ([True, False, False], [False, False, True])
    assert infos["success"].tolist() == [True, None, None]
    assert infos["stop_reason"].tolist() == ["submitted", None, "failed"]
    failure = {"kind": "sandbox_died", "message": "gone", "retryable": True}
    assert infos["failure"].tolist() == [None, None, failure]
    assert infos["_failure"].all()
    assert infos["reward_components"]["hidden_tests"][0] == 1.0
    assert infos["reward_components"]["_hidden_tests"].tolist() == [True, False, False]
    envs.close()


def test_a_vector_renders_what_its_environments_do_and_its_spec_makes_it_again() -> None:
    envs = gym.make_vec("CodeSandbox-v0", num_envs=2, levels=[1], render_mode="ansi")
    observations, _ = envs.reset(seed=5)
    envs.step(["run\nprint('seen')"] * 2)
    assert ["seen" in text for text in envs.render()] == [True, True]
    again = gym.make_vec(copy.deepcopy(envs.spec))
    assert again.reset(seed=5)[0] == observations
    envs.close()
    again.close()

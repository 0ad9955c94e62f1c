"""ProjectSandbox-v0 gives the same episodes in a container as in the local sandbox."""

from typing import Any

import gymnasium as gym
import pytest
from played import episode

from palaestra.sandboxes import Limits

pytestmark = pytest.mark.docker
EPISODES = {"oracle": 40, "careful": 20, "reviewer": 10}


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"reuse_results": False, "limits": {"timeout_s": Limits().timeout_s * 3}}  # a busy machine changes nothing


@pytest.mark.parametrize("agent", EPISODES)
def test_seeded_episodes_are_equal_bit_for_bit(image: str, agent: str, settings: dict[str, Any]) -> None:
    local = gym.make("ProjectSandbox-v0", sandbox="local", **settings)
    docker = gym.make("ProjectSandbox-v0", sandbox="docker", image=image, **settings)
    for seed in range(EPISODES[agent]):
        here, there = episode(local, agent, seed), episode(docker, agent, seed)
        assert repr(here) == repr(there), seed
    local.close()
    docker.close()


def test_commands_run_in_the_container_and_what_they_change_comes_back(image: str, settings: dict[str, Any]) -> None:
    env = gym.make("ProjectSandbox-v0", sandbox="docker", image=image, levels=[1], **settings)
    env.reset(seed=1)
    assert env.step("bash ls")[0].split() == sorted(env.unwrapped.task.public["files"])
    assert (
        env.step("bash echo 'x = 41' > new.py; sed -i s/41/42/ new.py; python3 -c 'import new; print(new.x)'")[0]
        == "42"
    )
    assert env.step("read new.py")[0] == "1 x = 42"
    (copy,) = env.unwrapped.fork(1)
    copy.step("bash rm new.py")
    assert "new.py" not in copy.step("list")[0]
    assert env.step("bash cat new.py")[0] == "x = 42"
    copy.close()
    env.close()

"""CodeSandbox-v0 gives the same episodes in a container as in the local sandbox, bit for bit."""

from typing import Any

import gymnasium as gym
import pytest

from palaestra.agents.scripted import scripted_agent
from palaestra.sandboxes import Limits

pytestmark = pytest.mark.docker
EPISODES = {"oracle": 200, "mixed": 60}
"""The oracle hands its solution in; the experts' mix runs, fails and edits first."""


def episode(env: Any, agent_name: str, seed: int) -> list[object]:
    """All that an episode gave to who ran it."""
    observation, info = env.reset(seed=seed)
    said: list[object] = [observation, info]
    agent = scripted_agent(agent_name, info["family"], env)
    agent.reset(observation, info, seed)
    done = False
    while not done:
        observation, reward, terminated, truncated, info = env.step(agent.act(observation, info))
        said.append((observation, reward, terminated, truncated, info))
        done = terminated or truncated
    return said


@pytest.mark.parametrize("agent", EPISODES)
def test_seeded_episodes_are_equal_bit_for_bit(image: str, agent: str) -> None:
    settings: dict[str, Any] = {
        "families": ["compose", "repair"],
        "reuse_results": False,
        "limits": {"timeout_s": Limits().timeout_s * 3},  # a busy machine changes nothing
    }
    local = gym.make("CodeSandbox-v0", sandbox="local", **settings)
    docker = gym.make("CodeSandbox-v0", sandbox="docker", image=image, **settings)
    rewards: list[float] = []
    for seed in range(EPISODES[agent]):
        here, there = episode(local, agent, seed), episode(docker, agent, seed)
        assert repr(here) == repr(there), seed
        last: Any = here[-1]
        rewards.append(last[1])
    local.close()
    docker.close()
    if agent == "oracle":
        assert rewards == [1.0] * EPISODES[agent]

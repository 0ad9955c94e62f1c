"""CodeSandbox-v0 gives the same episodes in a container as in the local sandbox, bit for bit."""

from typing import Any

import gymnasium as gym
import pytest
from played import episode

from palaestra.sandboxes import Limits

pytestmark = pytest.mark.docker
EPISODES = {"oracle": 200, "mixed": 60}
"""The oracle hands its solution in; the experts' mix runs, fails and edits first."""


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

"""Whole episodes, for comparing places in which they are played."""

from typing import Any

from palaestra.agents.scripted import scripted_agent


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

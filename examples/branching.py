"""Step-level branching: what each action of an episode was worth, estimated by live copies of the environment.

An outcome reward says how an episode ended, not which action decided it. Here the episode is copied before every action
(`env.unwrapped.fork`: interpreter, files and turns taken), a few copies play on from there, and the mean of what they
reach estimates the value V(s_t). The advantage of an action is then the difference that it made,

    A_t = V(s_{t+1}) - V(s_t),    V(end) = the episode's reward     (rewards come only at the end, no discount)

which is the Monte Carlo estimate of VinePPO (Kazemnejad et al. 2024, arXiv 2410.01679, eq. 6). It needs no critic. With
GRPO, the copies of one state are a group, and `learners.advantages.group_advantages` of their rewards ranks them.

Usage: python examples/branching.py [--seed 7] [--branches 8]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

import gymnasium as gym

import palaestra  # noqa: F401 - registers the environments
from palaestra.agents.scripted import scripted_agent

EXPERT = "sloppy"
"""Any policy that can be copied will do; this one edits at random and gives up now and then."""


@dataclass(frozen=True)
class Step:
    """One action, and what it was worth."""

    action: str
    value_before: float
    advantage: float


def play_on(env: Any, agent: Any, observation: str, info: Mapping[str, Any]) -> float:
    """Gives the reward that an agent reaches from where the environment is, and closes the environment."""
    try:
        while True:
            observation, reward, terminated, truncated, info = env.step(agent.act(observation, info))
            if terminated or truncated:
                return reward
    finally:
        env.close()


def value(env: Any, agent: Any, observation: str, info: Mapping[str, Any], branches: int) -> float:
    """Estimates what the policy reaches from here: the mean over live copies, each with draws of its own."""
    returns: list[float] = []
    for number, branch in enumerate(env.unwrapped.fork(branches)):
        follower = copy.deepcopy(agent)
        follower.reseed(number)
        returns.append(play_on(branch, follower, observation, info))
    return mean(returns)


def credit(seed: int, branches: int) -> tuple[list[Step], float]:
    """Plays an episode and gives its steps with their advantages, and its reward."""
    env = gym.make("CodeSandbox-v0", levels=[6], prompt_style="compact")
    observation, info = env.reset(seed=seed)
    agent: Any = scripted_agent(EXPERT, info["family"], env)
    agent.reset(observation, info, seed)
    steps: list[Step] = []
    estimate = value(env, agent, observation, info, branches)
    terminated = False
    reward = 0.0
    while not terminated:
        action = agent.act(observation, info)
        observation, reward, terminated, _, info = env.step(action)
        following = float(reward) if terminated else value(env, agent, observation, info, branches)
        steps.append(Step(action, estimate, following - estimate))
        estimate = following
    env.close()
    return steps, float(reward)


def main() -> None:
    """Prints an episode with what each action was worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--branches", type=int, default=8, help="live copies that play on from each state")
    arguments = parser.parse_args()
    steps, reward = credit(arguments.seed, arguments.branches)
    for step in steps:
        action = step.action.replace("\n", " | ")
        print(f"V={step.value_before:.2f}  A={step.advantage:+.2f}  {action[:100]}")
    print(
        f"reward {reward:.0f}; the advantages sum to reward - V(start) = {sum(step.advantage for step in steps):+.2f}"
    )


if __name__ == "__main__":
    main()

"""One episode of an agent that reads texts and writes texts, in one environment; it has no tokens to record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..core.errors import EnvironmentFailure
from ..core.messages import Message
from ..core.trajectories import Episode, Sampling, Trajectory, Turn
from .base import Agent

MakeAgent = Callable[[Mapping[str, Any]], Agent]
"""Makes the agent of an episode from the info that `env.reset` gave."""
CONTEXT_LIMIT = "context_limit"


class StopsHere(Exception):
    """Raised by an agent that does not go on: the episode ends unsolved, from outside.

    Args:
        reason: The episode's `stop_reason`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ContextLimit(StopsHere):
    """Raised by an agent whose model's context is full."""

    def __init__(self) -> None:
        super().__init__(CONTEXT_LIMIT)


def run_episode(
    env: Any,
    make_agent: MakeAgent,
    task_id: str,
    seed: int,
    *,
    name: str,
    info: Mapping[str, Any],
    sampling: Sampling | None = None,
) -> Episode:
    """Plays one episode; a failure of infrastructure is data, not a crash.

    Args:
        env: An environment that raises `EnvironmentFailure`.
        make_agent: Makes the agent.
        task_id: The task.
        seed: The randomness of environment and agent.
        name: What to call the agent in the record.
        info: Plain JSON data for the episode's record; read when the episode has ended.
        sampling: How the agent samples its actions, where it does.
    """
    turns: list[Turn] = []
    reward, success, reason = math.nan, None, "failed"
    failure: dict[str, Any] | None = None
    components: Mapping[str, float] = {}
    terminated = truncated = False
    total = 0.0
    try:
        observation, latest = env.reset(seed=seed, options={"task_id": task_id})
        agent = make_agent(latest)
        agent.reset(observation, latest, seed)
        while not (terminated or truncated):
            messages: tuple[Message, ...] = tuple(latest["messages"])
            action = agent.act(observation, latest)
            observation, step_reward, terminated, truncated, latest = env.step(action)
            total += step_reward
            turns.append(
                Turn(
                    action=action,
                    observation=observation,
                    messages=messages,
                    reward=step_reward,
                    parse_error=latest["parse_error"],
                )
            )
        reward, success, reason = total, bool(latest["success"]), latest["stop_reason"]
        components = latest["reward_components"]
    except StopsHere as stop:
        reward, success, reason, truncated = total, False, stop.reason, True
    except EnvironmentFailure as error:
        failure = {"kind": error.kind, "message": error.message, "retryable": error.retryable}
        truncated = True
    task = env.unwrapped.task
    return Episode(
        task_id=task_id,
        family=task.family,
        level=task.level,
        seed=seed,
        trajectories=(Trajectory(segments=(), turns=tuple(turns), sampling=sampling or Sampling(), agent=name),),
        reward=reward,
        success=success,
        stop_reason=reason,
        terminated=terminated,
        truncated=truncated,
        reward_components=components,
        failure=failure,
        info=dict(info),
    )

"""Plays a recorded episode again, action by action, and says where it goes another way.

Everything that an environment answered is compared exactly: the messages that the agent read, observations, rewards,
what was malformed, the names of states, and how the episode ended. Tokens and log-probabilities are not looked at: they
are the policy's. Episodes that were copied from the middle of another one hold its turns too, and are played from the
start. A failure of infrastructure, then or now, is no difference: it says nothing about the environment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..core.errors import EnvironmentFailure, RecordError
from ..core.messages import user
from ..core.trajectories import Episode, Turn

Status = Literal["equal", "different", "failed then", "failed now"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first thing that came another way.

    Example: `Difference(turn=2, what="observation", recorded="f(3) gave 4", now="f(3) gave 5")`.
    """

    turn: int
    """Counted from 1; 0 is the reset."""
    what: str
    recorded: Any
    now: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How playing an episode again went."""

    turns: int
    """Actions that were taken."""
    difference: Difference | None = None
    failure_then: str = ""
    """What infrastructure did when the episode was recorded; its turns up to there are compared all the same."""
    failure_now: str = ""

    @property
    def status(self) -> Status:
        """What came of it; a difference goes first."""
        if self.difference is not None:
            return "different"
        if self.failure_now:
            return "failed now"
        return "failed then" if self.failure_then else "equal"


def replay(env: Any, episode: Episode) -> Replay:
    """Plays an episode again.

    Args:
        env: An environment made as the recorded one was; it raises `EnvironmentFailure`.
        episode: What was recorded.

    Raises:
        RecordError: The episode is one of several agents.
        TaskError: The environment does not have its task.
    """
    if len(episode.trajectories) != 1:
        raise RecordError(f"an episode of {len(episode.trajectories)} agents cannot be played again")
    failure = episode.failure
    failed_then = f"{failure.get('kind', '?')}: {failure.get('message', '')}" if failure else ""
    turns = 0
    try:
        for turns, what, recorded, now in _compared(env, episode):
            if not _same(recorded, now):
                difference = Difference(turn=turns, what=what, recorded=recorded, now=now)
                return Replay(turns=turns, difference=difference, failure_then=failed_then)
    except EnvironmentFailure as error:
        return Replay(turns=turns, failure_then=failed_then, failure_now=str(error))
    return Replay(turns=turns, failure_then=failed_then)


def _compared(env: Any, episode: Episode) -> Iterator[tuple[int, str, Any, Any]]:
    """Yields (turn, what, recorded, now); what comes after a difference is not played."""
    recorded = episode.trajectories[0].turns
    options = {"task_id": episode.task_id} if episode.task_id else {}
    observation, info = env.reset(seed=episode.seed, options=options)
    for name in ("task_id", "family", "level"):
        if name in info:
            yield 0, name, getattr(episode, name), info[name]
    total, terminated, truncated = 0.0, False, False
    for number, turn in enumerate(recorded, 1):
        yield number - 1, "end", "the episode went on", _ending(terminated, truncated)
        yield number - 1, "messages", list(turn.messages), _messages(observation, info)
        if turn.anchor is not None:
            yield number - 1, "anchor", turn.anchor, info.get("anchor")
        observation, reward, terminated, truncated, info = env.step(turn.action)
        total += reward
        yield from _answers(number, turn, observation, reward, info)
    if not episode.failed:
        yield from _endings(len(recorded), episode, (total, terminated, truncated), info)


def _answers(
    number: int, turn: Turn, observation: str, reward: float, info: Mapping[str, Any]
) -> Iterator[tuple[int, str, Any, Any]]:
    yield number, "observation", turn.observation, observation
    yield number, "reward", turn.reward, float(reward)
    yield number, "parse error", turn.parse_error, info.get("parse_error")


def _endings(
    last: int, episode: Episode, now: tuple[float, bool, bool], info: Mapping[str, Any]
) -> Iterator[tuple[int, str, Any, Any]]:
    """Compares how it ended; what was ended from outside (a token limit, a player who left) must not end by itself."""
    total, terminated, truncated = now
    if not episode.terminated:
        yield last, "end", "the episode went on", _ending(terminated, False)
        return
    yield last, "end", _ending(True, False), _ending(terminated, truncated)
    yield last, "stop reason", episode.stop_reason, info.get("stop_reason") or "terminated"
    yield last, "success", bool(episode.success), bool(info.get("success"))
    yield last, "reward of the episode", episode.reward, total
    yield last, "reward components", dict(episode.reward_components), dict(info.get("reward_components") or {})


def _ending(terminated: bool, truncated: bool) -> str:
    return "the episode terminated" if terminated else "it was truncated" if truncated else "the episode went on"


def _messages(observation: str, info: Mapping[str, Any]) -> list[Any]:
    return list(info.get("messages") or [user(observation)])


def _same(recorded: Any, now: Any) -> bool:
    both_nan = isinstance(recorded, float) and isinstance(now, float) and math.isnan(recorded) and math.isnan(now)
    return both_nan or recorded == now

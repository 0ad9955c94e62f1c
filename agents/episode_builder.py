"""One episode while it is collected: its tokens, turns and rewards, and how it becomes a record."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.messages import Message
from ..core.trajectories import Episode, Sampling, Segment, SegmentBuilder, Trajectory, Turn
from ..models.chat import Action, Conversation, Extension
from ..models.engine import Completion
from .single_episode import CONTEXT_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSpec:
    """One episode to collect.

    Example: two attempts at one task, the members of one group::

        [EpisodeSpec(task_id="compose:train:2:17", seed=5, replica=i, group=0) for i in range(2)]
    """

    task_id: str | None
    """None lets the environment draw a task from `seed`."""
    seed: int
    replica: int = 0
    """Which attempt at the task this is; decides the attempt's randomness."""
    group: int = 0
    trunk: int | None = None
    """Replica of the episode of the same group and task that this one goes on from in the middle (see `branching`)."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further options of `env.reset`."""

    @property
    def task_key(self) -> str | int:
        """What names the task in seeds."""
        return self.seed if self.task_id is None else self.task_id


class EpisodeBuilder:
    """Collects one attempt at an episode."""

    def __init__(self, spec: EpisodeSpec, generator: np.random.Generator, attempt: int = 0) -> None:
        self.spec, self.generator, self.attempt = spec, generator, attempt
        self.conversation: Conversation | None = None
        self.environment_s = 0.0
        """Share of the time that the collector spent waiting for environments."""
        self._unread: Sequence[Message] = ()
        self._done_segments: list[Segment] = []
        self._segment = SegmentBuilder()
        self._turns: list[Turn] = []
        self._pending: tuple[Action, int, int, int] | None = None
        self._task: Mapping[str, Any] = {}
        self._reward = 0.0
        self._anchor: str | None = None
        self.forked_at: int | None = None
        """How many turns are those of the trunk that this episode goes on from."""

    def branch(self, spec: EpisodeSpec, generator: np.random.Generator) -> EpisodeBuilder:
        """A copy between two turns, which goes on by itself."""
        assert self.conversation is not None
        assert self._pending is None
        made = EpisodeBuilder(spec, generator, self.attempt)
        made.conversation = Conversation(list(self.conversation.messages), self.conversation.tools)
        made._done_segments, made._segment = list(self._done_segments), self._segment.copy()
        made._turns, made._unread = list(self._turns), self._unread
        made._task, made._reward, made._anchor = self._task, self._reward, self._anchor
        made.forked_at = len(self._turns)
        return made

    @property
    def turn_count(self) -> int:
        """Turns that were answered."""
        return len(self._turns)

    @property
    def context_ids(self) -> list[int]:
        """All tokens of the current segment."""
        return self._segment.token_ids

    @property
    def key(self) -> Hashable:
        """The engine's name for the current segment of this attempt."""
        return (id(self), len(self._done_segments))

    @property
    def context_length(self) -> int:
        """Tokens of the current segment."""
        return len(self._segment)

    def begin(self, info: Mapping[str, Any], messages: list[Message], prompt_ids: list[int]) -> None:
        """Starts the conversation with the reset's messages and their tokens."""
        self.conversation = Conversation(messages, info.get("tools") or ())
        self._task, self._unread = info, tuple(messages)
        self._anchor = _anchor(info)
        self._segment.append_context(prompt_ids)

    def add_action(self, completion: Completion, text: str, version: int) -> Action:
        """Records a sampled turn; the environment's answer is still to come."""
        start = len(self._segment)
        self._segment.append_action(completion.token_ids, completion.logprobs)
        action = Action(text=text, ended=completion.finished == "end")
        self._pending = (action, start, len(self._segment), version)
        return action

    def add_answer(self, observation: str, reward: float, info: Mapping[str, Any]) -> Action:
        """Records what the environment answered; gives the action that it answers."""
        assert self._pending is not None
        action, start, stop, version = self._pending
        self._turns.append(
            Turn(
                action=action.text,
                observation=observation,
                messages=tuple(self._unread),
                segment=len(self._done_segments),
                start=start,
                stop=stop,
                reward=float(reward),
                parse_error=info.get("parse_error"),
                policy_version=version,
                anchor=self._anchor,
            )
        )
        self._pending = None
        self._reward += float(reward)
        self._unread = tuple(info.get("messages") or ())
        self._anchor = _anchor(info)
        return action

    def extend(self, extension: Extension) -> None:
        """Appends the context that follows an action, in a new segment where the template rewrote history."""
        if extension.new_segment:
            self._done_segments.append(self._segment.build())
            self._segment = SegmentBuilder()
        self._segment.append_context(extension.token_ids)

    def finish(self, sampling: Sampling, info: Mapping[str, Any], terminated: bool, truncated: bool) -> Episode:
        """Gives the record of an episode that its environment ended."""
        return self._episode(
            sampling,
            reward=self._reward,
            success=None if info.get("success") is None else bool(info["success"]),
            stop_reason=str(info.get("stop_reason") or ("terminated" if terminated else "truncated")),
            terminated=terminated,
            truncated=truncated,
            reward_components=dict(info.get("reward_components") or {}),
        )

    def cut_off(self, sampling: Sampling) -> Episode:
        """Gives the record of an episode that outgrew the token budget: a limit from outside, nothing was achieved."""
        return self._episode(
            sampling,
            reward=self._reward,
            success=False,
            stop_reason=CONTEXT_LIMIT,
            terminated=False,
            truncated=True,
        )

    def fail(self, sampling: Sampling, failure: Mapping[str, Any]) -> Episode:
        """Gives the record of an episode that infrastructure ended: reward NaN, to be masked."""
        return self._episode(
            sampling,
            reward=math.nan,
            success=None,
            stop_reason="failed",
            terminated=False,
            truncated=True,
            failure=dict(failure),
        )

    def _episode(self, sampling: Sampling, **outcome: Any) -> Episode:
        segments = [*self._done_segments, self._segment.build()] if len(self._segment) else self._done_segments
        return Episode(
            task_id=str(self._task.get("task_id") or self.spec.task_id or ""),
            family=str(self._task.get("family") or ""),
            level=int(self._task.get("level") or 0),
            seed=self.spec.seed,
            trajectories=(
                Trajectory(
                    segments=tuple(segments), turns=tuple(self._turns), sampling=sampling, forked_at=self.forked_at
                ),
            ),
            info={
                "group": self.spec.group,
                "replica": self.spec.replica,
                "attempts": self.attempt + 1,
                "environment_s": round(self.environment_s, 6),
                **({} if self.forked_at is None else {"trunk": self.spec.trunk}),
            },
            **outcome,
        )


def _anchor(info: Mapping[str, Any]) -> str | None:
    anchor = info.get("anchor")
    return None if anchor is None else str(anchor)

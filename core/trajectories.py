"""What happened in episodes: one flat token stream per segment is the record.

Tokens are recorded when they are sampled and never decoded and encoded again. Legend: T tokens of one segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .messages import Message

StopReason = Literal["terminated", "truncated", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """A stretch of tokens that a model saw in one context; append-only while it was collected.

    Example: prompt tokens 5 6, sampled tokens 7 8, an observation 9::

        Segment(token_ids_T=[5, 6, 7, 8, 9], action_mask_T=[F, F, T, T, F], logprobs_T=[nan, nan, -.1, -.7, nan])
    """

    token_ids_T: NDArray[np.int32]
    action_mask_T: NDArray[np.bool_]
    """True = the policy sampled this token."""
    logprobs_T: NDArray[np.float32]
    """Log-probability (nats) under the behaviour policy, at the sampling temperature; NaN where the mask is False."""

    def __post_init__(self) -> None:
        shape = self.token_ids_T.shape
        if len(shape) != 1 or self.action_mask_T.shape != shape or self.logprobs_T.shape != shape:
            raise ValueError("token_ids_T, action_mask_T and logprobs_T must be 1-D and equally long")

    def __len__(self) -> int:
        return len(self.token_ids_T)

    def without_actions(self, stop: int) -> Segment:
        """The same tokens, with those before `stop` as context that the policy did not sample."""
        own_T = self.action_mask_T.copy()
        own_T[:stop] = False
        logprobs_T = np.where(own_T, self.logprobs_T, np.float32(np.nan))
        return Segment(token_ids_T=self.token_ids_T, action_mask_T=own_T, logprobs_T=logprobs_T)


class SegmentBuilder:
    """Collects one segment: append context or sampled tokens, then `build()`. Nothing can be changed or removed."""

    __slots__ = ("_ids", "_logprobs", "_mask")

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._mask: list[bool] = []
        self._logprobs: list[float] = []

    def __len__(self) -> int:
        return len(self._ids)

    def append_context(self, token_ids: Sequence[int]) -> None:
        """Appends tokens that the policy did not sample: a prompt, an observation."""
        self._ids += token_ids
        self._mask += [False] * len(token_ids)
        self._logprobs += [float("nan")] * len(token_ids)

    def append_action(self, token_ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Appends sampled tokens with their behaviour log-probabilities."""
        if len(token_ids) != len(logprobs):
            raise ValueError("every sampled token needs one log-probability")
        self._ids += token_ids
        self._mask += [True] * len(token_ids)
        self._logprobs += logprobs

    def copy(self) -> SegmentBuilder:
        """A builder with the same tokens, which goes on by itself."""
        made = SegmentBuilder()
        made._ids, made._mask, made._logprobs = list(self._ids), list(self._mask), list(self._logprobs)
        return made

    @property
    def token_ids(self) -> list[int]:
        """A copy of the tokens so far."""
        return list(self._ids)

    def build(self) -> Segment:
        """Gives the segment as arrays."""
        return Segment(
            token_ids_T=np.array(self._ids, dtype=np.int32),
            action_mask_T=np.array(self._mask, dtype=np.bool_),
            logprobs_T=np.array(self._logprobs, dtype=np.float32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One action and what came back.

    `start:stop` is the span of the action's tokens in `segments[segment]`; scripted agents have no tokens and leave
    it at 0:0.
    """

    action: str
    observation: str
    """What the environment answered; empty at the end of an episode."""
    messages: tuple[Message, ...] = ()
    """The new messages that the policy read before this action: the prompt at the first turn, then tool replies."""
    segment: int = 0
    start: int = 0
    stop: int = 0
    reward: float = 0.0
    parse_error: str | None = None
    policy_version: int = 0
    anchor: str | None = None
    """The environment's name for the state in which the action was taken (`info["anchor"]`); equal names, equal states.
    None: it gave none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How actions were sampled. `temperature=0` is greedy decoding."""

    temperature: float = 1.0
    max_turn_tokens: int = 256
    max_context_tokens: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """One agent's side of an episode."""

    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    sampling: Sampling = field(default_factory=Sampling)
    agent: str = "agent"
    forked_at: int | None = None
    """Turn at which this trajectory was copied from another one, if it was: so many of its turns are the other's."""

    @property
    def action_token_count(self) -> int:
        """How many tokens the policy sampled."""
        return sum(int(segment.action_mask_T.sum()) for segment in self.segments)

    def own_segments(self) -> tuple[Segment, ...]:
        """The segments with the mask False where tokens were copied from another trajectory, which has them too.

        Without a fork they are the segments themselves.
        """
        if not self.forked_at:
            return self.segments
        last = self.turns[self.forked_at - 1]  # the last turn that is the other's
        return tuple(
            segment.without_actions(stop=len(segment) if number < last.segment else last.stop)
            if number <= last.segment
            else segment
            for number, segment in enumerate(self.segments)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Episode:
    """One attempt at a task, by one agent or several.

    A failed episode (`failure is not None`) has reward NaN and success None: it is masked, never scored.
    """

    task_id: str
    family: str
    level: int
    seed: int
    trajectories: tuple[Trajectory, ...]
    reward: float
    success: bool | None
    stop_reason: str
    """Why it ended: `"submitted"`, `"turn_limit"`, `"context_limit"`, `"failed"`, ..."""
    terminated: bool = True
    truncated: bool = False
    reward_components: Mapping[str, float] = field(default_factory=dict[str, float])
    failure: Mapping[str, Any] | None = None
    """`{"kind": ..., "message": ..., "retryable": ...}` when infrastructure failed."""
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Plain JSON extras."""

    @property
    def failed(self) -> bool:
        """Whether infrastructure, not the agent, ended the episode."""
        return self.failure is not None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Episodes of one task, compared with each other (GRPO)."""

    task_id: str
    episodes: tuple[Episode, ...]

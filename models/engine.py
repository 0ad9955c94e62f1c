"""What samples turns: its requests, its answers, and the calls that every engine has.

One is in this process (`local_engine`), one samples from a server (`http_engine`). Who asks is `agents.rollout`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One turn to sample.

    Example: a conversation's first turn brings its prompt, a later one only what came since::

        GenerationRequest(key=7, token_ids=[5, 6], generator=rng, max_tokens=64, end_ids=frozenset({2}))
    """

    key: Hashable
    """The conversation; a new key starts one."""
    token_ids: list[int]
    """Context tokens since the last sampled one."""
    generator: np.random.Generator
    """The episode's own randomness; `max_tokens` numbers are drawn from it at once."""
    temperature: float = 1.0
    """0 is greedy decoding."""
    max_tokens: int
    end_ids: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The answer to a request."""

    key: Hashable
    token_ids: list[int]
    """Sampled tokens, the end token included."""
    logprobs: list[float]
    finished: Literal["end", "length", "failed"]
    failure: Mapping[str, Any] | None = None
    """Why infrastructure could not sample the turn: `kind`, `message`, `retryable`. Then nothing was sampled."""


@dataclass(slots=True)
class EngineStats:
    """What an engine has done so far."""

    sampled_tokens: int = 0
    prefilled_tokens: int = 0
    decode_steps: int = 0
    guessed_tokens: int = 0
    """Of the sampled ones, those that needed no pass of their own."""
    prefills: int = 0
    retries: int = 0
    """Requests that were sent again, where there is a server."""


class Engine(Protocol):
    """What samples turns."""

    stats: EngineStats

    @property
    def rows(self) -> int:
        """Greatest number of conversations at the same time; further ones queue."""
        ...

    @property
    def max_context(self) -> int:
        """Greatest number of tokens of one conversation."""
        ...

    def submit(self, request: GenerationRequest) -> None:
        """Takes a request; nothing is computed yet."""
        ...

    def poll(self) -> list[Completion]:
        """Works until a useful share of the requests is done; gives those. Empty when there is nothing to do."""
        ...

    def release(self, key: Hashable) -> None:
        """Forgets a conversation."""
        ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Answers requests, in their order, and keeps their conversations."""
        ...

    def update_weights(self, version: int) -> None:
        """Takes over new weights; what was cached under the old ones is dropped."""
        ...

    def close(self) -> None:
        """Frees the engine's memory."""
        ...

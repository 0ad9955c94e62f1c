"""What a side is asked to do, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

GROUP_SIZE = 8
TURN_TOKENS, CODE_TOKENS = 64, 16
"""Greatest number of tokens of one action (a valid call has about half of that), and what each further code adds."""
EQUAL = ((2, 20), (4, 7), (8, 3), (16, 1))
"""Turns and codes per call of episodes that have about as many tokens."""
KL_BETA = 0.02
LEARNING_RATE = 1e-7
"""Both sides train, but the policy must stay what it is: longer answers would be another measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Some GRPO steps; one more is made before, which is not counted."""

    turns: int
    steps: int = 1
    episodes: int = 32
    tool_s: float = 0.0
    codes: int = 1
    """Codes guessed in one call."""

    @property
    def turn_tokens(self) -> int:
        """Greatest number of tokens of one action."""
        return TURN_TOKENS + CODE_TOKENS * (self.codes - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the counted steps took, all together."""

    seconds_rollout: float
    """From prompts to finished episodes: rendering, generating, parsing, tools."""
    seconds: float
    """All of it: rollouts, rewards, reference, update."""
    sampled_tokens: int
    prefilled_tokens: int
    """Tokens that went through the model without being sampled from it, in rollouts."""
    actions: int
    valid: float
    """Share of actions that were calls; the last one of an episode does not count (TRL does not run it)."""
    episode_tokens: float
    """All tokens of an episode, its prompt among them."""
    prompt_tokens: float


class Side(Protocol):
    """One of the contenders, in a process of its own."""

    def measure(self, order: Order) -> Answer:
        """Carries out an order."""
        ...

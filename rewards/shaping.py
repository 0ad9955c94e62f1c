"""Potential-based shaping: rewards for progress within an episode, added to the reward at its end.

A potential Phi(s) says how far along a state is: the share of visible tests that pass, say. A step from s to s' gets

    F = weight * (discount * Phi(s') - Phi(s))             Ng, Harada and Russell 1999 (ICML), theorem 1

`terminal="kept"`: the last state keeps its potential. Without discount the F of an episode sum to the progress that it
made, which is a reward of its own: episodes that fail are told apart, and a policy may trade the outcome for it.
`outcome=0` leaves it alone with that.

`terminal="zero"`: Phi = 0 where the episode has ended. This is the theorem's form, which changes no policy's rank: the
return from a state on changes by -weight * Phi(s) where the learner discounts alike. What compares episodes of one
beginning (GRPO), or turns that began in equal states (GiGPO), does therefore not see it at all. It is for learners that
estimate values.

A potential must not be read from what the agent's code says: it is a reward, and would be forged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..core.errors import ConfigError, did_you_mean

Terminal = Literal["zero", "kept"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """How progress is rewarded.

    Example: `Shaping(weight=0.5)` gives 0.5 for the step after which all visible tests pass and none did before, and
    -0.5 for the one that breaks them all again.
    """

    weight: float = 1.0
    discount: float = 1.0
    """The discount of the learner's returns; 1 for undiscounted ones."""
    terminal: Terminal = "kept"
    """The potential of the last state: `kept` (progress is worth something) or `zero` (no policy's rank changes)."""
    outcome: float = 1.0
    """Multiplies the reward of the grade; success is what the grade says in any case."""

    def __post_init__(self) -> None:
        for name, high in (("weight", math.inf), ("discount", 1.0), ("outcome", math.inf)):
            value: Any = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= high:
                raise ConfigError(f"shaping.{name}={value!r}: must be in [0, {high:g}]")
        if self.terminal not in ("zero", "kept"):
            raise ConfigError(f"shaping.terminal={self.terminal!r}{did_you_mean(str(self.terminal), ('zero', 'kept'))}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Shaping:
        """Reads the keyword of an environment.

        Raises:
            ConfigError: An unknown name, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"shaping.{name}{did_you_mean(name, known)}")
        return cls(**values)

    def reward(self, before: float, after: float) -> float:
        """Gives F for a step between states with these potentials."""
        return self.weight * (self.discount * after - before)

"""Entropy of the policy at the tokens that it samples: exact, per token, and the controller of its weight in the loss.

An entropy bonus subtracts `coefficient * mean(H)` from the loss, where H is the entropy of the softmax over the whole
vocabulary at an action token (Williams and Peng 1991; Mnih et al. 2016, arXiv 1602.01783). It keeps a policy
from settling on one answer before it has seen others. Legend: N action tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .steering import steered


def entropies(logprobs_NV: Tensor) -> Tensor:
    """H_n = -sum_v p_v log p_v (nats) for each row of log-probabilities, with its gradient.

    Example: two equally likely tokens have log 2 = 0.693, a certain one has 0.
    """
    return -(logprobs_NV.exp() * logprobs_NV).sum(-1)


class EntropyController:
    """Steers the bonus's coefficient so that the entropy per token does not fall below a target.

    After a step whose entropy was H,

        c <- c * exp(clip(gain * (1 - H / target), -limit, limit)), kept within its bounds
        the bonus of the next step is c if H <= target, else 0

    as in Skywork-OR1 (He et al. 2025, arXiv 2505.22312), which moves its coefficient by constant amounts; ours moves by
    shares, like the KL's weight, so that one gain suits coefficients of any size. That the bonus rests above the target
    is what keeps the two from swinging around each other. Without a target the bonus is the coefficient, and stays.

    Args:
        coefficient: First coefficient.
        target: Nats per sampled token, or None for a fixed coefficient.
        gain: How strongly a deviation acts.
        limit: Greatest change of log(coefficient) in one step.
        minimum: Lower bound of the coefficient; from 0 it could not grow.
        maximum: Upper bound.
    """

    def __init__(
        self,
        coefficient: float,
        target: float | None = None,
        *,
        gain: float = 0.3,
        limit: float = 0.3,
        minimum: float = 0.0,
        maximum: float = math.inf,
    ) -> None:
        self.coefficient, self.target = coefficient, target
        self.gain, self.limit = gain, limit
        self.minimum, self.maximum = minimum, maximum
        self._rests = False

    @property
    def bonus(self) -> float:
        """The weight of the entropy in the next step's loss."""
        return 0.0 if self._rests else self.coefficient

    def update(self, entropy: float) -> float:
        """Takes the newest mean entropy per token (nats), gives the bonus to use next; NaN changes nothing."""
        if self.target is None or math.isnan(entropy):
            return self.bonus
        self.coefficient = steered(self.coefficient, 1 - entropy / self.target, self)
        self._rests = entropy > self.target
        return self.bonus

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"coefficient": self.coefficient, "rests": self._rests}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict()`."""
        self.coefficient, self._rests = state["coefficient"], state["rests"]

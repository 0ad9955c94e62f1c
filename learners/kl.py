"""Estimates of KL(policy || reference) from sampled tokens, the KL term of the loss, and the controller of its weight.

All estimators are per token and take log-probabilities (nats) of tokens that the policy sampled. Their sources are
Schulman 2020, "Approximating KL divergence" (k1, k2, k3), and DeepSeek-V3.2 (2025) for k3 x ratio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from .steering import steered

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut here, on the upper side only, before `exp`: e^20 is as good as infinite, e^-50 is harmless."""


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log pi - log pi_ref: unbiased, high variance; summed over a response it is the logged sequence KL."""
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(log pi - log pi_ref)^2 / 2: low variance, biased; its own gradient is the right one on-policy."""
    return (logprobs - reference_logprobs) ** 2 / 2


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """pi_ref/pi - 1 - log(pi_ref/pi): unbiased, low variance, never negative. For values, not for gradients."""
    log_ratio = (reference_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    return log_ratio.exp() - 1 - log_ratio


def k3_times_ratio(logprobs: Tensor, reference_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """The KL term of the loss: k3 times the policy ratio r = pi/pi_old, whose expected gradient is that of the KL.

    k3 alone as a loss has the gradient of another divergence (half of it is missing on-policy), because the sampling
    distribution's own dependence on the parameters is lost; r brings it back. With d = log pi_ref - log pi:

        grad(r k3) = r k3 grad(log pi) + r (1 - e^d) grad(log pi) = -r d grad(log pi)

    The exponentials cancel, so the gradient is written down as -r d. Autograd through clamped exponentials would turn
    its sign where the clamp acts.
    """
    ratio = (logprobs - old_logprobs).clamp(max=MAX_LOG_RATIO).exp().detach()
    value = ratio * k3(logprobs, reference_logprobs).detach()
    slope = ratio * (logprobs - reference_logprobs).detach()
    return value + slope * (logprobs - logprobs.detach())


class KLController:
    """Steers the KL's weight beta so that the KL per sequence stays near a target.

    beta <- beta * exp(clip(gain * (KL / target - 1), -limit, limit)), with KL averaged over recent steps and beta kept
    within its bounds. Without a target beta stays as it is.

    Args:
        beta: First weight.
        target: Nats per sequence, or None for a fixed weight.
        gain: How strongly a deviation acts.
        limit: Greatest change of log(beta) in one step.
        smoothing: Share of the old average that is kept each step; 0 = only the newest KL counts.
        minimum: Lower bound of beta.
        maximum: Upper bound of beta.
    """

    def __init__(
        self,
        beta: float,
        target: float | None = None,
        *,
        gain: float = 0.3,
        limit: float = 0.3,
        smoothing: float = 0.0,
        minimum: float = 0.0,
        maximum: float = math.inf,
    ) -> None:
        self.beta, self.target = beta, target
        self.gain, self.limit, self.smoothing = gain, limit, smoothing
        self.minimum, self.maximum = minimum, maximum
        self._average: float | None = None

    def update(self, kl_seq: float) -> float:
        """Takes the newest mean KL per sequence (nats) and gives the weight to use next; NaN changes nothing."""
        if self.target is None or math.isnan(kl_seq):
            return self.beta
        old = kl_seq if self._average is None else self._average
        self._average = self.smoothing * old + (1 - self.smoothing) * kl_seq
        self.beta = steered(self.beta, self._average / self.target - 1, self)
        return self.beta

    def state_dict(self) -> dict[str, float | None]:
        """What a resumed run needs."""
        return {"beta": self.beta, "average": self._average}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Restores `state_dict()`."""
        beta = state["beta"]
        assert beta is not None
        self.beta, self._average = beta, state["average"]

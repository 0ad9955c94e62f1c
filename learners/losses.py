"""Policy losses: pure functions of per-token tensors. One denominator for all processes and micro-batches is passed in.

Any shape will do, as long as all tensors have it (B, T or flat). `mask` is True where the policy sampled the token;
what stands elsewhere (even NaN) changes neither value nor gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .kl import MAX_LOG_RATIO, k3_times_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class LossResult:
    """A loss and sums over its tokens, which the caller adds up over micro-batches and processes."""

    loss: Tensor
    """Scalar to call `backward()` on: the sum over tokens, divided by the denominator."""
    sums: dict[str, Tensor]
    """Detached scalars: `tokens`, `clip_low`, `clip_high` (tokens whose gradient is clipped away on that side)."""


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """The loss per token: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = pi / pi_old.

    Schulman et al. 2017 (arXiv 1707.06347), eq. 7; a higher upper bound leaves room for unlikely tokens to grow (DAPO,
    Yu et al. 2025, arXiv 2503.14476, eq. 10).
    """
    ratio = (logprobs - old_logprobs).clamp(max=MAX_LOG_RATIO).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    denominator: float,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    kl_beta: float = 0.0,
    reference_logprobs: Tensor | None = None,
    weights: Tensor | None = None,
) -> LossResult:
    """GRPO (arXiv 2402.03300, eq. 3) with asymmetric clipping and k3 x ratio as its KL term.

    The paper averages within each response first. Here all tokens are summed and divided by one number, so that a long
    response's tokens count as much as a short one's (token-mean; a constant gives Dr. GRPO).

    Args:
        logprobs: Log-probabilities (nats) of the sampled tokens under the policy that is trained; carries the gradient.
        old_logprobs: The same under the policy that the ratio is taken against.
        advantages: One per token.
        mask: True = the policy sampled this token.
        denominator: Divides the sum; the same on all processes and for all micro-batches of one update.
        clip_low: Ratios below 1 - clip_low give no gradient when the advantage is negative.
        clip_high: Ratios above 1 + clip_high give no gradient when the advantage is positive.
        kl_beta: Weight of the KL to the reference policy.
        reference_logprobs: Needed where `kl_beta` is not 0.
        weights: Importance weights per token (constants), for tokens sampled by another policy than `old`.
    """
    lp = torch.where(mask, logprobs, 0.0)
    old = torch.where(mask, old_logprobs, 0.0)
    adv = torch.where(mask, advantages, 0.0)
    per_token = clipped_surrogate(lp, old, adv, clip_low, clip_high)
    if kl_beta:
        if reference_logprobs is None:
            raise ValueError(f"kl_beta={kl_beta}: reference_logprobs are needed")
        per_token = per_token + kl_beta * k3_times_ratio(lp, torch.where(mask, reference_logprobs, 0.0), old)
    if weights is not None:
        per_token = per_token * torch.where(mask, weights, 0.0)
    with torch.no_grad():
        log_ratio = lp - old
        low = mask & (adv < 0) & (log_ratio.exp() < 1 - clip_low)
        high = mask & (adv > 0) & (log_ratio.exp() > 1 + clip_high)
    return LossResult(
        loss=torch.where(mask, per_token, 0.0).sum() / denominator,
        sums={"tokens": mask.sum(), "clip_low": low.sum(), "clip_high": high.sum()},
    )

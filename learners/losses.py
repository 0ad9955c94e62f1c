"""Policy losses: pure functions of per-token tensors. One denominator for all processes and micro-batches is passed in.

Any shape will do, as long as all tensors have it (B, T or flat). `mask` is True where the policy sampled the token;
what stands elsewhere (even NaN) changes neither value nor gradient. How tokens are averaged is the caller's choice, by
the denominator and by `PolicyTokens.weights`; where advantages come from is `advantages`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .kl import MAX_LOG_RATIO, k3_times_ratio

PolicyLoss = Literal["clipped", "gspo", "cispo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """Which policy loss, and its constants."""

    loss: PolicyLoss = "clipped"
    clip_low: float = 0.2
    """The ratio's lower bound is 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio's upper bound is 1 + clip_high."""
    kl_beta: float = 0.0
    """Weight of the KL to the reference policy."""
    entropy_bonus: float = 0.0
    """Weight of the entropy, which the loss rewards."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyTokens:
    """What a loss reads; all tensors have one shape, with an entry per token.

    Example: two tokens of one answer, the first of them from an observation::

        PolicyTokens(logprobs=[nan, -.7], old_logprobs=[nan, -.9], advantages=[0, 1], mask=[False, True])
    """

    logprobs: Tensor
    """Log-probabilities (nats) of the sampled tokens under the policy that is trained; carries the gradient."""
    old_logprobs: Tensor
    """The same under the policy that the ratio is taken against."""
    advantages: Tensor
    mask: Tensor
    """True = the policy sampled this token."""
    reference_logprobs: Tensor | None = None
    """The same as `logprobs` under the reference policy; needed where `kl_beta` is not 0."""
    entropies: Tensor | None = None
    """Entropy (nats) of the distribution that each token was drawn from, with its gradient; needed where
    `entropy_bonus` is not 0."""
    weights: Tensor | None = None
    """Constants that multiply the loss of each token: importance weights, or 1 / |o| for a mean over each answer."""
    sequences: Tensor | None = None
    """Whole numbers from 0: the answer that a token belongs to; needed by `gspo`, all tokens of an answer at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossResult:
    """A loss and sums over its tokens, which the caller adds up over micro-batches and processes."""

    loss: Tensor
    """Scalar to call `backward()` on: the sum over tokens, divided by the denominator."""
    sums: dict[str, Tensor]
    """Detached scalars: `tokens`, `clip_low`, `clip_high`: tokens whose gradient is clipped away on that side; for
    `cispo`, which clips no gradient away, tokens whose weight is at that bound. `entropy`: the sum over the tokens,
    where it was given."""


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """The loss per token: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = pi / pi_old.

    Schulman et al. 2017 (arXiv 1707.06347), eq. 7; a higher upper bound leaves room for unlikely tokens to grow (DAPO,
    Yu et al. 2025, arXiv 2503.14476, eq. 10).
    """
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def clipped_weight(logprobs: Tensor, ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """The loss per token: -sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi, where sg stops the gradient.

    CISPO: MiniMax 2025 (arXiv 2506.13585), eq. 4 and 5. Every token keeps a gradient; only its weight is bounded. The
    paper sets no lower bound, which is `clip_low=1`.
    """
    return -ratio.clamp(1 - clip_low, 1 + clip_high).detach() * advantages * logprobs


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, sequences: Tensor) -> Tensor:
    """The ratio of each token's whole answer, s_i = exp(sum_t log(pi / pi_old) / |y_i|), with a gradient per token.

    GSPO: Zheng et al. 2025 (arXiv 2507.18071), eq. 7. What comes back is GSPO-token's s_it = sg(s_i) pi_t / sg(pi_t)
    (eq. 14): its value is s_i. Put into the clipped surrogate and averaged over each answer, it has value and gradient
    of GSPO (eq. 5) where an answer has one advantage, and takes advantages that differ from token to token as well
    (eq. 13).
    """
    with torch.no_grad():
        ids = torch.where(mask, sequences, 0).flatten()
        log_ratios = torch.where(mask, logprobs - old_logprobs, 0.0).flatten()
        size = int(ids.max()) + 1 if len(ids) else 0
        totals = log_ratios.new_zeros(size).index_add_(0, ids, log_ratios)
        lengths = log_ratios.new_zeros(size).index_add_(0, ids, mask.flatten().to(log_ratios.dtype))
        means = (totals / lengths.clamp(min=1.0))[ids].reshape(mask.shape)
        ratio = means.clamp(max=MAX_LOG_RATIO).exp()
    return ratio * (logprobs - logprobs.detach()).exp()


def grpo_loss(tokens: PolicyTokens, settings: LossSettings, *, denominator: float) -> LossResult:
    """GRPO (arXiv 2402.03300, eq. 3) and its relatives, with asymmetric clipping and k3 x ratio as their KL term.

    Tokens are summed and divided by one number. What the papers do is a matter of denominator and weights:

    - a mean over all tokens (DAPO, CISPO): the number of tokens, no weights;
    - a constant (Dr. GRPO, arXiv 2503.20783, section 3.2): answers times a constant length, no weights;
    - a mean over each answer, then over answers (GRPO, GSPO): the number of answers, weights 1 / |o_i|.

    The KL term's ratio is the token's own for every loss: only so is its expected gradient that of the KL. The entropy
    bonus is exact over the vocabulary and has no ratio: its gradient is that of the entropy at the sampled contexts.

    Args:
        tokens: What was sampled, its log-probabilities and advantages.
        settings: Which loss, and its constants.
        denominator: Divides the sum; the same on all processes and for all micro-batches of one update.

    Raises:
        ValueError: The reference's log-probabilities, the entropies or the sequences are needed, and are not there.
    """
    mask = tokens.mask
    lp = torch.where(mask, tokens.logprobs, 0.0)
    old = torch.where(mask, tokens.old_logprobs, 0.0)
    adv = torch.where(mask, tokens.advantages, 0.0)
    ratio = _ratio(lp, old, tokens, settings)
    if settings.loss == "cispo":
        per_token = clipped_weight(lp, ratio, adv, settings.clip_low, settings.clip_high)
    else:
        per_token = clipped_surrogate(ratio, adv, settings.clip_low, settings.clip_high)
    if settings.kl_beta:
        if tokens.reference_logprobs is None:
            raise ValueError(f"kl_beta={settings.kl_beta}: reference_logprobs are needed")
        reference = torch.where(mask, tokens.reference_logprobs, 0.0)
        per_token = per_token + settings.kl_beta * k3_times_ratio(lp, reference, old)
    if settings.entropy_bonus:
        if tokens.entropies is None:
            raise ValueError(f"entropy_bonus={settings.entropy_bonus}: entropies are needed")
        per_token = per_token - settings.entropy_bonus * torch.where(mask, tokens.entropies, 0.0)
    if tokens.weights is not None:
        per_token = per_token * torch.where(mask, tokens.weights, 0.0)
    low, high = _clipped(ratio.detach(), adv, settings)
    sums = {"tokens": mask.sum(), "clip_low": (mask & low).sum(), "clip_high": (mask & high).sum()}
    if tokens.entropies is not None:
        sums["entropy"] = torch.where(mask, tokens.entropies.detach(), 0.0).sum()
    return LossResult(loss=torch.where(mask, per_token, 0.0).sum() / denominator, sums=sums)


def _ratio(lp: Tensor, old: Tensor, tokens: PolicyTokens, settings: LossSettings) -> Tensor:
    if settings.loss != "gspo":
        return (lp - old).clamp(max=MAX_LOG_RATIO).exp()
    if tokens.sequences is None:
        raise ValueError("loss='gspo': sequences are needed")
    return sequence_ratio(lp, old, tokens.mask, tokens.sequences)


def _clipped(ratio: Tensor, adv: Tensor, settings: LossSettings) -> tuple[Tensor, Tensor]:
    low, high = ratio < 1 - settings.clip_low, ratio > 1 + settings.clip_high
    return (low, high) if settings.loss == "cispo" else (low & (adv < 0), high & (adv > 0))

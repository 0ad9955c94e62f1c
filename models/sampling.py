"""Sampling next tokens with random numbers that each episode brings along.

Inverse of the cumulative distribution: one uniform number per token, so that an episode's tokens depend on its own
generator and its own logits, not on which other episodes share the batch. Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import torch

_EXACT_SUM_LIMIT = 8192
"""Vocabularies above this size are summed in float64, so that round-off does not hide rare tokens."""


def sample_tokens(
    logits_BV: torch.Tensor, uniforms_B: torch.Tensor, temperatures_B: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives one token per row and its log-probability (nats) under the tempered distribution.

    Args:
        logits_BV: Next-token logits.
        uniforms_B: float32 in [0, 1).
        temperatures_B: One per row; 0 takes the most likely token, whose log-probability is given at temperature 1.
            None means temperature 1 for all rows.
    """
    logits_BV = logits_BV.float()
    if temperatures_B is not None:
        logits_BV = logits_BV / torch.where(temperatures_B > 0, temperatures_B, 1.0)[:, None]
    logprobs_BV = logits_BV.log_softmax(-1)
    exact = torch.float64 if logits_BV.shape[1] > _EXACT_SUM_LIMIT else torch.float32
    cumulative_BV = logprobs_BV.exp().cumsum(-1, dtype=exact)
    # u < 1 keeps the threshold below the total, and `right=True` skips tokens of probability 0: every index is valid.
    threshold_B1 = uniforms_B[:, None].to(exact) * cumulative_BV[:, -1:]
    token_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True)
    if temperatures_B is not None:
        greedy_B1 = logits_BV.argmax(-1, keepdim=True)
        token_B1 = torch.where((temperatures_B > 0)[:, None], token_B1, greedy_B1)
    return token_B1[:, 0], logprobs_BV.gather(1, token_B1)[:, 0]

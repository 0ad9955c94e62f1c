"""Log-probabilities of chosen tokens through a frozen output head, over any vocabulary, in a few MiB.

The head's logits exist one tile at a time (some tokens by some entries of the vocabulary). The gradient needs no second
pass: with a frozen head, log p(t) depends on its hidden state h alone, and

    d log p(t) / dh = (1 - p(t)) (W_t - E[W_v]) / temperature,    v drawn from p, given that it is not t

so the mean of W_v is summed along with the normaliser, as attention is in one pass over its keys (Milakov & Gimelshein
2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135), and the backward pass multiplies by it. Leaving t out of
the sums keeps the gradient of likely tokens exact: nothing is subtracted that is nearly as large.

A head that is trained needs a gradient of its own: `logprobs` computes its logits again, chunk by chunk.
Legend: N tokens, n tokens of a tile, H hidden size, V vocabulary, v entries of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TILE_LOGITS = 1 << 22
"""Logits of a tile: 16 MiB in float32."""
_TILE_TOKENS = 1024


def tiled_logprobs(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor, temperature: float
) -> Tensor:
    """Gives log softmax(W h + b, divided by the temperature) at each target, [N], float32; differentiable by h alone.

    Args:
        hidden_NH: Last hidden states of the tokens before the targets.
        weight_VH: The head's weights, which get no gradient.
        bias_V: The head's bias, if it has one.
        targets_N: Indices of the tokens that are scored.
        temperature: Divides the logits.
    """
    return _TiledLogprobs.apply(hidden_NH, weight_VH, bias_V, targets_N, temperature)  # pyright: ignore[reportReturnType]


class _TiledLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor, temperature: float
    ) -> Tensor:
        dtype = _product_dtype(hidden_NH)
        wants_slope = ctx.needs_input_grad[0]
        logprobs_N = hidden_NH.new_empty(len(hidden_NH), dtype=torch.float32)
        slopes_NH = torch.empty_like(hidden_NH) if wants_slope else None
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for start in range(0, len(hidden_NH), _TILE_TOKENS):
                rows = slice(start, start + _TILE_TOKENS)
                logprobs, slopes = _tile_row(
                    hidden_NH[rows].to(dtype), weight_VH, bias_V, targets_N[rows], temperature, wants_slope
                )
                logprobs_N[rows] = logprobs
                if slopes_NH is not None and slopes is not None:
                    slopes_NH[rows] = slopes
        if slopes_NH is not None:
            ctx.save_for_backward(slopes_NH)
        return logprobs_N

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slopes_NH,) = ctx.saved_tensors
        return (gradient_N[:, None] * slopes_NH).to(slopes_NH.dtype), None, None, None, None


def _product_dtype(hidden: Tensor) -> torch.dtype:
    """What autocast would multiply in: custom functions run outside of it."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _tile_row(
    hidden_nH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_n: Tensor,
    temperature: float,
    wants_slope: bool,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and their slopes for a tile's tokens, over the whole vocabulary."""
    n, dtype = len(hidden_nH), hidden_nH.dtype
    columns = max(1, TILE_LOGITS // n)
    greatest_n = torch.full((n,), -torch.inf, device=hidden_nH.device)
    others_n = torch.zeros_like(greatest_n)
    """Sum of exp(logit - greatest) over everything but the target."""
    target_n = torch.zeros_like(greatest_n)
    mean_nH = torch.zeros_like(hidden_nH, dtype=torch.float32) if wants_slope else None
    for first in range(0, len(weight_VH), columns):
        weight_vH = weight_VH[first : first + columns].to(dtype)
        logits_nv = hidden_nH @ weight_vH.T
        if bias_V is not None:
            logits_nv += bias_V[first : first + columns].to(dtype)
        logits_nv = logits_nv.float().div_(temperature)
        here_n = (targets_n >= first) & (targets_n < first + len(weight_vH))
        row_k, column_k = here_n.nonzero()[:, 0], targets_n[here_n] - first
        target_n[row_k] = logits_nv[row_k, column_k]
        logits_nv[row_k, column_k] = -torch.inf
        before_n = greatest_n
        # the floor keeps exp(-inf - (-inf)) out of a tile that holds nothing but targets
        greatest_n = torch.maximum(before_n, logits_nv.amax(dim=1)).clamp(min=torch.finfo(torch.float32).min)
        shrink_n = (before_n - greatest_n).exp_()
        weights_nv = logits_nv.sub_(greatest_n[:, None]).exp_()
        others_n = others_n * shrink_n + weights_nv.sum(dim=1)
        if mean_nH is not None:
            mean_nH = mean_nH.mul_(shrink_n[:, None]).add_(weights_nv.to(dtype) @ weight_vH)
    log_odds_n = target_n - greatest_n - others_n.log()
    logprobs_n = torch.nn.functional.logsigmoid(log_odds_n)
    if mean_nH is None:
        return logprobs_n, None
    direction_nH = weight_VH[targets_n].float() - mean_nH / others_n[:, None]
    return logprobs_n, direction_nH.mul_((torch.sigmoid(-log_odds_n) / temperature)[:, None])

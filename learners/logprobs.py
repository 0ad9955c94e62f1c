"""Log-probabilities of the tokens that the policy sampled, for any transformers causal language model.

The output head is applied to the hidden states of those tokens only, in chunks, so that [B, T, V] never exists.
A frozen head over a large vocabulary, as with adapters, has a way of its own (`tiled_logprobs`).
Legend: B rows, T tokens, N action tokens of the batch in row-major order, H hidden size, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.seeding import generator
from ..core.trajectories import Episode, Segment
from .batch import TokenBatch, token_budget_batches
from .entropy import entropies
from .precision import Autocast, device_of, training_arithmetic
from .shared_prompts import SharedPrompts, can_share, hidden_before_actions, prompt_batches, shared_prompts
from .tiled_logprobs import TILE_LOGITS, tiled_logprobs

MAX_LOGITS = 1 << 25
"""Logits that exist at one time (128 MiB in float32); more action tokens are scored chunk by chunk."""


def action_logprobs(
    model: nn.Module,
    input_ids_BT: Tensor,
    action_mask_BT: Tensor,
    *,
    prompts: SharedPrompts | None = None,
    temperature: float = 1.0,
    autocast: Autocast = "none",
    max_logits: int = MAX_LOGITS,
) -> Tensor:
    """Gives log p(token | everything before it) of each action token, flat [N] in row-major order, float32.

    Args:
        model: A transformers causal language model.
        input_ids_BT: Tokens, padded on the right with any valid id.
        action_mask_BT: True = score this token; the first token of a row cannot be scored.
        prompts: What the rows begin with, to be computed once per prompt; None computes whole rows.
        temperature: Divides the logits, as the sampler did.
        autocast: Arithmetic of the forward pass.
        max_logits: Greatest number of logits to hold at one time; with a frozen head the limit is `TILE_LOGITS`.
    """
    return _scores(model, input_ids_BT, action_mask_BT, prompts, _token_logprobs, temperature, autocast, max_logits)


def action_logprobs_and_entropies(
    model: nn.Module,
    input_ids_BT: Tensor,
    action_mask_BT: Tensor,
    *,
    prompts: SharedPrompts | None = None,
    temperature: float = 1.0,
    autocast: Autocast = "none",
    max_logits: int = MAX_LOGITS,
) -> tuple[Tensor, Tensor]:
    """`action_logprobs`, and the entropy (nats) of the distribution that each action token was drawn from, both [N]."""
    scores_N2 = _scores(
        model, input_ids_BT, action_mask_BT, prompts, _token_logprobs_and_entropies, temperature, autocast, max_logits
    )
    logprobs_N, entropies_N = scores_N2.unbind(-1)
    return logprobs_N, entropies_N


def _scores(
    model: nn.Module,
    input_ids_BT: Tensor,
    action_mask_BT: Tensor,
    prompts: SharedPrompts | None,
    score: Callable[[Tensor, Tensor, float], Tensor],
    temperature: float,
    autocast: Autocast,
    max_logits: int,
) -> Tensor:
    """Applies `score(logits [n, V], targets [n], temperature)` to all action tokens, chunk by chunk if need be."""
    targets_N = input_ids_BT[:, 1:][action_mask_BT[:, 1:]]
    head = logit_head(model)
    if head is None or prompts is None or not can_share(model, head.decoder):
        prompts = None
    weights = input_ids_BT.shape[1] ** 2 if prompts is None else prompts.attention_weights
    with training_arithmetic(model, weights, autocast):
        if head is None:
            logits = model(input_ids=input_ids_BT, use_cache=False).logits[:, :-1][action_mask_BT[:, 1:]]
            return score(logits, targets_N, temperature)
        if prompts is not None:
            hidden_NH = hidden_before_actions(head.decoder, input_ids_BT, action_mask_BT, prompts)
        else:
            hidden_BTH = head.decoder(input_ids=input_ids_BT, use_cache=False).last_hidden_state
            hidden_NH = hidden_BTH[:, :-1][action_mask_BT[:, 1:]]
        too_many = len(hidden_NH) * head.vocab_size > min(max_logits, TILE_LOGITS)
        if too_many and head.is_frozen_matrix and score is _token_logprobs:  # tiles know no entropies
            weight, bias = head.linear.weight, head.linear.bias
            return tiled_logprobs(hidden_NH, weight, bias, targets_N, temperature / head.scale)
        rows = max(1, max_logits // head.vocab_size)
        if len(hidden_NH) <= rows:
            return score(head(hidden_NH), targets_N, temperature)

        def score_chunk(hidden: Tensor, targets: Tensor) -> Tensor:
            return score(head(hidden), targets, temperature)

        chunks = zip(hidden_NH.split(rows), targets_N.split(rows), strict=True)
        # recomputing a chunk's logits in the backward pass keeps one chunk in memory instead of all
        return torch.cat([checkpoint(score_chunk, hidden, targets, use_reentrant=False) for hidden, targets in chunks])


def segment_logprobs(
    model: nn.Module,
    segments: Sequence[Segment],
    *,
    batch_tokens: int = 4096,
    temperature: float = 1.0,
    autocast: Autocast = "auto",
    share_prompts: bool = True,
) -> list[NDArray[np.float32]]:
    """Scores whole segments without gradient: one array per segment, 0 where the policy sampled nothing."""
    results = [np.zeros(len(segment), dtype=np.float32) for segment in segments]
    device = device_of(model)
    if share_prompts:
        batches = prompt_batches(segments, batch_tokens, generator("scoring"))
    else:
        batches = token_budget_batches([len(segment) for segment in segments], batch_tokens, generator("scoring"))
    with torch.no_grad():
        for indices in batches:
            rows = [segments[i] for i in indices]
            batch = TokenBatch.from_segments(rows, device)
            flat = action_logprobs(
                model,
                batch.input_ids_BT,
                batch.action_mask_BT,
                prompts=shared_prompts(rows, device) if share_prompts else None,
                temperature=temperature,
                autocast=autocast,
            )
            full = torch.zeros(batch.input_ids_BT.shape, device=device).masked_scatter_(batch.action_mask_BT, flat)
            for row, i in zip(full.cpu().numpy(), indices, strict=True):
                results[i][:] = row[: len(segments[i])]
    return results


def sequence_kl(
    reference: nn.Module, episodes: Sequence[Episode], *, batch_tokens: int = 4096, autocast: Autocast = "auto"
) -> list[float]:
    """Gives, for each episode that did not fail, the sum over its sampled tokens of log pi - log pi_ref (nats).

    log pi is what was recorded when the token was sampled, so the mean of this list estimates KL(pi || pi_ref) per
    episode when episodes were sampled at temperature 1.
    """
    owners = [
        (number, segment)
        for number, episode in enumerate(episode for episode in episodes if not episode.failed)
        for trajectory in episode.trajectories
        for segment in trajectory.segments
    ]
    totals = [0.0] * sum(not episode.failed for episode in episodes)
    scored = segment_logprobs(
        reference, [segment for _, segment in owners], batch_tokens=batch_tokens, autocast=autocast
    )
    for (number, segment), reference_T in zip(owners, scored, strict=True):
        totals[number] += log_ratio_sum(segment, reference_T)
    return totals


def log_ratio_sum(segment: Segment, other_logprobs_T: NDArray[np.float32]) -> float:
    """The recorded minus the other log-probabilities, summed over the segment's action tokens (nats)."""
    mask = segment.action_mask_T
    return float((segment.logprobs_T[mask].astype(np.float64) - other_logprobs_T[mask]).sum())


@dataclass(frozen=True, slots=True, eq=False)
class LogitHead:
    """How a model turns token ids into logits: decoder, linear head, scaling, soft cap."""

    decoder: nn.Module
    linear: Any
    scale: float
    softcap: float | None
    vocab_size: int

    @property
    def is_frozen_matrix(self) -> bool:
        """Whether the head is one matrix (and a bias) that is not trained, without a cap on its logits."""
        plain = type(self.linear) is nn.Linear and self.softcap is None
        return plain and not any(parameter.requires_grad for parameter in self.linear.parameters())

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V]."""
        logits = self.linear(hidden_NH)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


_heads: weakref.WeakKeyDictionary[nn.Module, LogitHead | None] = weakref.WeakKeyDictionary()


def logit_head(model: nn.Module) -> LogitHead | None:
    """Finds the model's decoder and head, or None when they do not reproduce the model's own logits.

    Architectures scale or cap logits in ways of their own, so the parts are tried on three tokens, once per model; a
    model that they do not reproduce is scored through its whole forward pass.
    """
    if model not in _heads:
        _heads[model] = _probe(model)
    return _heads[model]


def _probe(model: Any) -> LogitHead | None:
    if not hasattr(model, "get_decoder") or (linear := model.get_output_embeddings()) is None:
        return None
    config = model.config.get_text_config()
    head = LogitHead(
        decoder=model.get_decoder(),
        linear=linear,
        scale=_logit_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
        vocab_size=int(linear.weight.shape[0]),
    )
    ids = torch.tensor([[0, 1, 2]], device=device_of(model)) % head.vocab_size
    was_training = model.training
    model.eval()  # dropout would make two passes differ
    try:
        with torch.no_grad():
            whole = model(input_ids=ids, use_cache=False).logits
            parts = head(head.decoder(input_ids=ids, use_cache=False).last_hidden_state)
    except (TypeError, AttributeError, RuntimeError):
        return None  # the parts do not fit together: an architecture that is no plain decoder with a head
    finally:
        model.train(was_training)
    same = whole.shape == parts.shape and torch.allclose(whole.float(), parts.float(), rtol=1e-3, atol=1e-4)
    return head if same else None


def _logit_scale(config: Any) -> float:
    """What Cohere, Falcon-H1 and Granite multiply or divide their logits by."""
    scale = getattr(config, "logit_scale", None) or 1.0
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0
    return scale / (getattr(config, "logits_scaling", None) or 1.0)


def _token_logprobs(logits_NV: Tensor, targets_N: Tensor, temperature: float) -> Tensor:
    logits_NV = logits_NV.float()
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    return -nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")


def _token_logprobs_and_entropies(logits_NV: Tensor, targets_N: Tensor, temperature: float) -> Tensor:
    """[N, 2], so that one checkpointed call gives both."""
    logits_NV = logits_NV.float()
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    logprobs_NV = logits_NV.log_softmax(-1)
    return torch.stack([logprobs_NV.gather(-1, targets_N[:, None])[:, 0], entropies(logprobs_NV)], dim=-1)

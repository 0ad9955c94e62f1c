"""Scoring rows that begin alike: a prompt goes through the model once for all rows of its group, not once for each.

Episodes of one task share their prompt, and with it all keys and values that later tokens attend to. The prompts of a
batch are one forward pass; what follows them is a second one, which reads the first one's keys and values from a cache.
Gradients flow through the cache, so that results and gradients are those of whole rows, up to rounding.

Legend: B rows, T tokens of a row, G different prompts, P tokens of the longest, S tokens of the longest rest, H hidden
size, N action tokens of the batch in row-major order.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.trajectories import Segment
from .batch import LENGTH_STEP, TokenBatch, token_budget_batches
from .precision import device_of, recomputes_activations

WORTH_IT = 0.8
"""Prompts of a batch are shared where that leaves at most this share of its padded tokens."""
WORTH_MEETING = 0.7
"""Rows with equal prompts meet, rather than rows of equal length, where that leaves at most this share of all."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharedPrompts:
    """The different prompts of a batch, and which row begins with which."""

    ids_GP: Tensor
    """Padded on the right. The last token of a prompt is not part of it: the first action token is predicted there."""
    lengths_G: Tensor
    group_B: Tensor
    longest_rest: int

    @property
    def attention_weights(self) -> int:
        """Of the longest rest in one head: its tokens times those that they may attend to."""
        return self.longest_rest * (self.ids_GP.shape[1] + self.longest_rest)


def shared_prompts(segments: Sequence[Segment], device: torch.device | str = "cpu") -> SharedPrompts | None:
    """Finds the prompts of a batch's rows; None where sharing them saves too little."""
    heads = [_head(segment) for segment in segments]
    different = list(dict.fromkeys(head.tobytes() for head in heads))
    by_text = {head.tobytes(): head for head in heads}
    prompts = [by_text[text] for text in different]
    longest = max(map(len, prompts))
    rest = max(len(segment) - len(head) for segment, head in zip(segments, heads, strict=True))
    whole = len(segments) * max(map(len, segments))
    if not longest or len(prompts) * longest + len(segments) * rest > WORTH_IT * whole:
        return None
    ids_GP = np.zeros((len(prompts), longest), dtype=np.int64)
    for row, prompt in zip(ids_GP, prompts, strict=True):
        row[: len(prompt)] = prompt
    group = {text: number for number, text in enumerate(different)}
    return SharedPrompts(
        ids_GP=torch.from_numpy(ids_GP).to(device),
        lengths_G=torch.tensor([len(prompt) for prompt in prompts], device=device),
        group_B=torch.tensor([group[head.tobytes()] for head in heads], device=device),
        longest_rest=rest,
    )


def hidden_before_actions(
    decoder: nn.Module, input_ids_BT: Tensor, action_mask_BT: Tensor, prompts: SharedPrompts
) -> Tensor:
    """Gives the hidden state before each action token, [N, H], as the decoder would give it for whole rows."""
    width = input_ids_BT.shape[1]
    cache = _empty_cache()
    keyword = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
    decoder(input_ids=prompts.ids_GP, use_cache=True, **{keyword: cache})
    for layer in cache.layers:
        layer.keys = layer.keys.index_select(0, prompts.group_B)
        layer.values = layer.values.index_select(0, prompts.group_B)
    starts_B = prompts.lengths_G[prompts.group_B]
    place_BS = starts_B[:, None] + torch.arange(prompts.longest_rest, device=starts_B.device)
    inside_BS = place_BS < width
    place_BS = place_BS.clamp(max=width - 1)
    known_BP = torch.arange(prompts.ids_GP.shape[1], device=starts_B.device) < starts_B[:, None]
    output = decoder(
        input_ids=input_ids_BT.gather(1, place_BS),
        attention_mask=torch.cat([known_BP, torch.ones_like(inside_BS)], dim=1).long(),
        position_ids=place_BS,
        use_cache=True,
        **{keyword: cache},
    )
    next_BS = (place_BS + 1).clamp(max=width - 1)
    predicts_BS = action_mask_BT.gather(1, next_BS) & inside_BS & (place_BS + 1 < width)
    return output.last_hidden_state[predicts_BS]


def prompt_batches(segments: Sequence[Segment], budget: int, generator: np.random.Generator) -> list[list[int]]:
    """Groups indices into batches of at most `budget` padded tokens, in random order; equal prompts meet.

    They count once per batch; a prompt with more rows than fit into the budget stands in several batches. Where that
    saves too little, because prompts are short or what follows them differs in length, rows of equal length meet.

    Args:
        segments: One per row.
        budget: Prompts times the longest of them plus rows times the longest rest, at most.
        generator: Decides which prompts of similar length meet, and the order of the batches.
    """
    lengths = [len(segment) for segment in segments]
    apart = token_budget_batches(lengths, budget, generator)
    padded_apart = sum(len(batch) * max(lengths[index] for index in batch) for batch in apart)
    units: list[tuple[int, int, list[int]]] = []
    groups: dict[bytes, list[int]] = {}
    heads = [_head(segment) for segment in segments]
    for index, head in enumerate(heads):
        groups.setdefault(head.tobytes(), []).append(index)
    for members in groups.values():
        prompt = len(heads[members[0]])
        rests = [len(segments[index]) - prompt for index in members]
        fit = max(1, (budget - prompt) // max(rests))
        for part in range(0, len(members), fit):
            units.append((prompt, max(rests[part : part + fit]), members[part : part + fit]))
    similar = [(prompt + rest) // LENGTH_STEP for prompt, rest, _ in units]
    batches: list[list[int]] = []
    padded: list[int] = []
    longest = rest = count = 0
    for number in np.lexsort((generator.random(len(units)), np.array(similar, np.int64))).tolist():
        prompt, more_rest, members = units[number]
        wider, further = max(longest, prompt), max(rest, more_rest)
        rows = len(members) + (len(batches[-1]) if count else 0)
        if count and wider * (count + 1) + further * rows <= budget:
            batches[-1] += members
            longest, rest, count = wider, further, count + 1
        else:
            batches.append(list(members))
            padded.append(0)
            longest, rest, count = prompt, more_rest, 1
        padded[-1] = longest * count + rest * len(batches[-1])
    if sum(padded) > WORTH_MEETING * padded_apart:
        return apart
    return [batches[i] for i in generator.permutation(len(batches))]


def _head(segment: Segment) -> NDArray[np.int32]:
    """The tokens before the one that predicts the first action token."""
    mask_T = segment.action_mask_T
    first = 1 + int(mask_T[1:].argmax()) if mask_T[1:].any() else len(mask_T)
    return segment.token_ids_T[: first - 1]


# ------------------------------------------------------------------------------------------------------ which models
_sharing: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def can_share(model: nn.Module, decoder: nn.Module) -> bool:
    """Whether this model gives the same when prompts are shared; tried once per model, on a few tokens.

    Sliding windows, recurrent layers and activations that are computed again in the backward pass are left alone.
    """
    if recomputes_activations(model):
        return False
    if model not in _sharing:
        _sharing[model] = _only_full_attention(model) and _agrees(model, decoder)
    return _sharing[model]


def _only_full_attention(model: Any) -> bool:
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None


def _agrees(model: Any, decoder: nn.Module) -> bool:
    vocabulary = model.config.get_text_config().vocab_size
    rng = np.random.default_rng(0)
    prompt = rng.integers(vocabulary, size=9)
    tokens = [*(np.concatenate([prompt, rng.integers(vocabulary, size=3)]) for _ in range(3)), prompt[2:]]
    segments: list[Segment] = [
        Segment(
            token_ids_T=ids.astype(np.int32),
            action_mask_T=np.arange(len(ids)) >= len(ids) - 3,
            logprobs_T=np.zeros(len(ids), np.float32),
        )
        for ids in tokens
    ]
    device, was_training = device_of(model), model.training
    batch, prompts = TokenBatch.from_segments(segments, device), shared_prompts(segments, device)
    assert prompts is not None
    ids_BT, mask_BT = batch.input_ids_BT, batch.action_mask_BT
    model.eval()
    try:
        with torch.no_grad():
            whole = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1][mask_BT[:, 1:]]
            shared = hidden_before_actions(decoder, ids_BT, mask_BT, prompts)
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError):
        return False  # its forward takes no such cache, mask or positions
    finally:
        model.train(was_training)
    tolerance = 1e-4 if whole.dtype == torch.float32 else 0.05
    return torch.allclose(whole.float(), shared.float(), rtol=tolerance, atol=tolerance)


def _empty_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()

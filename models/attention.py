"""Attention of a decoder's new tokens to what their rows hold: `Single` for one token per row, `Padded` for chunks.

Batched products: faster than any fused kernel for few queries, and for groups of rows that share a prompt.

Legend: N tokens of a call, all rows' chunks in one line; B rows of a call, R cache rows, T tokens of the longest chunk,
S slots in use (a row's positions after the prompt that it shares), L positions of that prompt, K key heads, G query
heads per key head, M queries per row and key head, D head size, C = K G D.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .decoders import IntArray, counted, to_device
from .prefix_cache import UNSEEN, PrefixCache, softmax
from .row_cache import RowCache

Attend = Callable[[torch.Tensor, int], torch.Tensor]
"""Queries (N, H, D, scaled) and the number of the layer, to what they attend to, NC."""

_SCORES = 1 << 28
"""Scores of padded chunks that exist at one time."""
_CPU_SCORES = 1 << 20
"""The same on a processor: what its cache holds (4 MiB)."""


def attention_of(cache: RowCache, prefixes: PrefixCache, rows: IntArray, counts: IntArray, ends: IntArray) -> Attend:
    """Attention for one call, the same for all layers.

    Args:
        cache: What rows hold; a call's keys and values are written before it is asked to attend to them.
        prefixes: What rows begin with.
        rows: The cache rows, of B chunks.
        counts: Tokens of each chunk.
        ends: Slots that each row has in use, the chunk's own among them.
    """
    if (counts == 1).all():
        return Single(cache, prefixes, rows, ends)
    return Padded(cache, prefixes, rows, counts, ends)


class Single:
    """One token per row."""

    def __init__(self, cache: RowCache, prefixes: PrefixCache, rows: IntArray, ends: IntArray) -> None:
        self._cache, self._prefixes = cache, prefixes
        self._plan = prefixes.plan_of(rows)
        self._length = int(ends.max())
        device = cache.keys_RKSD[0].device
        read = as_slice(rows)
        self._rows = to_device(rows, device) if read is None else read
        self._bias_BS = unseen(to_device(ends[:, None] - 1, device), self._length, cache.keys_RKSD[0])[:, 0]

    def __call__(self, query_BHD: torch.Tensor, layer: int) -> torch.Tensor:
        """See `Attend`."""
        keys, values = self._cache.read(layer, self._rows, self._length)
        query = query_BHD.unflatten(1, (keys.shape[1], -1))
        before = 0 if self._plan is None else self._plan.length
        scores = query.new_empty(*query.shape[:3], before + self._length)
        shared, own = scores.split_with_sizes([before, self._length], dim=-1)
        torch.add(torch.matmul(query, keys.transpose(-1, -2)), self._bias_BS[:, None, None], out=own)
        if self._plan is not None:
            self._plan.score(query, self._prefixes.keys_PKLD[layer], shared)
        shared, own = softmax(scores).split_with_sizes([before, self._length], dim=-1)
        mixed = torch.matmul(own, values)
        if self._plan is not None:
            mixed += self._plan.mix(shared, self._prefixes.values_PKLD[layer])
        return mixed.flatten(1)


class Padded:
    """Chunks, all rows in as few products as memory allows."""

    def __init__(
        self, cache: RowCache, prefixes: PrefixCache, rows: IntArray, counts: IntArray, ends: IntArray
    ) -> None:
        self._cache, self._prefixes = cache, prefixes
        self._plan = prefixes.plan_of(rows)
        self._count, self._longest, self._length = len(rows), int(counts.max()), int(ends.max())
        device = cache.keys_RKSD[0].device
        self._place_N = to_device(np.repeat(np.arange(len(rows)) * self._longest, counts) + counted(counts), device)
        read = as_slice(rows)
        self._rows = to_device(rows, device) if read is None else read
        slots = to_device(ends - counts, device)[:, None] + torch.arange(self._longest, device=device)
        self._bias_BTS = unseen(slots, self._length, cache.keys_RKSD[0])

    def __call__(self, query_NHD: torch.Tensor, layer: int) -> torch.Tensor:
        """See `Attend`."""
        keys, values = self._cache.read(layer, self._rows, self._length)
        heads, size = keys.shape[1], keys.shape[3]
        padded = query_NHD.new_zeros(self._count * self._longest, *query_NHD.shape[1:])
        padded[self._place_N] = query_NHD
        query_BTKGD = padded.view(self._count, self._longest, heads, -1, size)
        query_BKMD = query_BTKGD.permute(0, 2, 3, 1, 4).reshape(self._count, heads, -1, size)
        length = self._length + (self._plan.length if self._plan is not None else 0)
        limit = _CPU_SCORES if query_NHD.device.type == "cpu" else _SCORES
        step = max(1, limit // (query_BKMD[0].shape[:2].numel() * length))
        prefix = self._prefixes.keys_PKLD[layer], self._prefixes.values_PKLD[layer]
        parts: list[torch.Tensor] = []
        for first in range(0, self._count, step):
            rows = slice(first, first + step)
            some = query_BKMD[rows], (keys[rows], values[rows]), self._bias_BTS[rows]
            parts.append(_attend_own(*some) if self._plan is None else self._plan.attend_many(rows, *some, *prefix))
        mixed = (torch.cat(parts) if len(parts) > 1 else parts[0]).view(self._count, -1, self._longest, size)
        return mixed.transpose(1, 2).reshape(len(padded), -1)[self._place_N]


def _attend_own(
    query_BKMD: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], bias_BTS: torch.Tensor
) -> torch.Tensor:
    """Attention of rows to themselves, (BK)MD."""
    keys, values = (states.flatten(0, 1) for states in cache)
    scores = torch.bmm(query_BKMD.flatten(0, 1), keys.transpose(1, 2))
    scores.view(len(query_BKMD), -1, *bias_BTS.shape[1:]).add_(bias_BTS[:, None])
    return torch.bmm(softmax(scores), values)


def unseen(slots: torch.Tensor, length: int, like: torch.Tensor) -> torch.Tensor:
    """0 for slots up to the given ones, very negative after them; one more dimension, S."""
    distance = (slots[..., None] - torch.arange(length, device=slots.device)).clamp_(max=0)
    return distance.to(torch.float32).mul_(-UNSEEN).to(like.dtype)


def as_slice(rows: IntArray) -> slice | None:
    """Rows that follow each other as a slice, which is not copied when it is read."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) and (np.diff(rows) == 1).all() else None

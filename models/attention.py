"""Attention of a decoder's new tokens to what their rows hold, in one of three ways.

- `Single`: one token per row, all rows in one product.
- `Padded`: chunks of several tokens, all rows in one product as long as the longest of them.
- `ByRow`: chunks one row after the other, each with as many queries and keys as it has.

A processor is busy with a single row and pays for padding; a GPU is not, and pays per call. On a processor with few
threads numpy multiplies, in float32: its BLAS (OpenBLAS) has kernels for products with a few rows, and torch's (MKL)
has not; it packs all the keys first. `benchmarks/attention.py` measures both.

Legend: N tokens of a call, all rows' chunks in one line; B rows of a call, R cache rows, T tokens of the longest chunk,
S slots in use (a row's positions after the prompt that it shares), L positions of that prompt, K key heads, G query
heads per key head, M queries per row and key head, D head size, C = K G D.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from .decoders import IntArray, counted, to_device
from .prefix_cache import UNSEEN, PrefixCache, softmax
from .row_cache import RowCache

Attend = Callable[[torch.Tensor, int], torch.Tensor]
"""Queries (N, H, D, scaled) and the number of the layer, to what they attend to, NC."""
Floats = NDArray[np.float32]

_SCORES = 1 << 28
"""Scores of padded chunks that exist at one time."""
_CPU_SCORES = 1 << 20
"""The same on a processor: what its cache holds (4 MiB)."""
_FEW_THREADS = 2
"""With more threads than these, torch's products are as fast as numpy's, which uses one here."""
_BLOCK = 256
"""Keys of one product: of longer ones OpenBLAS packs the keys, too."""


def attention_of(cache: RowCache, prefixes: PrefixCache, rows: IntArray, counts: IntArray, ends: IntArray) -> Attend:
    """Attention for one call, the same for all layers.

    Args:
        cache: What rows hold; a call's keys and values are written before it is asked to attend to them.
        prefixes: What rows begin with.
        rows: The cache rows, of B chunks.
        counts: Tokens of each chunk.
        ends: Slots that each row has in use, the chunk's own among them.
    """
    numpy = numpy_is_faster(cache.keys_RKSD[0])
    if (counts == 1).all() and (not numpy or as_slice(rows) is not None):
        return Single(cache, prefixes, rows, ends, numpy)
    return (ByRow if numpy else Padded)(cache, prefixes, rows, counts, ends)


def numpy_is_faster(states: torch.Tensor) -> bool:
    """Whether thin products with these keys or values are numpy's."""
    plain = states.device.type == "cpu" and states.dtype == torch.float32
    return plain and torch.get_num_threads() <= _FEW_THREADS


class Single:
    """One token per row."""

    def __init__(self, cache: RowCache, prefixes: PrefixCache, rows: IntArray, ends: IntArray, numpy: bool) -> None:
        self._cache, self._prefixes = cache, prefixes
        self._plan = prefixes.plan_of(rows)
        self._length, self._numpy = int(ends.max()), numpy
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
        if self._numpy:
            thin_scores(query.numpy(), keys.numpy(), own.numpy())
        else:
            own.copy_(torch.matmul(query, keys.transpose(-1, -2)))
        own.add_(self._bias_BS[:, None, None])
        if self._plan is not None:
            self._plan.score(query, self._prefixes.keys_PKLD[layer], shared)
        shared, own = softmax(scores).split_with_sizes([before, self._length], dim=-1)
        mixed = torch.from_numpy(thin_mix(own.numpy(), values.numpy())) if self._numpy else torch.matmul(own, values)
        if self._plan is not None:
            mixed += self._plan.mix(shared, self._prefixes.values_PKLD[layer])
        return mixed.flatten(1)


class ByRow:
    """Chunks, one row after the other; in numpy, all but the softmax."""

    def __init__(
        self, cache: RowCache, prefixes: PrefixCache, rows: IntArray, counts: IntArray, ends: IntArray
    ) -> None:
        self._cache, self._prefixes = cache, prefixes
        stops = np.cumsum(counts)
        self._chunks = list(zip(rows.tolist(), (stops - counts).tolist(), stops.tolist(), ends.tolist(), strict=True))
        longest = int(counts.max())
        self._later_TT = np.triu(np.full((longest, longest), UNSEEN, dtype=np.float32), 1)

    def __call__(self, query_NHD: torch.Tensor, layer: int) -> torch.Tensor:
        """See `Attend`."""
        keys_RKSD, values_RKSD = self._cache.keys_RKSD[layer].numpy(), self._cache.values_RKSD[layer].numpy()
        heads, size = keys_RKSD.shape[1], keys_RKSD.shape[3]
        query_NKGD = query_NHD.unflatten(1, (heads, -1)).numpy()
        mixed_NKGD = np.empty_like(query_NKGD)
        for row, start, stop, end in self._chunks:
            query = query_NKGD[start:stop].swapaxes(0, 1).reshape(heads, -1, size)
            keys, values = keys_RKSD[row, :, :end], values_RKSD[row, :, :end]
            prefix = self._prefixes.of_row(row, layer)
            before = 0 if prefix is None else prefix[0].shape[1]
            scores = torch.empty(heads, query.shape[1], before + end)
            own = scores.numpy()[..., before:]
            np.matmul(query, keys.swapaxes(1, 2), out=own)
            if stop - start > 1:
                new = own.reshape(heads, stop - start, -1, end)[..., start - stop :]
                new += self._later_TT[: stop - start, None, : stop - start]
            if prefix is not None:
                np.matmul(query, prefix[0].numpy().swapaxes(1, 2), out=scores.numpy()[..., :before])
            weights = scores.softmax(-1).numpy()
            mixed = np.matmul(weights[..., before:], values)
            if prefix is not None:
                mixed += np.matmul(weights[..., :before], prefix[1].numpy())
            mixed_NKGD[start:stop] = mixed.reshape(heads, stop - start, -1, size).swapaxes(0, 1)
        return torch.from_numpy(mixed_NKGD).flatten(1)


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


def thin_scores(query_BKMD: Floats, keys_BKSD: Floats, out_BKMS: Floats) -> None:
    """Products of few queries with many keys."""
    whole = _whole_blocks(keys_BKSD)
    if whole:
        blocks = out_BKMS[..., :whole].reshape(*out_BKMS.shape[:3], -1, _BLOCK).transpose(0, 1, 3, 2, 4)
        np.matmul(query_BKMD[:, :, None], _in_blocks(keys_BKSD, whole).swapaxes(3, 4), out=blocks)
    np.matmul(query_BKMD, keys_BKSD[:, :, whole:].swapaxes(2, 3), out=out_BKMS[..., whole:])


def thin_mix(weights_BKMS: Floats, values_BKSD: Floats) -> Floats:
    """Sums of values by few rows of weights, BKMD."""
    whole = _whole_blocks(values_BKSD)
    mixed = np.matmul(weights_BKMS[..., whole:], values_BKSD[:, :, whole:])
    if whole:
        blocks = weights_BKMS[..., :whole].reshape(*weights_BKMS.shape[:3], -1, _BLOCK).transpose(0, 1, 3, 2, 4)
        mixed += np.matmul(blocks, _in_blocks(values_BKSD, whole)).sum(2)
    return mixed


def _whole_blocks(states_BKSD: Floats) -> int:
    """How many slots are in whole blocks; 0 where one product does."""
    slots = states_BKSD.shape[2]
    return 0 if slots < 2 * _BLOCK else slots // _BLOCK * _BLOCK


def _in_blocks(states_BKSD: Floats, whole: int) -> Floats:
    rows, heads, _, size = states_BKSD.shape
    return states_BKSD[:, :, :whole].reshape(rows, heads, -1, _BLOCK, size)


def unseen(slots: torch.Tensor, length: int, like: torch.Tensor) -> torch.Tensor:
    """0 for slots up to the given ones, very negative after them; one more dimension, S."""
    distance = (slots[..., None] - torch.arange(length, device=slots.device)).clamp_(max=0)
    return distance.to(torch.float32).mul_(-UNSEEN).to(like.dtype)


def as_slice(rows: IntArray) -> slice | None:
    """Rows that follow each other as a slice, which is not copied when it is read."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) and (np.diff(rows) == 1).all() else None

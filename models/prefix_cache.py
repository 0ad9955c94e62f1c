"""Keys and values of prompts that several cache rows begin with: kept once, read once for all of their rows.

Attention over what rows have in common is a product of matrices instead of one product with a vector per row, and the
cache of a group's prompt is read from memory once instead of once per episode (Juravsky et al. 2024, "Hydragen"; the
two parts' scores meet in one softmax here, which needs no rescaling).

Legend: R cache rows, B rows of a call, P prefixes in use, N rows of the largest group in the call, L positions of the
longest prefix, K key heads, D head size, M queries per row and key head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .decoders import IntArray, counted, to_device

NONE = -1
UNSEEN = -1e30
"""Added to a score that is not to count: its weight becomes exactly 0."""
SHORTEST = 32
"""A shorter prompt is copied: sharing it would save less than it costs."""


@dataclass(frozen=True, slots=True, eq=False)
class PrefixPlan:
    """Which rows of a call begin with which prefix."""

    prefixes: int
    """P: the first ones of the cache, those in use among them."""
    length: int
    """L."""
    prefix_B: torch.Tensor
    """For each row, its prefix; 0 for a row without one."""
    place_B: torch.Tensor
    """For each row, its place among the N."""
    member_G: torch.Tensor
    """P * N: the call's rows, prefix by prefix; places without a row name row 0."""
    in_order: bool
    """Whether `member_G` counts the rows: nothing has to be moved then."""
    without_B: torch.Tensor | None
    """Rows without a prefix; None if there are none."""
    bias_BL: torch.Tensor | None
    """Added to the scores; None if every row has a prefix of the same length."""

    def score(self, query_BKMD: torch.Tensor, keys_PKLD: torch.Tensor, out_BKML: torch.Tensor) -> None:
        """Scores of the prefixes' positions."""
        _, heads, queries, _ = query_BKMD.shape
        keys = keys_PKLD[: self.prefixes, :, : self.length].flatten(0, 1)
        products = torch.bmm(self._by_prefix(query_BKMD), keys.transpose(1, 2))
        scores = self._by_row(products, heads, queries)
        out_BKML.unflatten(0, scores.shape[: scores.dim() - 3]).copy_(scores)
        if self.bias_BL is not None:
            out_BKML.add_(self.bias_BL[:, None, None])

    def mix(self, weights_BKML: torch.Tensor, values_PKLD: torch.Tensor) -> torch.Tensor:
        """Sums of the prefixes' values, BKMD."""
        _, heads, queries, _ = weights_BKML.shape
        values = values_PKLD[: self.prefixes, :, : self.length].flatten(0, 1)
        mixed = self._by_row(torch.bmm(self._by_prefix(weights_BKML), values), heads, queries)
        mixed = mixed.reshape(*weights_BKML.shape[:3], -1)
        return mixed if self.without_B is None else mixed.masked_fill(self.without_B[:, None, None, None], 0.0)

    def attend_many(
        self,
        rows: slice,
        query_BKMD: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        bias_BTS: torch.Tensor,
        keys_PKLD: torch.Tensor,
        values_PKLD: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of many queries per row, (BK)MD, for some of the call's rows: scores are larger than the cache."""
        count, heads, queries, _ = query_BKMD.shape
        own_keys, own_values = (states.flatten(0, 1) for states in cache)
        query, tokens, prefix_B = query_BKMD.flatten(0, 1), bias_BTS.shape[1], self.prefix_B[rows]
        scores = query.new_empty(count * heads, queries, self.length + own_keys.shape[1])
        shared, own = scores.split_with_sizes([self.length, own_keys.shape[1]], dim=-1)
        keys = keys_PKLD[:, :, : self.length].index_select(0, prefix_B).flatten(0, 1)
        torch.bmm(query, keys.transpose(1, 2), out=shared)
        torch.bmm(query, own_keys.transpose(1, 2), out=own)
        own.view(count, -1, tokens, own.shape[-1]).add_(bias_BTS[:, None])
        if self.bias_BL is not None:
            shared.view(count, -1, self.length).add_(self.bias_BL[rows, None])
        shared, own = softmax(scores).split_with_sizes([self.length, own.shape[-1]], dim=-1)
        values = values_PKLD[:, :, : self.length].index_select(0, prefix_B).flatten(0, 1)
        return torch.bmm(shared, values).add_(torch.bmm(own, own_values))

    def _by_prefix(self, rows_BKMx: torch.Tensor) -> torch.Tensor:
        """The rows of each prefix side by side: (P K)(N M)x."""
        members = rows_BKMx if self.in_order else rows_BKMx.index_select(0, self.member_G)
        _, heads, _, size = members.shape
        grouped = members.unflatten(0, (self.prefixes, -1)).transpose(1, 2)
        return grouped.reshape(self.prefixes * heads, -1, size)

    def _by_row(self, products: torch.Tensor, heads: int, queries: int) -> torch.Tensor:
        """Undoes `_by_prefix`: BKMx, with B as P, N where rows are in order."""
        by_prefix = products.view(self.prefixes, heads, -1, queries, products.shape[-1]).transpose(1, 2)
        return by_prefix if self.in_order else by_prefix[self.prefix_B, self.place_B]


class PrefixCache:
    """The prefixes and who begins with them. `offset_R` says at which position a row's own part begins."""

    def __init__(self, rows: int, layers: int, empty: torch.Tensor) -> None:
        self._empty = empty
        self._prefix_R = np.full(rows, NONE, dtype=np.int64)
        self._length_P = np.zeros(0, dtype=np.int64)
        self.keys_PKLD = [empty] * layers
        self.values_PKLD = [empty] * layers
        self._plan_of: tuple[int, PrefixPlan | None] = (0, None)
        """The plan for a number of leading rows, until something changes."""

    def offsets(self, rows: IntArray) -> IntArray:
        """Length of each row's prefix; 0 without one."""
        if not len(self._length_P):
            return np.zeros(len(rows), dtype=np.int64)
        prefix_B = self._prefix_R[rows]
        return np.where(prefix_B == NONE, 0, self._length_P[prefix_B])

    def clear(self) -> None:
        """No row has a prefix any more."""
        self._prefix_R[:] = NONE
        self._changed()

    def leave(self, rows: IntArray) -> None:
        """These rows begin anew, each by itself."""
        self._prefix_R[rows] = NONE
        self._changed()

    def move(self, sources: IntArray, targets: IntArray) -> None:
        """The target rows become what the source rows are."""
        self._prefix_R[targets] = self._prefix_R[sources]
        self._changed()

    def add(self, rows: IntArray, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        """Lets rows begin with a new prefix: per layer keys and values, KLD."""
        heads, length, size = keys[0].shape
        number = next(n for n in range(len(self._prefix_R) + 1) if n not in self._prefix_R)
        self._grow(number + 1, heads, length, size)
        for layer, (keys_KLD, values_KLD) in enumerate(zip(keys, values, strict=True)):
            self.keys_PKLD[layer][number, :, :length] = keys_KLD
            self.values_PKLD[layer][number, :, :length] = values_KLD
        self._length_P[number] = length
        self._prefix_R[rows] = number
        self._changed()

    def plan(self, rows: IntArray) -> PrefixPlan | None:
        """Who shares what among these rows; None if none of them has a prefix."""
        prefix_B = self._prefix_R[rows]
        count = int(prefix_B.max(initial=NONE)) + 1
        if not count:
            return None
        has = prefix_B != NONE
        order = np.argsort(prefix_B, kind="stable")[np.count_nonzero(~has) :]
        sizes_P = np.bincount(prefix_B[has], minlength=count)
        rank = counted(sizes_P)
        member_PN = np.zeros((count, int(sizes_P.max())), dtype=np.int64)
        member_PN[prefix_B[order], rank] = order
        place_B = np.zeros(len(rows), dtype=np.int64)
        place_B[order] = rank
        return PrefixPlan(
            prefixes=count,
            length=int(self._length_P[prefix_B[has]].max()),
            prefix_B=self._tensor(np.maximum(prefix_B, 0)),
            place_B=self._tensor(place_B),
            member_G=self._tensor(member_PN.reshape(-1)),
            in_order=np.array_equal(member_PN.reshape(-1), np.arange(len(rows))),
            without_B=None if has.all() else self._tensor(~has),
            bias_BL=self._bias(self.offsets(rows)),
        )

    def plan_of(self, rows: IntArray) -> PrefixPlan | None:
        """`plan`, made once where most calls are about the same first rows."""
        if rows[0] or rows[-1] != len(rows) - 1 or not np.array_equal(rows, np.arange(len(rows))):
            return self.plan(rows)
        if self._plan_of[0] != len(rows):
            self._plan_of = (len(rows), self.plan(rows))
        return self._plan_of[1]

    def _bias(self, offsets_B: IntArray) -> torch.Tensor | None:
        longest = int(offsets_B.max())
        if (offsets_B == longest).all():
            return None
        unseen_BL = np.arange(longest) >= offsets_B[:, None]
        bias = torch.zeros(unseen_BL.shape, dtype=self._empty.dtype, device=self._empty.device)
        return bias.masked_fill_(self._tensor(unseen_BL), UNSEEN)

    def _grow(self, prefixes: int, heads: int, length: int, size: int) -> None:
        """Makes room, at least twice as much as there was."""
        known, longest = len(self._length_P), self.keys_PKLD[0].shape[2] if len(self._length_P) else 0
        if prefixes <= known and length <= longest:
            return
        prefixes, length = max(prefixes, 2 * known if prefixes > known else known), max(length, longest)
        for states in (self.keys_PKLD, self.values_PKLD):
            for layer, old in enumerate(states):
                states[layer] = self._empty.new_zeros(prefixes, heads, length, size)
                if known:
                    states[layer][:known, :, :longest] = old
        self._length_P = np.pad(self._length_P, (0, prefixes - known))

    def _changed(self) -> None:
        self._plan_of = (0, None)

    def _tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        return to_device(array, self._empty.device)


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, in float32."""
    if scores.dtype == torch.float32:
        return scores.softmax(-1)
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)

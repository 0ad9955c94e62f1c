"""Keys and values of each row of a decoder, per layer, in tensors that grow with the conversations.

Legend: R cache rows, S slots (a row's positions after the prompt that it shares), K key heads, D head size.
"""

from __future__ import annotations

import math
import mmap

import torch

_FIRST_SLOTS = 256
"""Positions that the cache has at first; it doubles when a conversation outgrows it."""
_ODD_STRIDE = 8
"""Added to the cache's length: rows a power of two apart would share cache sets."""
_HUGE_PAGE = 1 << 21


class RowCache:
    """What rows hold. `keys_RKSD` and `values_RKSD` are lists over layers."""

    def __init__(self, rows: int, layers: int, key_heads: int, head_size: int, like: torch.Tensor) -> None:
        self._like = like.new_empty(0)
        self._shape = (rows, key_heads, head_size)
        self._slots = 0
        self.keys_RKSD = [self._zeros(0) for _ in range(layers)]
        self.values_RKSD = [self._zeros(0) for _ in range(layers)]

    def reserve(self, length: int) -> None:
        """Makes the cache long enough for this many slots."""
        if length <= self._slots:
            return
        slots = max(_FIRST_SLOTS, 1 << (length - 1).bit_length()) + _ODD_STRIDE
        for states in (self.keys_RKSD, self.values_RKSD):
            for layer, old in enumerate(states):
                states[layer] = self._zeros(slots)
                states[layer][:, :, : self._slots] = old
        self._slots = slots

    def write(
        self, layer: int, rows_N: torch.Tensor, slots_N: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor
    ) -> None:
        """Stores one key and value per token."""
        self.keys_RKSD[layer][rows_N, :, slots_N] = key_NKD
        self.values_RKSD[layer][rows_N, :, slots_N] = value_NKD

    def read(self, layer: int, rows: slice | torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, BKSD, of rows' first slots; a slice of rows is not copied."""
        return self.keys_RKSD[layer][:, :, :length][rows], self.values_RKSD[layer][:, :, :length][rows]

    def copy(self, sources: torch.Tensor, targets: torch.Tensor, length: int) -> None:
        """Copies the first slots of some rows to others."""
        for states in (*self.keys_RKSD, *self.values_RKSD):
            states[targets, :, :length] = states[sources, :, :length]

    def _zeros(self, slots: int) -> torch.Tensor:
        """RKSD. In a processor's memory in huge pages: every pass reads all of it; small pages cost a third more."""
        rows, key_heads, head_size = self._shape
        shape = (rows, key_heads, slots, head_size)
        size = math.prod(shape) * self._like.element_size()
        if self._like.device.type != "cpu" or size < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
            return self._like.new_zeros(shape)
        memory = mmap.mmap(-1, -(-size // _HUGE_PAGE) * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=self._like.dtype, count=math.prod(shape)).view(shape)

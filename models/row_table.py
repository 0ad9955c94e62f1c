"""The engine's bookkeeping: which conversation stands in which cache row, and how far it is.

Arrays over rows, so that a step of many rows costs a few array operations. Legend: R rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

FREE, IDLE, WAITING, ACTIVE = range(4)
"""Row states: empty; waiting for its next request; request submitted, not yet prefilled; being decoded."""


class RowTable:
    """Rows 0..R-1 with their conversations' tokens and counters.

    Attributes:
        tokens_RT: All tokens of each conversation.
        logprobs_RT: Log-probabilities of its sampled tokens.
        length_R: Number of tokens known.
        cached_R: Number of tokens whose keys and values are in the cache.
        start_R: Where the current turn's sampled tokens begin.
        stop_R: Length at which the current turn is cut off.
        state_R: One of FREE, IDLE, WAITING, ACTIVE.
        uniforms_RT: Random numbers of the current turn, one per sampled token.
        temperature_R: Sampling temperature.
        ends_R: Which set of end tokens ends the current turn (index into `end_sets`).
    """

    def __init__(self, rows: int, max_context: int) -> None:
        self.rows, self.max_context = rows, max_context
        self.tokens_RT: IntArray = np.zeros((rows, max_context), dtype=np.int64)
        self.logprobs_RT = np.zeros((rows, max_context), dtype=np.float32)
        self.uniforms_RT = np.zeros((rows, 1), dtype=np.float32)
        self.length_R: IntArray = np.zeros(rows, dtype=np.int64)
        self.cached_R: IntArray = np.zeros(rows, dtype=np.int64)
        self.start_R: IntArray = np.zeros(rows, dtype=np.int64)
        self.stop_R: IntArray = np.zeros(rows, dtype=np.int64)
        self.ends_R: IntArray = np.zeros(rows, dtype=np.int64)
        self.state_R = np.full(rows, FREE, dtype=np.int8)
        self.temperature_R = np.ones(rows, dtype=np.float32)
        self.keys: list[Hashable] = [None] * rows
        self.row_of: dict[Hashable, int] = {}

    def take(self, key: Hashable) -> int | None:
        """Gives the first free row to a new conversation; None when all are taken."""
        free = np.flatnonzero(self.state_R == FREE)
        if not len(free):
            return None
        row = int(free[0])
        self.keys[row], self.row_of[key] = key, row
        self.state_R[row] = IDLE
        self.length_R[row] = self.cached_R[row] = 0
        return row

    def drop(self, key: Hashable) -> None:
        """Frees a conversation's row."""
        row = self.row_of.pop(key)
        self.keys[row] = None
        self.state_R[row] = FREE
        self.length_R[row] = self.cached_R[row] = 0

    def append(self, row: int, token_ids: list[int]) -> None:
        """Appends context tokens to a conversation."""
        start = int(self.length_R[row])
        stop = start + len(token_ids)
        self.tokens_RT[row, start:stop] = token_ids
        self.length_R[row] = stop

    def set_uniforms(self, row: int, uniforms: NDArray[np.float32]) -> None:
        """Stores the random numbers of a turn."""
        missing = len(uniforms) - self.uniforms_RT.shape[1]
        if missing > 0:
            self.uniforms_RT = np.pad(self.uniforms_RT, ((0, 0), (0, missing)))
        self.uniforms_RT[row, : len(uniforms)] = uniforms

    def move(self, sources: IntArray, targets: IntArray) -> None:
        """Moves conversations to free rows; their old rows become free."""
        arrays = (self.tokens_RT, self.logprobs_RT, self.uniforms_RT, self.length_R, self.cached_R, self.start_R)
        for array in (*arrays, self.stop_R, self.ends_R, self.state_R, self.temperature_R):
            array[targets] = array[sources]
        self.state_R[sources] = FREE
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            key = self.keys[source]
            self.keys[target], self.keys[source] = key, None
            self.row_of[key] = target

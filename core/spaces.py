"""A Gymnasium space of Unicode strings.

`gymnasium.spaces.Text` is not used: its default charset rejects a space, and a full-Unicode charset costs seconds and
hundreds of megabytes. Membership here is O(1).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

_SAMPLE_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;()[]{}+-*/=_<>'\"\n"


class Unicode(gym.Space[str]):
    """All strings of at most `max_length` characters (code points).

    Args:
        max_length: Greatest number of characters.
        seed: Seed of `sample`, or a generator.
    """

    def __init__(self, max_length: int = 1_000_000, seed: int | np.random.Generator | None = None) -> None:
        if max_length < 1:
            raise ValueError(f"max_length={max_length}: must be at least 1")
        self.max_length = max_length
        super().__init__(shape=None, dtype=None, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: strings have no fixed-size array form."""
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """Gives a short printable string; masks have no meaning here."""
        if mask is not None or probability is not None:
            raise ValueError("Unicode.sample takes no mask and no probability")
        length = int(self.np_random.integers(0, min(self.max_length, 32) + 1))
        return "".join(_SAMPLE_ALPHABET[i] for i in self.np_random.integers(0, len(_SAMPLE_ALPHABET), size=length))

    def contains(self, x: Any) -> bool:
        """Whether `x` is a string that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unicode) and other.max_length == self.max_length

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.max_length))

    def __repr__(self) -> str:
        return f"Unicode(max_length={self.max_length})"

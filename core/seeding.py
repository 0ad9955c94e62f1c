"""Seeds derived from names, so that every episode has randomness of its own and nothing touches global state."""

from __future__ import annotations

import hashlib

import numpy as np

SEED_BITS = 63


def derive_seed(*parts: int | str) -> int:
    """Gives a 63-bit seed that depends on every part and on their order.

    Example: `derive_seed(run_seed, "rollout", step, task_id, replica)`.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}".replace("\x1f", "\x1f\x1f") for part in parts)
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def generator(*parts: int | str) -> np.random.Generator:
    """Gives a NumPy generator seeded by `derive_seed(*parts)`."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))

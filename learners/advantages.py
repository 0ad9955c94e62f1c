"""Advantages from rewards. Pure functions; nothing here knows tokens or models.

Legend: G episodes of one group, N groups. Only outcome rewards of groups so far: no critic, no step rewards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

STD_EPSILON = 1e-4
"""Added to the standard deviation, as in DeepSeekMath's reference code and TRL."""


def group_advantages(rewards_NG: ArrayLike, *, normalise_std: bool = True) -> NDArray[np.float64]:
    """Gives each episode's reward relative to its group, the last axis.

    A_i = (r_i - mean(r)) / (std(r) + 1e-4)      Shao et al. 2024 (arXiv 2402.03300), section 4.1.2

    We take the population's standard deviation (divided by G). Without it (`normalise_std=False`) this is Dr. GRPO
    (Liu et al. 2025, arXiv 2503.20783), which does not favour tasks that are nearly always or nearly never solved.

    A NaN reward marks a failed episode: it is left out of the mean and the deviation, and its advantage is 0. A group
    whose rewards are all equal gets exactly 0: `r - mean(r)` alone would leave rounding noise, which dividing by the
    deviation would blow up.

    Example::

        group_advantages([1.0, 0.0, 0.0, nan], normalise_std=False)  ->  [0.667, -0.333, -0.333, 0.0]

    Args:
        rewards_NG: Rewards, any shape; the last axis is the group.
        normalise_std: Whether to divide by the group's standard deviation.

    Returns:
        Advantages of the same shape.
    """
    rewards = np.asarray(rewards_NG, dtype=np.float64)
    scored = ~np.isnan(rewards)
    count = np.maximum(scored.sum(axis=-1, keepdims=True), 1)
    mean = np.where(scored, rewards, 0.0).sum(axis=-1, keepdims=True) / count
    centred = np.where(scored, rewards - mean, 0.0)
    if normalise_std:
        std = np.sqrt((centred**2).sum(axis=-1, keepdims=True) / count)
        centred = centred / (std + STD_EPSILON)
    return np.where(scored & has_spread(rewards)[..., None], centred, 0.0)


def has_spread(rewards_NG: ArrayLike) -> NDArray[np.bool_]:
    """Whether each group has two different rewards, so that it teaches something; NaN rewards are ignored."""
    rewards = np.asarray(rewards_NG, dtype=np.float64)
    highest = np.where(np.isnan(rewards), -np.inf, rewards).max(axis=-1)
    lowest = np.where(np.isnan(rewards), np.inf, rewards).min(axis=-1)
    return highest > lowest

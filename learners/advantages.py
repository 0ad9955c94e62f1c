"""Advantages from rewards. Pure functions; nothing here knows tokens or models.

Legend: G episodes of one group, N groups, K turns of one trajectory, S turns of all episodes of one group. There is no
critic: an episode is compared with the others of its group, and a turn with those that began in the same state.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

STD_EPSILON = 1e-4
"""Added to the standard deviation, as in DeepSeekMath's reference code and TRL."""


def group_advantages(
    rewards_NG: ArrayLike, *, normalise_std: bool = True, leave_one_out: bool = False
) -> NDArray[np.float64]:
    """Gives each episode's reward relative to its group, the last axis.

    A_i = (r_i - mean(r)) / (std(r) + 1e-4)      Shao et al. 2024 (arXiv 2402.03300), section 4.1.2

    We take the population's standard deviation (divided by G). Without it (`normalise_std=False`) this is Dr. GRPO
    (Liu et al. 2025, arXiv 2503.20783, section 3.2), which does not favour tasks that are nearly always or nearly never
    solved. `leave_one_out=True` takes the mean of the others, which does not depend on r_i:

    A_i = r_i - sum(r_j, j != i) / (G - 1)       RLOO, Ahmadian et al. 2024 (arXiv 2402.14740), without deviation

    which is G / (G - 1) times the difference from the mean. The paper subtracts the KL from the reward; here it is a
    term of the loss.

    A NaN reward marks a failed episode: it is left out of the mean and the deviation, and its advantage is 0. A group
    whose rewards are all equal gets exactly 0: `r - mean(r)` alone would leave rounding noise, which dividing by the
    deviation would blow up.

    Example::

        group_advantages([1.0, 0.0, 0.0, nan], normalise_std=False)  ->  [0.667, -0.333, -0.333, 0.0]
        group_advantages([1.0, 0.0, 0.0, nan], normalise_std=False, leave_one_out=True)  ->  [1.0, -0.5, -0.5, 0.0]

    Args:
        rewards_NG: Rewards, any shape; the last axis is the group.
        normalise_std: Whether to divide by the group's standard deviation.
        leave_one_out: Whether to compare with the mean of the other episodes instead of the mean of all.

    Returns:
        Advantages of the same shape, in units of the reward, or of its deviation.
    """
    rewards = np.asarray(rewards_NG, dtype=np.float64)
    scored = ~np.isnan(rewards)
    count = np.maximum(scored.sum(axis=-1, keepdims=True), 1)
    total = np.where(scored, rewards, 0.0).sum(axis=-1, keepdims=True)
    centred = np.where(scored, rewards - total / count, 0.0)
    advantages = centred
    if leave_one_out:
        advantages = np.where(scored, rewards - (total - rewards) / np.maximum(count - 1, 1), 0.0)
    if normalise_std:
        std = np.sqrt((centred**2).sum(axis=-1, keepdims=True) / count)
        advantages = advantages / (std + STD_EPSILON)
    return np.where(scored & has_spread(rewards)[..., None], advantages, 0.0)


def has_spread(rewards_NG: ArrayLike) -> NDArray[np.bool_]:
    """Whether each group has two different rewards, so that it teaches something; NaN rewards are ignored."""
    rewards = np.asarray(rewards_NG, dtype=np.float64)
    highest = np.where(np.isnan(rewards), -np.inf, rewards).max(axis=-1)
    lowest = np.where(np.isnan(rewards), np.inf, rewards).min(axis=-1)
    return highest > lowest


def discounted_returns(rewards_K: ArrayLike, discount: float) -> NDArray[np.float64]:
    """Gives the return from each turn on: R_k = r_k + discount * R_(k+1), in units of the reward.

    GiGPO, Feng et al. 2025 (arXiv 2505.10978), eq. 5.
    """
    rewards = np.asarray(rewards_K, dtype=np.float64)
    returns = np.empty_like(rewards)
    following = 0.0
    for k in range(len(rewards) - 1, -1, -1):
        following = rewards[k] + discount * following
        returns[k] = following
    return returns


def step_advantages(
    returns_S: ArrayLike, anchors_S: Sequence[Hashable], *, normalise_std: bool = True
) -> NDArray[np.float64]:
    """Gives each turn's return relative to the turns of its group that began in an equal state.

    A_k = (R_k - mean(R)) / (std(R) + 1e-4), over all turns with the same anchor
                                             GiGPO, Feng et al. 2025 (arXiv 2505.10978), eq. 6 and 7

    GiGPO's advantage is that of the episode (`group_advantages`) plus a weight times this one (eq. 8). A state that was
    met once, or whose returns are all equal, gives exactly 0; so does a NaN return, which counts for nothing.

    Example: two turns began in state `a`, one in `b`::

        step_advantages([1.0, 0.0, 1.0], ["a", "a", "b"], normalise_std=False)  ->  [0.5, -0.5, 0.0]

    Args:
        returns_S: Discounted returns of all turns of all episodes of one task.
        anchors_S: What names the state that each of these turns began in.
        normalise_std: Whether to divide by the deviation of the state's returns (the paper's F_norm).

    Returns:
        One advantage per turn, in units of the return, or of its deviation.
    """
    returns = np.asarray(returns_S, dtype=np.float64)
    members: dict[Hashable, list[int]] = {}
    for index, anchor in enumerate(anchors_S):
        members.setdefault(anchor, []).append(index)
    advantages = np.zeros_like(returns)
    for indices in members.values():
        advantages[indices] = group_advantages(returns[indices], normalise_std=normalise_std)
    return advantages

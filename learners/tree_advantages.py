"""Advantages of turns in a group whose episodes were forked from each other. Pure functions; see `agents.branching`.

Legend: G episodes of one group, K turns of one episode.

Episodes that share their first turns are a tree: a trunk, and branches that were forked from it. Where two of them part
is a branching point; the beginning of the task is one too, where all episodes of the group part. Its value is the mean
return of the episodes below it, those that went through it:

    V(n) = mean(R_j : episode j passes n),        V(an episode's end) = its own return R_i

A turn lies between two of them: n, the last branching point at or before it, and m, the next one after it, or the
episode's end. Its advantage is what the group says of m, plus a weight times the difference that m makes to n:

    A = (V(m) - V(root)) / s + w (V(m) - V(n)) / s

with s = std(R) + 1e-4 over the group, or 1 without normalisation. The first term is the group's outcome advantage
(GRPO's), averaged over the episodes below m: turns that several episodes share are worth what came of all of them. The
second is the Monte Carlo estimate of the advantage of these turns; VinePPO (Kazemnejad et al. 2024, arXiv 2410.01679,
eq. 6) has it for single steps, with a value estimated before each. TreeRL (Hou et al. 2025, arXiv 2506.11902) adds the
same two terms, which it calls global and local advantage. An episode without forks has m = its end and n = root, and so
1 + w times GRPO's advantage: the weight favours no kind of episode.

Returns are not discounted, because an episode's rewards before a fork are those of all its branches: they cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .advantages import STD_EPSILON, has_spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """How one episode of a group came about.

    Example: an episode of five turns, the first two of which are those of the group's episode 0::

        Path(turns=5, parent=0, forked_at=2)
    """

    turns: int
    parent: int | None = None
    """Number in the group of the episode that this one was forked from; None where it started afresh."""
    forked_at: int = 0
    """How many turns are the parent's."""


def tree_advantages(
    rewards_G: Sequence[float], paths_G: Sequence[Path], *, step_weight: float = 1.0, normalise_std: bool = True
) -> list[NDArray[np.float64]]:
    """Gives the advantage of every turn [K] of every episode; see the module's docstring.

    Example: episode 0 fails; episode 1, forked from it after its first turn, succeeds, and so does episode 2, which
    started afresh. V(root) = 2/3, and the fork has V = 1/2, so that with w = 1 and without normalisation::

        tree_advantages([0, 1, 1], [Path(turns=2), Path(turns=2, parent=0, forked_at=1), Path(turns=1)],
                        normalise_std=False)
        ->  [[-1/3, -7/6], [-1/3, 5/6], [2/3]]

    Args:
        rewards_G: Returns; NaN marks failed episodes, which are left out of all means, and whose turns get 0.
        paths_G: How the episodes came about. Shared turns stand in each of them, with equal advantages.
        step_weight: The weight w.
        normalise_std: Whether to divide by the deviation of the group's returns.

    Returns:
        Exactly 0 everywhere where all returns are equal.
    """
    rewards = np.asarray(rewards_G, dtype=np.float64)
    scored = [i for i in range(len(rewards)) if not np.isnan(rewards[i])]
    advantages = [np.zeros(path.turns) for path in paths_G]
    if not bool(has_spread(rewards)):
        return advantages
    sources = [_sources(paths_G, i) for i in range(len(paths_G))]
    root = rewards[scored].mean()
    scale = rewards[scored].std() + STD_EPSILON if normalise_std else 1.0
    for i in scored:
        before = root
        start = 0
        for stop in _points_after_root(sources, scored, i):
            below = [j for j in scored if sources[j][:stop] == sources[i][:stop]]
            value = rewards[below].mean() if stop < len(sources[i]) else rewards[i]
            advantages[i][start:stop] = ((value - root) + step_weight * (value - before)) / scale
            before, start = value, stop
    return advantages


def _sources(paths_G: Sequence[Path], episode: int) -> list[tuple[int, int]]:
    """Which episode each turn is really of: two episodes share a turn where these are equal."""
    turns: list[tuple[int, int]] = []
    for turn in range(paths_G[episode].turns):
        owner = episode
        while (parent := paths_G[owner].parent) is not None and turn < paths_G[owner].forked_at:
            owner = parent
        turns.append((owner, turn))
    return turns


def _points_after_root(sources: Sequence[list[tuple[int, int]]], scored: Sequence[int], episode: int) -> list[int]:
    """The boundaries (turns done) where another scored episode parts from this one, and this one's end."""
    own = sources[episode]
    points = {len(own)}
    for other in scored:
        shared = 0
        while shared < min(len(own), len(sources[other])) and own[shared] == sources[other][shared]:
            shared += 1
        if other != episode and shared:
            points.add(shared)
    return sorted(points)

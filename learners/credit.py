"""Credit: which advantage every sampled token of a step's groups gets.

Episodes that failed are left out. The tokens of an episode share its advantage; with `advantage="gigpo"` a turn's
tokens get what the turn itself was worth on top, and with `advantage="tree"` what it made of the branches below it. The
formulas are in `advantages` and `tree_advantages`.

An episode that was forked from another one has the other's first turns in its record. They are trained once, where they
were sampled: here they are context.

Legend: G episodes of one group, K turns of one trajectory, T tokens of one segment.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.trajectories import Episode, Group, Segment, Trajectory, Turn
from .advantages import discounted_returns, group_advantages, has_spread, step_advantages
from .group_statistics import is_scored
from .grpo_config import GRPOConfig
from .tree_advantages import Path, tree_advantages


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CreditedSegment:
    """One segment of a scored episode with its advantages, before the reference has seen it."""

    segment: Segment
    """As it was recorded."""
    trained: Segment
    """The same tokens with the mask True where this episode's own are; they are equal where nothing was forked."""
    advantages_T: NDArray[np.float32]
    """Read at action tokens only."""
    trajectory: int
    """Number of its trajectory among all of this process's."""
    trajectory_tokens: int
    """How many tokens of its own the policy sampled in the whole trajectory."""
    informative: bool
    """Whether its group teaches something: some advantage in it is not 0."""


def credit(groups: Sequence[Group], config: GRPOConfig, rng: np.random.Generator) -> list[CreditedSegment]:
    """Gives one entry per segment of every scored episode.

    Args:
        groups: Episodes of one task each.
        config: `advantage`, `normalise_std`, `step_weight`, `step_discount`, `shuffle_rewards`.
        rng: Deals the rewards out anew, for the control that shuffles them.
    """
    rewards = [[e.reward if is_scored(e) else math.nan for e in group.episodes] for group in groups]
    if config.shuffle_rewards:
        rewards = _shuffled(rewards, rng)
    numbers = itertools.count()
    return [
        entry
        for group, rewards_G in zip(groups, rewards, strict=True)
        for entry in _credit_group(group, rewards_G, config, numbers)
    ]


def shared_anchor_sums(groups: Sequence[Group]) -> dict[str, float]:
    """Counts the turns of scored episodes, and those that began in a state that their group met more than once."""
    counts = [
        Counter(anchor for trajectory, _ in _scored(group) for anchor in _anchors(trajectory)) for group in groups
    ]
    return {
        "steps": sum(count.total() for count in counts),
        "shared_steps": sum(times for count in counts for times in count.values() if times > 1),
    }


def _credit_group(
    group: Group, rewards_G: Sequence[float], config: GRPOConfig, numbers: Iterator[int]
) -> Iterator[CreditedSegment]:
    advantages_G = group_advantages(
        rewards_G, normalise_std=config.normalise_std, leave_one_out=config.advantage == "rloo"
    )
    scored = _scored(group)
    by_turn = (
        _branch_advantages(group, rewards_G, advantages_G, config)
        if config.advantage == "tree"
        else _turn_advantages(group, config)
    )
    informative = bool(has_spread(rewards_G)) or any(turns_K.any() for turns_K in by_turn)
    for (trajectory, index), turns_K in zip(scored, by_turn, strict=True):
        number, own = next(numbers), trajectory.own_segments()
        tokens = sum(int(segment.action_mask_T.sum()) for segment in own)
        by_segment = _token_advantages(trajectory, float(advantages_G[index]), turns_K)
        for segment, trained, advantages_T in zip(trajectory.segments, own, by_segment, strict=True):
            if segment.action_mask_T[1:].any():
                yield CreditedSegment(
                    segment=segment,
                    trained=trained,
                    advantages_T=advantages_T,
                    trajectory=number,
                    trajectory_tokens=tokens,
                    informative=informative,
                )


def _scored(group: Group) -> list[tuple[Trajectory, int]]:
    """The trajectories of episodes that did not fail, each with the number of its episode."""
    return [(t, i) for i, episode in enumerate(group.episodes) if is_scored(episode) for t in episode.trajectories]


def _turn_advantages(group: Group, config: GRPOConfig) -> list[NDArray[np.float64]]:
    """What each turn adds to the advantage of its episode, for every trajectory that `_scored` gives."""
    scored = _scored(group)
    lengths = [len(trajectory.turns) for trajectory, _ in scored]
    if config.advantage != "gigpo" or not any(lengths):
        return [np.zeros(length) for length in lengths]
    returns = [
        discounted_returns(_turn_rewards(trajectory, group.episodes[index].reward), config.step_discount)
        for trajectory, index in scored
    ]
    anchors = [anchor for trajectory, _ in scored for anchor in _anchors(trajectory)]
    flat = step_advantages(np.concatenate(returns), anchors, normalise_std=config.normalise_std)
    return np.split(config.step_weight * flat, np.cumsum(lengths)[:-1])


def _branch_advantages(
    group: Group, rewards_G: Sequence[float], advantages_G: NDArray[np.float64], config: GRPOConfig
) -> list[NDArray[np.float64]]:
    """What each turn of a tree adds to the advantage of its episode, for every trajectory that `_scored` gives."""
    number_of = {episode.info.get("replica"): i for i, episode in enumerate(group.episodes)}

    def path(episode: Episode) -> Path:
        (trajectory,) = episode.trajectories
        trunk = episode.info.get("trunk")
        parent = None if trunk is None else number_of[trunk]
        return Path(turns=len(trajectory.turns), parent=parent, forked_at=trajectory.forked_at or 0)

    by_turn = tree_advantages(
        rewards_G,
        [path(episode) for episode in group.episodes],
        step_weight=config.step_weight,
        normalise_std=config.normalise_std,
    )
    return [by_turn[index] - advantages_G[index] for _, index in _scored(group)]


def _turn_rewards(trajectory: Trajectory, episode_reward: float) -> NDArray[np.float64]:
    """The rewards of the turns; what the episode's reward has beyond them (a scorer's verdict) is the last turn's."""
    rewards_K = np.array([turn.reward for turn in trajectory.turns], dtype=np.float64)
    if len(rewards_K) and not math.isclose(rewards_K.sum(), episode_reward, abs_tol=1e-9):
        rewards_K[-1] += episode_reward - rewards_K.sum()
    return rewards_K


def _anchors(trajectory: Trajectory) -> list[Hashable]:
    """What names the state that each turn began in; agents of one episode see states of their own."""
    return [(trajectory.agent, _anchor(turn)) for turn in trajectory.turns]


def _anchor(turn: Turn) -> Hashable:
    """The environment's name for the state, else what was read before the action, else a state like no other."""
    if turn.anchor is not None:
        return turn.anchor
    return tuple(message["content"] for message in turn.messages) or object()


def _token_advantages(
    trajectory: Trajectory, advantage: float, turns_K: NDArray[np.float64]
) -> list[NDArray[np.float32]]:
    """One array per segment: the episode's advantage, plus that of the turn which a token belongs to."""
    arrays = [np.full(len(segment), advantage, dtype=np.float32) for segment in trajectory.segments]
    for turn, more in zip(trajectory.turns, turns_K.tolist(), strict=True):
        if more and turn.stop > turn.start:
            arrays[turn.segment][turn.start : turn.stop] = advantage + more
    return arrays


def _shuffled(rewards: list[list[float]], rng: np.random.Generator) -> list[list[float]]:
    """Deals the scored episodes' rewards out anew over all of this rank's episodes; NaN stays where it is."""
    flat = np.array([reward for group in rewards for reward in group], dtype=np.float64)
    flat[~np.isnan(flat)] = rng.permutation(flat[~np.isnan(flat)])
    stops = np.cumsum([len(group) for group in rewards])[:-1]
    return [part.tolist() for part in np.split(flat, stops)]

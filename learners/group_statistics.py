"""What is logged about the groups of one step, as sums that processes can add up."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..core.trajectories import Episode, Group
from .advantages import has_spread

Sums = dict[str, float]


def is_scored(episode: Episode) -> bool:
    """Whether the episode counts: it did not fail, and so has a reward."""
    return not episode.failed and not math.isnan(episode.reward)


def group_sums(groups: Sequence[Group]) -> Sums:
    """Adds up this process's groups; `group_row` turns the sum over all processes into metrics."""
    episodes = [episode for group in groups for episode in group.episodes]
    scored = [episode for episode in episodes if is_scored(episode)]
    turns = [turn for episode in scored for trajectory in episode.trajectories for turn in trajectory.turns]
    trajectories = [trajectory for episode in scored for trajectory in episode.trajectories]
    flat = [not bool(has_spread([e.reward if is_scored(e) else math.nan for e in group.episodes])) for group in groups]
    return {
        "groups": len(groups),
        "flat_groups": sum(flat),
        "episodes": len(episodes),
        "scored": len(scored),
        "reward": sum(episode.reward for episode in scored),
        "reward_squared": sum(episode.reward**2 for episode in scored),
        "success": sum(bool(episode.success) for episode in scored),
        "truncated": sum(episode.truncated for episode in scored),
        "turns": len(turns),
        "parse_errors": sum(turn.parse_error is not None for turn in turns),
        "trajectories": len(trajectories),
        "tokens": sum(int(s.action_mask_T.sum()) for trajectory in trajectories for s in trajectory.own_segments()),
        "forked": sum(trajectory.forked_at is not None for trajectory in trajectories),
        "surprise": -sum(_recorded_logprobs(episode) for episode in scored),
        "environment_s": sum(float(episode.info.get("environment_s", 0.0)) for episode in episodes),
    }


def group_row(sums: Sums) -> dict[str, float]:
    """Gives the metrics of one step from sums over all processes.

    `parse_errors` is the share of turns whose text was no valid action, `failures` a number of episodes. `entropy`
    (nats per token) is estimated by the mean of -log pi over the sampled tokens, which is unbiased at the temperature
    of sampling and costs nothing. `shared_anchors`, with GiGPO only, is the share of turns that have another turn of
    their group to be compared with. `tokens` counts what was sampled, once; `forked_share`, with branching only, is the
    share of episodes that went on from the middle of another one.
    """
    scored = max(1.0, sums["scored"])
    mean = sums["reward"] / scored
    row = {
        "reward_mean": mean if sums["scored"] else math.nan,
        "reward_std": math.sqrt(max(0.0, sums["reward_squared"] / scored - mean**2)),
        "success": sums["success"] / scored if sums["scored"] else math.nan,
        "entropy": sums["surprise"] / max(1.0, sums["tokens"]),
        "zero_variance_share": sums["flat_groups"] / max(1.0, sums["groups"]),
        "truncation_rate": sums["truncated"] / scored,
        "failures": sums["episodes"] - sums["scored"],
        "parse_errors": sums["parse_errors"] / max(1.0, sums["turns"]),
        "mean_turns": sums["turns"] / max(1.0, sums["trajectories"]),
        "tokens": sums["tokens"],
    }
    if "steps" in sums:
        row["shared_anchors"] = sums["shared_steps"] / max(1.0, sums["steps"])
    if sums["forked"]:
        row["forked_share"] = sums["forked"] / max(1.0, sums["trajectories"])
    return row


def _recorded_logprobs(episode: Episode) -> float:
    return float(
        sum(
            segment.logprobs_T[segment.action_mask_T].astype("float64").sum()
            for trajectory in episode.trajectories
            for segment in trajectory.own_segments()
        )
    )

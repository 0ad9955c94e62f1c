"""Synthetic trajectories made ready for SFT: generated in shares, written in a model's own action style, tokenised.

Experts and the environment make the demonstrations (`agents.demonstrations`); nothing here decides what is shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..agents.demonstrations import generate_demos
from ..core.errors import ConfigError
from ..core.seeding import derive_seed
from ..core.trajectories import Episode, Segment, Trajectory, Turn
from ..envs.actions import format_tool_call, parse_action
from .config import Recipe

if TYPE_CHECKING:
    from ..models.chat import ChatFormat

TOKENIZER_EPISODES = 3000
"""Demonstrations that a new tokenizer is trained on; more do not change it."""


def demonstrations(recipe: Recipe, index: int, count: int, on_progress: Any = None) -> list[Episode]:
    """Gives this process's share of the recipe's demonstrations (every `count`-th one)."""
    return list(
        generate_demos(
            recipe.env.id,
            recipe.demos.n,
            derive_seed(recipe.seed, "demonstrations"),
            mix=dict(recipe.demos.mix),
            env_kwargs={"split": "train", **recipe.env.environment()},
            success_only=recipe.demos.success_only,
            share=(index, count),
            progress=on_progress,
        )
    )


def with_tool_calls(episodes: Sequence[Episode], tools: Sequence[dict[str, Any]]) -> list[Episode]:
    """Rewrites every action as `<tool_call>{"name": ..., "arguments": ...}</tool_call>`."""

    def rewrite(turn: Turn) -> Turn:
        calls = parse_action(turn.action, tools, "plain")
        text = "\n".join(format_tool_call(call.name, call.arguments) for call in calls)
        return dataclasses.replace(turn, action=text)

    def rewrite_all(trajectory: Trajectory) -> Trajectory:
        return dataclasses.replace(trajectory, turns=tuple(rewrite(turn) for turn in trajectory.turns))

    return [
        dataclasses.replace(episode, trajectories=tuple(rewrite_all(one) for one in episode.trajectories))
        for episode in episodes
    ]


def texts(episodes: Sequence[Episode]) -> Iterator[str]:
    """All message and action texts of the first demonstrations, to train a tokenizer on."""
    for episode in episodes[:TOKENIZER_EPISODES]:
        for turn in episode.trajectories[0].turns:
            for message in turn.messages:
                yield message["content"]
            yield turn.action


def tokenised(
    episodes: Sequence[Episode], chat: ChatFormat, tools: Sequence[dict[str, Any]], max_tokens: int
) -> list[Segment]:
    """Renders demonstrations exactly as a rollout would have; longer ones than `max_tokens` are left out.

    Two kinds of actions stay in the text but are not trained on: those that the environment refused (they show how to
    recover from an error, not how to make one), and those from before `Trajectory.forked_at`, which were another's.

    Raises:
        ConfigError: Not one demonstration is short enough.
    """
    trajectories = [episode.trajectories[0] for episode in episodes]
    rendered = chat.render_episodes([trajectory.turns for trajectory in trajectories], list(tools))
    kept = [
        segment
        for trajectory, segments in zip(trajectories, rendered, strict=True)
        for segment in _without_bad_examples(segments, trajectory)
        if len(segment) <= max_tokens
    ]
    if not kept:
        raise ConfigError(f"rollout.max_context_tokens={max_tokens}: every demonstration is longer; raise it")
    return kept


def _without_bad_examples(segments: Sequence[Segment], trajectory: Trajectory) -> Sequence[Segment]:
    """The segments with those actions unmasked that are not to be learnt; a run of action tokens is one turn."""
    first = trajectory.forked_at or 0
    shown = [number >= first and turn.parse_error is None for number, turn in enumerate(trajectory.turns)]
    if all(shown):
        return segments
    cleaned: list[Segment] = []
    number = 0
    for segment in segments:
        mask = segment.action_mask_T.copy()
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
        for start, stop in edges.reshape(-1, 2):
            mask[start:stop] = shown[number]
            number += 1
        cleaned.append(dataclasses.replace(segment, action_mask_T=mask))
    return cleaned

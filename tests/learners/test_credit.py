from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import episode

from palaestra.core.messages import tool
from palaestra.core.trajectories import Episode, Group, SegmentBuilder, Trajectory, Turn
from palaestra.learners.credit import credit, shared_anchor_sums
from palaestra.learners.grpo_config import GRPOConfig

RNG = np.random.default_rng(0)
Step = tuple[str | None, int, float]
"""Anchor, tokens, reward."""


def played(steps: list[Step], reward: float | None = None, renew: int = 99, **changes: Any) -> Episode:
    """An episode with these turns, two prompt tokens before each; from turn `renew` on in a second segment."""
    segments, turns = [SegmentBuilder()], []
    for number, (anchor, tokens, earned) in enumerate(steps):
        if number == renew:
            segments.append(SegmentBuilder())
        builder = segments[-1]
        builder.append_context([1, 2])
        start = len(builder)
        builder.append_action([3] * tokens, [-0.5] * tokens)
        span = {"segment": len(segments) - 1, "start": start, "stop": len(builder)}
        turns.append(Turn(action="a", observation="", reward=earned, anchor=anchor, **span))
    trajectory = Trajectory(segments=tuple(builder.build() for builder in segments), turns=tuple(turns))
    total = sum(earned for _, _, earned in steps) if reward is None else reward
    return episode((), total, trajectories=(trajectory,), **changes)


def failed() -> Episode:
    return played([("a", 2, 5.0)], math.nan, failure={"kind": "sandbox_died"}, success=None)


def credited(episodes: list[Episode], **settings: Any) -> list[list[float]]:
    """The advantages at action tokens, segment by segment."""
    config = GRPOConfig(**settings)
    entries = credit([Group(task_id="t", episodes=tuple(episodes))], config, RNG)
    return [entry.advantages_T[entry.segment.action_mask_T].tolist() for entry in entries]


def slow_gigpo(episodes: list[list[Step]], weight: float, discount: float, normalise_std: bool) -> list[list[float]]:
    """GiGPO eq. 3 and 5 to 8, turn by turn."""

    def relative(value: float, values: list[float]) -> float:
        if max(values) == min(values):
            return 0.0
        mean = sum(values) / len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
        return (value - mean) / (std + 1e-4 if normalise_std else 1.0)

    def return_from(steps: list[Step], k: int) -> float:
        return sum(discount ** (j - k) * steps[j][2] for j in range(k, len(steps)))

    totals = [sum(earned for _, _, earned in steps) for steps in episodes]
    result = []
    for steps, total in zip(episodes, totals, strict=True):
        tokens: list[float] = []
        for k, (anchor, count, _) in enumerate(steps):
            same = [return_from(s, j) for s in episodes for j in range(len(s)) if s[j][0] == anchor]
            value = relative(total, totals) + weight * relative(return_from(steps, k), same)
            tokens += [value] * count
        result.append(tokens)
    return result


STEP = st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.sampled_from([0.0, 0.5, 1.0]))
EPISODES = st.lists(st.lists(STEP, min_size=1, max_size=4), min_size=2, max_size=5)


@given(EPISODES, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.5, 1.0]), st.booleans(), st.integers(1, 9))
def test_gigpo_equals_the_loop(
    episodes: list[list[Step]], weight: float, discount: float, normalise_std: bool, renew: int
) -> None:
    got = credited(
        [*(played(steps) for steps in episodes), failed()],
        advantage="gigpo",
        step_weight=weight,
        step_discount=discount,
        normalise_std=normalise_std,
    )
    expected = slow_gigpo(episodes, weight, discount, normalise_std)
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    cut = credited(
        [*(played(steps, renew=renew) for steps in episodes), failed()],
        advantage="gigpo",
        step_weight=weight,
        step_discount=discount,
        normalise_std=normalise_std,
    )
    assert [x for segment in cut for x in segment] == [x for segment in got for x in segment]


def test_number_by_hand() -> None:
    """Two episodes part after a common first state; a third visits state b as well, and repeats it."""
    episodes = [
        played([("a", 1, 0.0), ("b", 2, 1.0)]),
        played([("a", 1, 0.0), ("c", 1, 0.0)]),
        played([("a", 1, 0.0), ("b", 1, 0.0), ("b", 1, 0.0)]),
    ]
    got = credited(episodes, advantage="gigpo", normalise_std=False, step_discount=0.5, step_weight=2.0)
    # episodes: 2/3, -1/3, -1/3; returns in a: 0.5, 0, 0; in b: 1, 0, 0
    assert got[0] == pytest.approx([2 / 3 + 2 * (1 / 3), 2 / 3 + 2 * (2 / 3), 2 / 3 + 2 * (2 / 3)])
    assert got[1] == pytest.approx([-1 / 3 - 2 * (1 / 6), -1 / 3])
    assert got[2] == pytest.approx([-1 / 3 - 2 * (1 / 6), -1 / 3 - 2 * (1 / 3), -1 / 3 - 2 * (1 / 3)])
    sums = shared_anchor_sums([Group(task_id="t", episodes=(*episodes, failed()))])
    assert sums == {"steps": 7, "shared_steps": 6}


def test_equal_episodes_are_exactly_zero_and_teach_nothing() -> None:
    episodes = [played([("a", 2, 0.1), ("b", 1, 0.7)]) for _ in range(7)]
    for settings in ({}, {"advantage": "rloo", "normalise_std": False}, {"advantage": "gigpo"}):
        entries = credit([Group(task_id="t", episodes=tuple(episodes))], GRPOConfig(**settings), RNG)
        assert not any(entry.informative or entry.advantages_T.any() for entry in entries)


def test_gigpo_learns_from_equal_rewards_that_came_sooner_or_later() -> None:
    soon, late = played([("a", 1, 1.0)]), played([("a", 1, 0.0), ("b", 1, 1.0)])
    entries = credit([Group(task_id="t", episodes=(soon, late))], GRPOConfig(advantage="gigpo"), RNG)
    assert all(entry.informative for entry in entries)
    assert entries[0].advantages_T[-1] > 0 > entries[1].advantages_T[2]
    assert entries[1].advantages_T[-1] == 0


def test_a_verdict_that_came_after_the_episode_is_the_last_turns() -> None:
    """As when a scorer gives the reward: the turns themselves earned nothing."""
    judged = [played([("a", 1, 0.0), ("b", 1, 0.0)], reward) for reward in (1.0, 0.0)]
    earned = [played([("a", 1, 0.0), ("b", 1, reward)]) for reward in (1.0, 0.0)]
    assert credited(judged, advantage="gigpo") == credited(earned, advantage="gigpo")


def test_without_a_name_for_the_state_what_was_read_stands_for_it() -> None:
    def reader(text: str | None, reward: float) -> Episode:
        one = played([(None, 1, reward)])
        [trajectory] = one.trajectories
        read = () if text is None else (tool(text),)
        turn = Turn(action="a", observation="", messages=read, start=2, stop=3, reward=reward)
        return episode((), reward, trajectories=(Trajectory(segments=trajectory.segments, turns=(turn,)),))

    gigpo = {"advantage": "gigpo", "normalise_std": False}
    alike = credited([reader("x", 1.0), reader("x", 0.0)], **gigpo)
    apart = credited([reader("x", 1.0), reader("y", 0.0)], **gigpo)
    unknown = credited([reader(None, 1.0), reader(None, 0.0)], **gigpo)
    assert alike == [[1.0], [-1.0]]
    assert apart == unknown == [[0.5], [-0.5]]


def test_agents_of_one_episode_have_states_of_their_own() -> None:
    def pair(first: float, second: float) -> Episode:
        sides = [played([("a", 1, reward)]).trajectories[0] for reward in (first, second)]
        named = tuple(
            Trajectory(segments=side.segments, turns=side.turns, agent=agent)
            for side, agent in zip(sides, ("x", "y"), strict=True)
        )
        return episode((), 0.0, trajectories=named)

    assert shared_anchor_sums([Group(task_id="t", episodes=(pair(0, 0),))]) == {"steps": 2, "shared_steps": 0}
    assert shared_anchor_sums([Group(task_id="t", episodes=(pair(0, 0),) * 2)]) == {"steps": 4, "shared_steps": 4}


def test_rloo_compares_with_the_others() -> None:
    episodes = [played([("a", 1, reward)]) for reward in (1.0, 0.0, 0.0)]
    got = credited([*episodes, failed()], advantage="rloo", normalise_std=False)
    assert got == [[1.0], [-0.5], [-0.5]]

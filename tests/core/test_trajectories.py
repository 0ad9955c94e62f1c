"""The token record: built by appending only, and consistent by construction."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palaestra.core.trajectories import Episode, Segment, SegmentBuilder, Trajectory, Turn

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=6)
CONVERSATIONS = st.lists(st.tuples(st.booleans(), TOKENS), max_size=8)


@given(CONVERSATIONS)
def test_every_state_of_a_segment_is_a_prefix_of_every_later_one(parts: list[tuple[bool, list[int]]]) -> None:
    builder, states = SegmentBuilder(), [SegmentBuilder().build()]
    for sampled, token_ids in parts:
        if sampled:
            builder.append_action(token_ids, [-0.5 - i for i in range(len(token_ids))])
        else:
            builder.append_context(token_ids)
        states.append(builder.build())
    final = states[-1]
    for state in states:
        for name in ("token_ids_T", "action_mask_T", "logprobs_T"):
            np.testing.assert_array_equal(getattr(state, name), getattr(final, name)[: len(state)])
    assert final.token_ids_T.tolist() == [token for _, token_ids in parts for token in token_ids]
    assert final.action_mask_T.tolist() == [sampled for sampled, token_ids in parts for _ in token_ids]
    np.testing.assert_array_equal(np.isnan(final.logprobs_T), ~final.action_mask_T)


def test_a_builder_shares_nothing_with_its_caller() -> None:
    builder, prompt = SegmentBuilder(), [1, 2]
    builder.append_context(prompt)
    prompt.append(9)
    builder.token_ids.append(9)
    segment = builder.build()
    segment.token_ids_T[0] = 7
    assert builder.token_ids == [1, 2]
    assert len(builder) == len(segment) == 2


def test_wrong_lengths_are_refused() -> None:
    builder = SegmentBuilder()
    with pytest.raises(ValueError, match="one log-probability"):
        builder.append_action([1, 2], [-0.1])
    assert len(builder) == 0
    with pytest.raises(ValueError, match="equally long"):
        Segment(
            token_ids_T=np.zeros(2, np.int32), action_mask_T=np.zeros(3, np.bool_), logprobs_T=np.zeros(2, np.float32)
        )


def test_counts_and_failure() -> None:
    builder = SegmentBuilder()
    builder.append_context([1, 2, 3])
    builder.append_action([4, 5], [-1.0, -2.0])
    trajectory = Trajectory(segments=(builder.build(), builder.build()), turns=())
    assert trajectory.action_token_count == 4
    episode = Episode(
        task_id="t", family="f", level=1, seed=0, trajectories=(trajectory,), reward=float("nan"), success=None,
        stop_reason="failed", failure={"kind": "sandbox_died", "message": "gone", "retryable": True},
    )  # fmt: skip
    assert episode.failed


@pytest.mark.parametrize(("forked_at", "own"), [(None, [2, 4, 6]), (1, [4, 6]), (2, [6]), (3, [])])
def test_turns_before_a_fork_are_anothers_in_every_segment(forked_at: int | None, own: list[int]) -> None:
    """Three turns of one token each, the last one in a second segment that repeats the history."""
    first, second = SegmentBuilder(), SegmentBuilder()
    for token in (2, 4):
        first.append_context([token - 1])
        first.append_action([token], [-0.5])
    second.append_context([1, 2, 3, 4, 5])
    second.append_action([6], [-0.5])
    trajectory = Trajectory(
        segments=(first.build(), second.build()),
        turns=tuple(
            Turn(action="", observation="", segment=segment, start=start, stop=start + 1)
            for segment, start in ((0, 1), (0, 3), (1, 5))
        ),
        forked_at=forked_at,
    )
    segments = trajectory.own_segments()
    assert [token for s in segments for token in s.token_ids_T[s.action_mask_T].tolist()] == own
    for mine, whole in zip(segments, trajectory.segments, strict=True):
        np.testing.assert_array_equal(mine.token_ids_T, whole.token_ids_T)
        np.testing.assert_array_equal(np.isnan(mine.logprobs_T), ~mine.action_mask_T)
    assert trajectory.action_token_count == 3


def test_a_copied_builder_goes_on_by_itself() -> None:
    first = SegmentBuilder()
    first.append_action([1], [-0.1])
    second = first.copy()
    second.append_context([2])
    assert (len(first), second.token_ids) == (1, [1, 2])

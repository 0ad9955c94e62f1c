from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from palaestra.core.trajectories import Segment
from palaestra.learners.batch import TokenBatch, pad, token_budget_batches


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(1, 200), st.integers(0, 5))
def test_every_row_once_and_within_the_budget(lengths: list[int], budget: int, seed: int) -> None:
    batches = token_budget_batches(lengths, budget, np.random.default_rng(seed))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget


def test_rows_of_similar_length_meet_in_an_order_of_the_seed() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, size=1000).tolist()
    batches = token_budget_batches(lengths, 1000, np.random.default_rng(1))
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert sum(lengths) / padded > 0.95
    assert batches == token_budget_batches(lengths, 1000, np.random.default_rng(1))
    assert batches != token_budget_batches(lengths, 1000, np.random.default_rng(2))


def test_batch_pads_right_and_never_scores_the_first_token() -> None:
    segments = [
        Segment(
            token_ids_T=np.array(ids, np.int32),
            action_mask_T=np.ones(len(ids), np.bool_),
            logprobs_T=-np.arange(len(ids), dtype=np.float32),
        )
        for ids in ([5, 6, 7], [8, 9])
    ]
    batch = TokenBatch.from_segments(segments)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.action_mask_BT.tolist() == [[False, True, True], [False, True, False]]
    assert batch.action_tokens([s.logprobs_T for s in segments]).tolist() == [-1.0, -2.0, -1.0]
    assert batch.spread([0.5, -3.0]).tolist() == [0.5, 0.5, -3.0]


def test_pad_keeps_the_type() -> None:
    assert pad([np.array([True]), np.array([False, True])]).tolist() == [[True, False], [False, True]]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 4)), max_size=40), st.integers(1, 200), st.integers(0, 5))
def test_what_must_stay_together_counts_with_all_of_its_rows(
    sizes: list[tuple[int, int]], budget: int, seed: int
) -> None:
    lengths, rows = [length for length, _ in sizes], [count for _, count in sizes]
    batches = token_budget_batches(lengths, budget, np.random.default_rng(seed), rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * sum(rows[i] for i in batch) <= budget

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palaestra.learners.advantages import group_advantages, has_spread


def slow_advantages(rewards: list[float], normalise_std: bool) -> list[float]:
    """DeepSeekMath, section 4.1.2, written as a loop."""
    scored = [r for r in rewards if not math.isnan(r)]
    if not scored or max(scored) == min(scored):
        return [0.0] * len(rewards)
    mean = sum(scored) / len(scored)
    std = math.sqrt(sum((r - mean) ** 2 for r in scored) / len(scored))
    scale = std + 1e-4 if normalise_std else 1.0
    return [0.0 if math.isnan(r) else (r - mean) / scale for r in rewards]


REWARDS = st.lists(
    st.one_of(st.floats(-10, 10), st.just(math.nan), st.sampled_from([0.0, 1.0])), min_size=1, max_size=9
)


@given(REWARDS, st.booleans())
def test_equals_the_loop(rewards: list[float], normalise_std: bool) -> None:
    got = group_advantages(rewards, normalise_std=normalise_std)
    np.testing.assert_allclose(got, slow_advantages(rewards, normalise_std), rtol=1e-9, atol=1e-9)


def test_number_by_hand() -> None:
    # mean 0.25, standard deviation sqrt(3)/4
    got = group_advantages([1.0, 0.0, 0.0, 0.0])
    scale = math.sqrt(3) / 4 + 1e-4
    np.testing.assert_allclose(got, [0.75 / scale, *[-0.25 / scale] * 3])


@pytest.mark.parametrize("reward", [0.95, 0.1, 0.7, 1 / 3, 0.0])
@pytest.mark.parametrize("size", [1, 7, 8])
def test_equal_rewards_give_exactly_zero(reward: float, size: int) -> None:
    """Rounding in the mean would otherwise be blown up by the tiny deviation."""
    assert (group_advantages([reward] * size) == 0.0).all()
    assert not has_spread([reward] * size)


def test_failed_episodes_change_nothing_for_the_others() -> None:
    with_failures = group_advantages([1.0, math.nan, 0.0, math.nan])
    np.testing.assert_allclose(with_failures[[0, 2]], group_advantages([1.0, 0.0]))
    assert (with_failures[[1, 3]] == 0.0).all()
    assert (group_advantages([math.nan, math.nan]) == 0.0).all()


def test_groups_along_the_last_axis_are_independent() -> None:
    rewards = np.array([[1.0, 0.0, 0.0], [5.0, 5.0, 5.0], [math.nan, 2.0, 4.0]])
    np.testing.assert_array_equal(group_advantages(rewards), [group_advantages(row) for row in rewards])
    assert has_spread(rewards).tolist() == [True, False, True]

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palaestra.learners.advantages import discounted_returns, group_advantages, has_spread, step_advantages


def slow_advantages(rewards: list[float], normalise_std: bool, leave_one_out: bool = False) -> list[float]:
    """DeepSeekMath, section 4.1.2, and RLOO's baseline, written as a loop."""
    scored = [r for r in rewards if not math.isnan(r)]
    if not scored or max(scored) == min(scored):
        return [0.0] * len(rewards)
    mean = sum(scored) / len(scored)
    std = math.sqrt(sum((r - mean) ** 2 for r in scored) / len(scored))
    advantages = []
    for i, reward in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != i and not math.isnan(r)]
        baseline = sum(others) / len(others) if leave_one_out else mean
        scale = std + 1e-4 if normalise_std else 1.0
        advantages.append(0.0 if math.isnan(reward) else (reward - baseline) / scale)
    return advantages


REWARD = st.one_of(st.floats(-10, 10), st.just(math.nan), st.sampled_from([0.0, 1.0]))
REWARDS = st.lists(REWARD, min_size=1, max_size=9)


@given(REWARDS, st.booleans(), st.booleans())
def test_equals_the_loop(rewards: list[float], normalise_std: bool, leave_one_out: bool) -> None:
    got = group_advantages(rewards, normalise_std=normalise_std, leave_one_out=leave_one_out)
    np.testing.assert_allclose(got, slow_advantages(rewards, normalise_std, leave_one_out), rtol=1e-9, atol=1e-9)


def test_number_by_hand() -> None:
    # mean 0.25, standard deviation sqrt(3)/4
    got = group_advantages([1.0, 0.0, 0.0, 0.0])
    scale = math.sqrt(3) / 4 + 1e-4
    np.testing.assert_allclose(got, [0.75 / scale, *[-0.25 / scale] * 3])
    got = group_advantages([1.0, 0.0, 0.0, math.nan], normalise_std=False, leave_one_out=True)
    np.testing.assert_allclose(got, [1.0, -0.5, -0.5, 0.0])


@given(REWARDS)
def test_leave_one_out_is_the_difference_from_the_mean_on_another_scale(rewards: list[float]) -> None:
    count = np.count_nonzero(~np.isnan(rewards))
    scaled = group_advantages(rewards, normalise_std=False) * count / max(count - 1, 1)
    got = group_advantages(rewards, normalise_std=False, leave_one_out=True)
    np.testing.assert_allclose(got, scaled, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("reward", [0.95, 0.1, 0.7, 1 / 3, 0.0])
@pytest.mark.parametrize("size", [1, 7, 8])
def test_equal_rewards_give_exactly_zero(reward: float, size: int, leave_one_out: bool) -> None:
    """Rounding in the mean would otherwise be blown up by the tiny deviation."""
    assert (group_advantages([reward] * size, leave_one_out=leave_one_out) == 0.0).all()
    assert not has_spread([reward] * size)


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_failed_episodes_change_nothing_for_the_others(leave_one_out: bool) -> None:
    with_failures = group_advantages([1.0, math.nan, 0.0, math.nan], leave_one_out=leave_one_out)
    np.testing.assert_allclose(with_failures[[0, 2]], group_advantages([1.0, 0.0], leave_one_out=leave_one_out))
    assert (with_failures[[1, 3]] == 0.0).all()
    assert (group_advantages([math.nan, math.nan], leave_one_out=leave_one_out) == 0.0).all()


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_groups_along_the_last_axis_are_independent(leave_one_out: bool) -> None:
    rewards = np.array([[1.0, 0.0, 0.0], [5.0, 5.0, 5.0], [math.nan, 2.0, 4.0]])
    one_by_one = [group_advantages(row, leave_one_out=leave_one_out) for row in rewards]
    np.testing.assert_array_equal(group_advantages(rewards, leave_one_out=leave_one_out), one_by_one)
    assert has_spread(rewards).tolist() == [True, False, True]


@given(st.lists(st.floats(-10, 10), max_size=8), st.floats(0.1, 1.0))
def test_returns_equal_the_sum(rewards: list[float], discount: float) -> None:
    """GiGPO eq. 5: R_k is the sum over later turns j of discount^(j - k) r_j."""
    turns = range(len(rewards))
    expected = [sum(discount ** (j - k) * rewards[j] for j in turns if j >= k) for k in turns]
    np.testing.assert_allclose(discounted_returns(rewards, discount), expected, rtol=1e-9, atol=1e-9)


@given(st.lists(st.tuples(REWARD, st.sampled_from("abc")), max_size=12), st.booleans())
def test_steps_equal_the_loop(steps: list[tuple[float, str]], normalise_std: bool) -> None:
    """GiGPO eq. 6 and 7: every turn against all that began in an equal state."""
    expected = []
    for value, anchor in steps:
        same = [r for r, other in steps if other == anchor and not math.isnan(r)]
        mean = sum(same) / len(same) if same else 0.0
        std = math.sqrt(sum((r - mean) ** 2 for r in same) / len(same)) if same else 0.0
        nothing = math.isnan(value) or max(same) == min(same)
        expected.append(0.0 if nothing else (value - mean) / (std + 1e-4 if normalise_std else 1.0))
    got = step_advantages([r for r, _ in steps], [anchor for _, anchor in steps], normalise_std=normalise_std)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_a_state_met_once_or_with_equal_returns_gives_exactly_zero() -> None:
    assert (step_advantages([0.1, 0.7, 1 / 3], ["a", "b", ("c", 1)]) == 0.0).all()
    assert (step_advantages([0.7] * 7 + [0.1] * 3, ["a"] * 7 + ["b"] * 3) == 0.0).all()

"""pass@k, pass^k and their intervals, against slow enumeration and against what they promise to cover."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palaestra.agents.pass_rates import (
    TaskCount,
    mean_pass_at_k,
    mean_pass_hat_k,
    pass_at_k,
    pass_hat_k,
    score_interval,
    success_rate,
    wilson_interval,
)
from palaestra.core.errors import ConfigError

counts = st.integers(1, 9).flatmap(lambda n: st.builds(TaskCount, st.integers(0, n), st.just(n)))


@given(counts, st.data())
def test_both_estimators_are_means_over_all_choices_of_k_attempts(count: TaskCount, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, count.n))
    outcomes = [True] * count.wins + [False] * (count.n - count.wins)
    chosen = list(combinations(outcomes, k))
    assert pass_at_k(count, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))
    assert pass_hat_k(count, k) == pytest.approx(sum(map(all, chosen)) / len(chosen))


@pytest.mark.parametrize("chance", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize(("n", "k"), [(4, 1), (6, 3), (5, 5)])
def test_both_are_unbiased(chance: float, n: int, k: int) -> None:
    """Over every outcome of n attempts that succeed with this chance; 1 - (1 - c/n)^k would fail this."""
    outcomes = [[bool(bits >> i & 1) for i in range(n)] for bits in range(2**n)]
    weights = [float(np.prod([chance if won else 1 - chance for won in outcome])) for outcome in outcomes]
    at = sum(w * pass_at_k(TaskCount(sum(o), n), k) for w, o in zip(weights, outcomes, strict=True))
    hat = sum(w * pass_hat_k(TaskCount(sum(o), n), k) for w, o in zip(weights, outcomes, strict=True))
    assert at == pytest.approx(1 - (1 - chance) ** k)
    assert hat == pytest.approx(chance**k)


def test_a_hand_computed_value() -> None:
    assert pass_at_k(TaskCount(3, 10), 2) == pytest.approx(1 - 21 / 45)
    assert pass_hat_k(TaskCount(3, 10), 2) == pytest.approx(3 / 45)
    assert pass_at_k(TaskCount(150, 200), 100) == 1.0
    assert pass_at_k(TaskCount(1, 2000), 1000) == pytest.approx(0.5)


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_attempts_is_an_error(k: int) -> None:
    for estimate in (pass_at_k, pass_hat_k):
        with pytest.raises(ConfigError, match=rf"k={k}: must be in 1\.\.3"):
            estimate(TaskCount(1, 3), k)


def test_tasks_with_too_few_scored_attempts_are_left_out() -> None:
    both = [TaskCount(1, 2), TaskCount(0, 1), TaskCount(0, 0)]
    assert mean_pass_at_k(both, 2).value == 1.0
    assert (mean_pass_at_k(both, 2).tasks, mean_pass_hat_k(both, 1).tasks) == (1, 2)
    assert mean_pass_at_k(both, 3) == mean_pass_hat_k([], 1)
    assert (mean_pass_at_k(both, 3).low, mean_pass_at_k(both, 3).high) == (0.0, 1.0)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_with_one_attempt_per_task_the_interval_is_wilsons(wins: list[bool]) -> None:
    for rate in (
        success_rate(TaskCount(int(won), 1) for won in wins),
        mean_pass_at_k([TaskCount(int(won), 1) for won in wins], 1),
    ):
        assert rate.value == pytest.approx(sum(wins) / len(wins))
        assert (rate.low, rate.high) == pytest.approx(wilson_interval(sum(wins), len(wins)))


@given(st.lists(st.integers(0, 6), min_size=2, max_size=30))
def test_the_interval_lies_between_that_of_tasks_and_that_of_attempts(wins: list[int]) -> None:
    rate = success_rate([TaskCount(won, 6) for won in wins])
    assert rate.value == pytest.approx(sum(wins) / len(wins) / 6)
    widest, narrowest = (score_interval(rate.value, n) for n in (len(wins), 6 * len(wins)))
    assert widest[0] - 1e-9 <= rate.low <= rate.value + 1e-9
    assert rate.value - 1e-9 <= rate.high <= widest[1] + 1e-9
    if 0 < sum(wins) < 6 * len(wins):
        assert rate.low <= narrowest[0] + 1e-9
        assert narrowest[1] - 1e-9 <= rate.high


@given(st.lists(counts, min_size=1, max_size=30))
def test_success_is_solved_attempts_per_attempt(tasks: list[TaskCount]) -> None:
    rate = success_rate([*tasks, TaskCount(0, 0)])
    assert rate.value == pytest.approx(sum(count.wins for count in tasks) / sum(count.n for count in tasks))
    assert 0 <= rate.low <= rate.value + 1e-9
    assert rate.value - 1e-9 <= rate.high <= 1
    assert rate.tasks == len(tasks)


def test_many_attempts_at_one_task_say_little_of_others() -> None:
    rate = success_rate([TaskCount(500, 1000)])
    assert rate.value == 0.5
    assert rate.high - rate.low > 0.8


def test_attempts_that_always_agree_count_as_one() -> None:
    once = success_rate([TaskCount(1, 1)] * 30 + [TaskCount(0, 1)] * 10)
    often = success_rate([TaskCount(16, 16)] * 30 + [TaskCount(0, 16)] * 10)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.3), (2.0, 2.0), (0.5, 2.0)])
def test_the_intervals_cover_what_other_tasks_would_give(alpha: float, beta: float) -> None:
    """Tasks whose difficulty is drawn from a beta distribution; counting attempts as independent covers far less."""
    rng = np.random.default_rng(0)
    n, tasks, rounds, k = 8, 60, 600, 4
    truth = alpha / (alpha + beta)
    grid = rng.beta(alpha, beta, 400_000)
    truth_at = float(np.mean(1 - (1 - grid) ** k))
    covered = np.zeros(3)
    for _ in range(rounds):
        wins = rng.binomial(n, rng.beta(alpha, beta, tasks))
        drawn = [TaskCount(int(won), n) for won in wins]
        rate, at = success_rate(drawn), mean_pass_at_k(drawn, k)
        naive = wilson_interval(int(wins.sum()), n * tasks)
        covered += [rate.low <= truth <= rate.high, at.low <= truth_at <= at.high, naive[0] <= truth <= naive[1]]
    clustered, clustered_at, independent = covered / rounds
    assert 0.92 <= clustered <= 0.98
    assert 0.92 <= clustered_at <= 0.99
    assert independent < 0.85

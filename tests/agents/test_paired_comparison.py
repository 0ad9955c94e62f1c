"""The paired comparison, against enumeration of every sign pattern, McNemar's test, and a published interval."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palaestra.agents.paired_comparison import compare_paired, paired_interval, sign_flip_p_value
from palaestra.agents.pass_rates import TaskCount

fractions = st.builds(Fraction, st.integers(-6, 6), st.just(6)) | st.builds(Fraction, st.integers(-4, 4), st.just(4))


@given(st.lists(fractions, max_size=9))
def test_the_p_value_counts_sign_patterns(differences: list[Fraction]) -> None:
    observed = abs(sum(differences))
    sums = [
        abs(sum((sign * d for sign, d in zip(signs, differences, strict=True)), Fraction(0)))
        for signs in product((-1, 1), repeat=len(differences))
    ]
    assert sign_flip_p_value(differences) == pytest.approx(sum(value >= observed for value in sums) / len(sums))


@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 10))
def test_with_one_attempt_each_it_is_mcnemars_exact_test(better: int, worse: int, equal: int) -> None:
    n = better + worse
    tail = sum(math.comb(n, i) for i in range(min(better, worse) + 1)) / 2**n
    differences = [Fraction(1)] * better + [Fraction(-1)] * worse + [Fraction(0)] * equal
    assert sign_flip_p_value(differences) == pytest.approx(min(1.0, 2 * tail))


def test_differences_too_fine_for_the_grid_are_rounded() -> None:
    rng = np.random.default_rng(0)
    fine = [Fraction(int(rng.integers(-900, 1000)), int(rng.integers(1000, 1100))) for _ in range(60)]
    coarse = [Fraction(round(value * 1000), 1000) for value in fine]
    assert sign_flip_p_value(fine) == pytest.approx(sign_flip_p_value(coarse), abs=2e-3)


def test_the_interval_is_that_of_the_paper() -> None:
    # Bonett and Price 2012, as the R package statpsych documents it: ci.prop.ps(.05, f00=12, f01=4, f10=26, f11=6)
    differences = [0.0] * 12 + [-1.0] * 4 + [1.0] * 26 + [0.0] * 6
    assert paired_interval(differences) == pytest.approx((0.2548067, 0.6251933), abs=1e-7)


def test_agreement_on_few_tasks_proves_little() -> None:
    low, high = paired_interval([0.0] * 5)
    assert low == pytest.approx(-high)
    assert high > 0.3
    assert paired_interval([1.0] * 3)[1] == 1.0


@pytest.mark.parametrize(("p_better", "p_worse"), [(0.0, 0.0), (0.05, 0.05), (0.3, 0.1), (0.5, 0.0), (0.2, 0.6)])
def test_the_interval_covers(p_better: float, p_worse: float) -> None:
    """The exact coverage over every table of 30 tasks."""
    n, truth, covered = 30, p_better - p_worse, 0.0
    for better in range(n + 1):
        for worse in range(n - better + 1):
            chance = (
                math.comb(n, better)
                * math.comb(n - better, worse)
                * p_better**better
                * p_worse**worse
                * (1 - p_better - p_worse) ** (n - better - worse)
            )
            low, high = paired_interval([1.0] * better + [-1.0] * worse + [0.0] * (n - better - worse))
            covered += chance * (low <= truth <= high)
    assert 0.93 <= covered <= 1.0


def test_only_tasks_that_both_were_scored_on_count() -> None:
    a = {"x": TaskCount(1, 2), "y": TaskCount(0, 2), "only a": TaskCount(2, 2), "failed": TaskCount(0, 0)}
    b = {"x": TaskCount(2, 2), "y": TaskCount(1, 4), "only b": TaskCount(0, 2), "failed": TaskCount(1, 1)}
    result = compare_paired(a, b)
    assert result is not None
    assert (result.tasks, result.better, result.worse) == (2, 2, 0)
    assert (result.share_a, result.share_b) == (0.25, 0.625)
    assert result.difference == pytest.approx(0.375)
    assert result.p_value == 0.5
    assert result.direction == "flat"
    assert compare_paired(a, {}) is None


def test_pairing_sees_what_two_separate_rates_cannot() -> None:
    a = {str(i): TaskCount(int(i < 50), 1) for i in range(100)}
    b = {str(i): TaskCount(int(i < 60), 1) for i in range(100)}
    result = compare_paired(a, b)
    assert result is not None
    assert result.direction == "up"
    assert result.p_value == pytest.approx(2 / 2**10)
    swapped = compare_paired(b, a)
    assert swapped is not None
    assert (swapped.low, swapped.high) == pytest.approx((-result.high, -result.low))

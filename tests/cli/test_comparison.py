from __future__ import annotations

from collections.abc import Callable

import pytest

from palaestra.cli.comparison import Comparison, Proportion, compare, compare_by_level
from palaestra.cli.episode_pairs import choose_pairs, pair_episodes, telling_pair
from palaestra.core.trajectories import Episode

MakeEpisode = Callable[..., Episode]


def test_the_interval_of_a_difference_is_that_of_the_paper() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:873), table II, row (a), method 10: 56/70 - 48/80
    result = Comparison(before=Proportion(48, 80), after=Proportion(56, 70))
    assert result.delta == pytest.approx(0.2)
    assert result.delta_interval == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert result.direction == "up"


def test_a_change_within_noise_is_flat() -> None:
    assert Comparison(Proportion(40, 80), Proportion(44, 80)).direction == "flat"
    assert Comparison(Proportion(60, 80), Proportion(20, 80)).direction == "down"
    assert Comparison(Proportion(60, 80), None).direction == ""


def test_failures_of_infrastructure_are_in_no_share(make_episode: MakeEpisode) -> None:
    before = [make_episode(0, True), make_episode(1, None), make_episode(2, False)]
    result = compare(before, [make_episode(0, None)])
    assert result.before == Proportion(1, 2)
    assert result.after is None
    assert result.delta is None


def test_levels_are_compared_one_by_one(make_episode: MakeEpisode) -> None:
    before = [make_episode(i, False) for i in range(8)]
    after = [make_episode(i, i % 4 == 3) for i in range(8)]
    levels = compare_by_level(before, after)
    assert list(levels) == ["compose/1", "compose/2", "compose/3"]
    assert levels["compose/3"].after == Proportion(2, 2)
    assert levels["compose/2"] == Comparison(Proportion(0, 4), Proportion(0, 4))


def test_pairs_are_of_one_task_and_scored_on_both_sides(make_episode: MakeEpisode) -> None:
    before = [make_episode(0, False), make_episode(1, True), make_episode(2, None), make_episode(3, True)]
    after = [make_episode(3, True), make_episode(2, True), make_episode(1, False), make_episode(0, True)]
    pairs = pair_episodes(before, after)
    assert [(pair.before.seed, pair.after.seed, pair.outcome) for pair in pairs] == [
        (3, 3, "kept"),
        (1, 1, "forgot"),
        (0, 0, "learned"),
    ]
    telling = telling_pair(pairs)
    assert telling is not None
    assert telling.after.seed == 0
    assert telling_pair(pairs[:2]) is None


@pytest.mark.parametrize("limit", [0, 1, 5, 16, 200])
def test_choosing_keeps_the_limit_and_fills_it(limit: int, make_episode: MakeEpisode) -> None:
    before = [make_episode(i, i % 3 == 0) for i in range(60)]
    pairs = pair_episodes(before, [make_episode(i, i % 4 != 0) for i in range(60)])
    chosen = choose_pairs(pairs, limit)
    assert sum(map(len, chosen.values())) == min(limit, 60)
    if limit == 16:
        assert {outcome: len(found) for outcome, found in chosen.items()} == {
            "learned": 8,
            "forgot": 3,
            "unsolved": 3,
            "kept": 2,
        }

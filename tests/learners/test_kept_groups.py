"""Training episodes that are kept with their advantages: which, and exactly what the learner used."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import scripted_groups, tiny_model

from palaestra.agents.episode_origin import EpisodeOrigin, origin_of
from palaestra.agents.store import load_episodes
from palaestra.core.records import read_about
from palaestra.core.trajectories import Episode, Group
from palaestra.learners.credit import credit
from palaestra.learners.grpo import GRPOConfig, GRPOLearner
from palaestra.learners.kept_groups import GroupKeeper, kept_steps

ORIGIN = EpisodeOrigin(env_id="CodeSandbox-v0", keywords={"split": "train"})
CONFIG = GRPOConfig(steps=5, groups_per_step=3, group_size=4, autocast="none")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def groups_of(model: Any, step: int) -> list[Group]:
    """Three groups, each of a task of its own; the first one's rewards are equal."""
    groups = scripted_groups(model, step, range(3))
    named = [
        Group(
            task_id=f"t{i}",
            episodes=tuple(dataclasses.replace(e, task_id=f"t{i}", seed=step) for e in group.episodes),
        )
        for i, group in enumerate(groups)
    ]
    flat = tuple(dataclasses.replace(episode, reward=1.0) for episode in named[0].episodes)
    return [Group(task_id="t0", episodes=flat), *named[1:]]


def failed(episode: Episode) -> Episode:
    failure = {"kind": "sandbox_died", "message": "gone", "retryable": True}
    return dataclasses.replace(episode, reward=float("nan"), success=None, failure=failure)


def keep(path: Path, model: Any, steps: range, wanted: int = 5, change: Any = lambda groups: groups) -> None:
    keeper = GroupKeeper(path, ORIGIN, CONFIG.steps, wanted)
    for step in steps:
        groups = change(groups_of(model, step))
        keeper(step, groups, credit(groups, CONFIG, np.random.default_rng(0)))


def test_the_first_group_that_teaches_is_kept_with_its_tokens_advantages(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    keep(path, model, range(1, 2))
    kept = list(load_episodes(path))
    groups = groups_of(model, 1)
    telling = next(g for g in groups if len({episode.reward for episode in g.episodes}) > 1)
    assert [episode.task_id for episode in kept] == [telling.task_id] * 4
    used = {id(item.segment): item for item in credit(groups, CONFIG, np.random.default_rng(0))}
    for episode, original in zip(kept, telling.episodes, strict=True):
        assert episode.info["step"] == 1
        for runs, segment in zip(episode.info["advantages"][0], original.trajectories[0].segments, strict=True):
            spread = np.full(len(segment), np.nan)
            for start, stop, value in runs:
                spread[start:stop] = value
            np.testing.assert_array_equal(np.isnan(spread), ~segment.action_mask_T)
            wanted = used[id(segment)].advantages_T[segment.action_mask_T]
            np.testing.assert_allclose(spread[segment.action_mask_T], wanted, atol=1e-6)
    assert origin_of(read_about(path, "episodes")) == ORIGIN


def test_a_turn_of_one_advantage_is_one_run(model: Any, tmp_path: Path) -> None:
    keep(tmp_path / "kept.jsonl", model, range(1, 2))
    for episode in load_episodes(tmp_path / "kept.jsonl"):
        for runs in episode.info["advantages"][0]:
            assert all(one[1] < other[0] for one, other in itertools.pairwise(runs))


def test_steps_are_spread_over_the_run() -> None:
    assert kept_steps(100, 5) == {1, 26, 50, 75, 100}
    assert kept_steps(3, 40) == {1, 2, 3}
    assert kept_steps(100, 1) == {1}
    assert kept_steps(100, 0) == kept_steps(0, 5) == frozenset()


def test_failures_are_kept_at_every_step_and_have_no_advantages(model: Any, tmp_path: Path) -> None:
    def change(groups: list[Group]) -> list[Group]:
        last = groups[2].episodes
        return [*groups[:2], Group(task_id="t2", episodes=(*last[:3], failed(last[3])))]

    keep(tmp_path / "kept.jsonl", model, range(1, 6), wanted=1, change=change)
    kept = list(load_episodes(tmp_path / "kept.jsonl"))
    lost = [episode for episode in kept if episode.failed]
    assert {episode.info["step"] for episode in lost} == {1, 2, 3, 4, 5}
    assert all("advantages" not in episode.info for episode in lost)
    assert {episode.info["step"] for episode in kept if not episode.failed} == {1}


def test_a_resumed_run_replaces_what_it_does_again(model: Any, tmp_path: Path) -> None:
    keep(tmp_path / "whole.jsonl", model, range(1, 6))
    keep(tmp_path / "two.jsonl", model, range(1, 5))
    with (tmp_path / "two.jsonl").open("a") as file:
        file.write('{"task_id": "torn')  # killed in this line
    keep(tmp_path / "two.jsonl", model, range(3, 6))
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_nothing_is_written_where_nothing_is_wanted(model: Any, tmp_path: Path) -> None:
    keep(tmp_path / "kept.jsonl", model, range(1, 6), wanted=0)
    assert not (tmp_path / "kept.jsonl").exists()


def test_the_learner_tells_what_it_learns_from_and_learns_the_same(model: Any) -> None:
    heard: list[tuple[int, int]] = []
    rows: list[dict[str, Any]] = []
    for listens in (False, True):
        learner = GRPOLearner(tiny_model(), CONFIG, seed=0)
        if listens:
            learner.on_credit = lambda step, groups, scored: heard.append((step, len(scored)))
        rows.append(learner.step(lambda step: groups_of(model, step)))
    assert heard == [(1, 12)]
    assert rows[0]["loss"] == rows[1]["loss"]

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import pytest
import tiny_runs
from test_grpo import groups_for
from tiny_runs import CONFIG, episode, parameters_of, tiny_model

from palaestra.core.seeding import generator
from palaestra.core.tasks import Task, TaskSet, fixed_task_set
from palaestra.core.trajectories import Group
from palaestra.envs.tasks.code.compose import ComposeFamily
from palaestra.learners.curriculum import LevelCurriculum
from palaestra.learners.distributed import Ranks, launch
from palaestra.learners.grpo import GRPOLearner

LEVELS = TaskSet(split="train", families=(ComposeFamily(),), levels=(1, 2, 2, 3))
CHANCE = {1: 0.98, 2: 0.45, 3: 0.02}


def played(level: int, success: bool, seed: int = 0) -> Any:
    return episode((), float(success), family="compose", level=level, seed=seed)


def groups_of(curriculum: LevelCurriculum, step: int, n: int = 16, size: int = 4) -> list[Group]:
    groups = []
    for number in range(n):
        task, seed = curriculum.draw("test", step, number)
        rng = generator("outcomes", step, number)
        episodes = tuple(played(task.level, rng.random() < CHANCE[task.level], seed=seed) for _ in range(size))
        groups.append(Group(task_id=task.task_id, episodes=episodes))
    return groups


def test_numbers_by_hand() -> None:
    curriculum = LevelCurriculum(LEVELS, floor=0.2, decay=0.5)
    assert curriculum.weights == pytest.approx({("compose", 1): 0.25, ("compose", 2): 0.5, ("compose", 3): 0.25})
    failed = dataclasses.replace(played(1, False), failure={"kind": "sandbox_died"}, reward=float("nan"))
    curriculum.update(curriculum.sums([Group(task_id="t", episodes=(played(1, True), played(1, True), failed))]))
    curriculum.update(curriculum.sums([Group(task_id="t", episodes=(played(1, True), played(3, False)))]))
    p = {1: (2 / 2 + 1 + 1) / (2 / 2 + 1 + 2), 2: 0.5, 3: 1 / 3}
    assert curriculum.success == pytest.approx({("compose", level): value for level, value in p.items()})
    score = {level: 0.2 + 0.8 * 4 * value * (1 - value) for level, value in p.items()}
    total = score[1] + 2 * score[2] + score[3]
    assert curriculum.weights == pytest.approx(
        {("compose", 1): score[1] / total, ("compose", 2): 2 * score[2] / total, ("compose", 3): score[3] / total}
    )
    row = curriculum.row()
    assert row["level_success/compose/3"] == pytest.approx(1 / 3)
    assert row["level_weight/compose/2"] == pytest.approx(2 * score[2] / total)


def test_weight_moves_to_the_level_with_success_nearest_a_half() -> None:
    curriculum = LevelCurriculum(dataclasses.replace(LEVELS, levels=(1, 2, 3)))
    drawn: list[Counter[int]] = []
    for step in range(30):
        groups = groups_of(curriculum, step)
        drawn.append(Counter(group.episodes[0].level for group in groups))
        curriculum.update(curriculum.sums(groups))
    late = sum(drawn[10:], Counter())
    assert late[2] > 0.6 * late.total()
    assert min(late[1], late[3]) > 0.03 * late.total()  # the floor: all levels are still tried
    assert max(curriculum.weights, key=curriculum.weights.__getitem__) == ("compose", 2)


def test_draws_depend_on_seed_and_state_alone_and_hit_their_shares() -> None:
    curriculum, other = LevelCurriculum(LEVELS), LevelCurriculum(LEVELS)
    draws = [curriculum.draw(3, "task", 1, group) for group in range(400)]
    assert draws == [other.draw(3, "task", 1, group) for group in range(400)]
    assert LEVELS.by_id(draws[0][0].task_id) == draws[0][0]
    shares = Counter(task.level for task, _ in draws)
    assert shares[2] == pytest.approx(200, abs=35)
    assert len({task.task_id for task, _ in draws}) == 400


def test_a_list_of_tasks_is_drawn_by_its_levels() -> None:
    tasks = [Task(task_id=f"own:{i}", family="own", split="train", level=1 + i % 2, prompt="") for i in range(6)]
    curriculum = LevelCurriculum(fixed_task_set(tasks, "train"), floor=0.0)
    wins = tuple(episode((), 1.0, family="own", level=1) for _ in range(10_000))
    curriculum.update(curriculum.sums([Group(task_id="t", episodes=wins)]))
    assert Counter(curriculum.draw("test", i)[0].level for i in range(100))[2] > 95


def test_resume_is_bit_exact() -> None:
    whole = LevelCurriculum(LEVELS)
    for step in range(5):
        whole.update(whole.sums(groups_of(whole, step)))
    resumed = LevelCurriculum(LEVELS)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for step in range(5, 9):
        groups = groups_of(whole, step)
        assert [g.task_id for g in groups] == [g.task_id for g in groups_of(resumed, step)]
        for curriculum in (whole, resumed):
            curriculum.update(curriculum.sums(groups))
    assert whole.state_dict() == resumed.state_dict()


def test_the_learner_feeds_logs_and_keeps_it() -> None:
    def learner() -> GRPOLearner:
        return GRPOLearner(tiny_model(), CONFIG, seed=0, curriculum=LevelCurriculum(LEVELS))

    first = learner()
    groups = [_compose(group) for group in groups_for(first.model)]
    row = first.step(lambda _: groups)
    assert row["level_success/compose/1"] == 0.5  # what the step's tasks were drawn with
    later = first.step(lambda _: groups)
    assert later["level_success/compose/1"] > 0.5
    assert later["level_success/compose/2"] == 0.5
    second = learner()
    second.load_state_dict(first.state_dict())
    assert second.curriculum is not None
    assert first.curriculum is not None
    assert second.curriculum.weights == first.curriculum.weights


def _compose(group: Group) -> Group:
    changed = tuple(dataclasses.replace(e, family="compose", level=1, success=True) for e in group.episodes)
    return dataclasses.replace(group, episodes=changed)


def test_all_processes_have_the_same_weights() -> None:
    for weights in launch(tiny_runs.curriculum_weights, 2):
        assert weights == tiny_runs.curriculum_weights(Ranks())[0]


def test_without_a_curriculum_nothing_is_logged() -> None:
    learner = GRPOLearner(tiny_model(), CONFIG, seed=0)
    row = learner.step(lambda _: groups_for(learner.model))
    assert not any(name.startswith("level_") for name in row)
    assert learner.state_dict()["curriculum"] is None
    assert parameters_of(learner.model).isfinite().all()

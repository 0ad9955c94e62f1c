"""A curriculum over levels: tasks are drawn most often where the policy succeeds about half of the time.

A reward of 0 or 1 that is won with probability p has variance p (1 - p): where p is 0 or 1 a group of episodes has no
spread and teaches nothing. Sampling in proportion to p (1 - p) is "sampling for learnability" (Rutherford et al. 2024,
arXiv 2408.15099; for language models Foster and Foerster 2025, arXiv 2502.12272). They score single tasks;
here tasks are endless, so that levels are scored.

A level here is a pair of family and level, written `family/level`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.seeding import derive_seed, generator
from ..core.tasks import Task, TaskSet
from ..core.trajectories import Group
from .group_statistics import is_scored

Level = tuple[str, int]
"""Family and level."""


class LevelCurriculum:
    """Success per level, recent episodes counting more, and how often each level is drawn.

    With w successes among n episodes of a level, both multiplied by `decay` at every step,

        p = (w + 1) / (n + 2)         weight = share * (floor + (1 - floor) 4 p (1 - p))

    normalised over the levels; `share` is how often the level is drawn without a curriculum. A level that nobody has
    tried has p = 1/2, and one that is no longer drawn goes back there, so that it is tried again.

    Example: three equal levels with success 0.99, 0.5 and 0.01 over many episodes and floor 0.1 have weights near
    0.11, 0.78 and 0.11.

    All data-parallel processes feed it the same sums, and so it is equal on all of them.

    Args:
        task_set: The tasks that are drawn from.
        floor: Share of its weight that a level keeps where nothing is to be learnt, in [0, 1]; 1 = no curriculum.
        decay: What an older step's episodes count, per step, in (0, 1].
    """

    def __init__(self, task_set: TaskSet, *, floor: float = 0.1, decay: float = 0.9) -> None:
        self._task_set, self._floor, self._decay = task_set, floor, decay
        self._families = {family.name: family for family in task_set.families}
        self._fixed: dict[Level, list[Task]] = {}
        for task in task_set.fixed:
            self._fixed.setdefault((task.family, task.level), []).append(task)
        shares = _shares(task_set)
        self.levels: tuple[Level, ...] = tuple(sorted(shares))
        self._shares_L = np.array([shares[level] for level in self.levels])
        self._wins_L = np.zeros(len(self.levels))
        self._tries_L = np.zeros(len(self.levels))

    @property
    def success(self) -> dict[Level, float]:
        """The recent success p of each level."""
        return dict(zip(self.levels, self._recent_success().tolist(), strict=True))

    @property
    def weights(self) -> dict[Level, float]:
        """How often each level is drawn; the weights sum to 1."""
        return dict(zip(self.levels, self._current_weights().tolist(), strict=True))

    def draw(self, *seed_parts: int | str) -> tuple[Task, int]:
        """Gives a task of a level drawn by weight, and the seed of its episodes.

        What is drawn depends on the seed's parts and the present weights only.
        """
        seed = derive_seed(*seed_parts) % 2**31
        point = generator(seed, "curriculum").random()
        reached = int(np.searchsorted(self._current_weights().cumsum()[:-1], point, side="right"))
        level = self.levels[reached]
        if self._fixed:
            tasks = self._fixed[level]
            return tasks[seed % len(tasks)], seed
        family, number = level
        return self._families[family].generate(seed, self._task_set.split, number), seed

    def sums(self, groups: Iterable[Group]) -> dict[str, float]:
        """Successes and scored episodes per level of this process's groups, under the same names on all processes."""
        wins: Counter[Level] = Counter()
        tries: Counter[Level] = Counter()
        for group in groups:
            for episode in group.episodes:
                if is_scored(episode):
                    tries[episode.family, episode.level] += 1
                    wins[episode.family, episode.level] += bool(episode.success)
        return {
            f"{kind}/{_name(level)}": float(counts[level])
            for kind, counts in (("wins", wins), ("tries", tries))
            for level in self.levels
        }

    def update(self, sums: Mapping[str, float]) -> None:
        """Takes a step's `sums`, added up over all processes."""
        for kind, counts_L in (("wins", self._wins_L), ("tries", self._tries_L)):
            counts_L *= self._decay
            counts_L += [sums[f"{kind}/{_name(level)}"] for level in self.levels]

    def row(self) -> dict[str, float]:
        """What is logged: weight and recent success of each level, as they were when the step's tasks were drawn."""
        weights, success = self.weights, self.success
        return {f"level_weight/{_name(level)}": weights[level] for level in self.levels} | {
            f"level_success/{_name(level)}": success[level] for level in self.levels
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"levels": [_name(level) for level in self.levels], "wins": self._wins_L.tolist()} | {
            "tries": self._tries_L.tolist()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict()`; levels that are new since then begin untried, as all do."""
        known = dict(zip(state["levels"], zip(state["wins"], state["tries"], strict=True), strict=True))
        pairs = [known.get(_name(level), (0.0, 0.0)) for level in self.levels]
        self._wins_L = np.array([wins for wins, _ in pairs])
        self._tries_L = np.array([tries for _, tries in pairs])

    def _recent_success(self) -> NDArray[np.float64]:
        return (self._wins_L + 1) / (self._tries_L + 2)

    def _current_weights(self) -> NDArray[np.float64]:
        p_L = self._recent_success()
        weights_L = self._shares_L * (self._floor + (1 - self._floor) * 4 * p_L * (1 - p_L))
        return weights_L / weights_L.sum()


def _shares(task_set: TaskSet) -> Counter[Level]:
    """How often `TaskSet.task` draws each level, in any unit that is the same for all."""
    if task_set.fixed:
        return Counter((task.family, task.level) for task in task_set.fixed)
    return Counter(
        {
            (family.name, level): times / sum(counts.values())  # families come equally often
            for family in task_set.families
            for counts in [Counter(_levels(task_set, family.levels))]
            for level, times in counts.items()
        }
    )


def _levels(task_set: TaskSet, own: Sequence[int]) -> Sequence[int]:
    return task_set.levels or own


def _name(level: Level) -> str:
    return f"{level[0]}/{level[1]}"

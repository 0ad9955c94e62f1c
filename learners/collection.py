"""Groups of training episodes for one GRPO step: which tasks, how many replicas, which share of them is this process's.

Task and episode seeds depend on (run seed, step, group, replica) only, so that any number of processes collects the
same tasks.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from ..agents.rollout import EpisodeSpec, collect
from ..core.seeding import derive_seed
from ..core.trajectories import Group, Sampling
from ..envs.registration import make_vector_env
from .config import Recipe

if TYPE_CHECKING:
    from ..agents.llm import LLMPolicy
    from .curriculum import LevelCurriculum


class GroupCollector:
    """Collects this process's groups of a step; call it with the step's number, close it at the end.

    Attributes:
        curriculum: What the tasks' levels are drawn by; None where they are drawn evenly. The learner feeds it.
    """

    def __init__(self, recipe: Recipe, policy: LLMPolicy, index: int, count: int) -> None:
        self._recipe, self._policy = recipe, policy
        self._groups = range(index, recipe.grpo.groups_per_step, count)
        levels = recipe.env.train_levels or recipe.env.levels
        slots = min(recipe.rollout.environments, len(self._groups) * recipe.grpo.group_size)
        self._envs = make_vector_env(
            recipe.env.id,
            slots,
            workers=recipe.rollout.workers,
            on_failure="info",
            split="train",
            **recipe.env.environment(levels),
        )
        self.curriculum: LevelCurriculum | None = recipe.grpo.level_curriculum(self._envs.task_set)

    def __call__(self, step: int) -> list[Group]:
        """Gives the groups of this step, in order of their number."""
        recipe, size = self._recipe, self._recipe.grpo.group_size
        self._policy.weights_changed()
        specs: list[EpisodeSpec] = []
        for group in self._groups:
            task_id, seed = self._draw(step, group)
            specs += [
                EpisodeSpec(task_id=task_id, seed=seed, replica=i, group=group, trunk=trunk)
                for i, trunk in enumerate(recipe.rollout.branching.trunks(size))
            ]
        episodes = collect(
            self._policy,
            self._envs,
            specs,
            sampling=Sampling(
                temperature=recipe.grpo.temperature_at(step),
                max_turn_tokens=recipe.rollout.max_turn_tokens,
                max_context_tokens=recipe.rollout.max_context_tokens,
            ),
            seed_parts=(recipe.seed, "rollout", step),
            schedule=recipe.grpo.schedule,
            fork_at=recipe.rollout.branching.at,
        )
        parts = [tuple(episodes[i : i + size]) for i in range(0, len(episodes), size)]
        return [Group(task_id=part[0].task_id, episodes=part) for part in parts]

    def _draw(self, step: int, group: int) -> tuple[str, int]:
        """The task of a group, and the seed of its episodes."""
        parts = (self._recipe.seed, "task", step, group)
        if self.curriculum is not None:
            task, seed = self.curriculum.draw(*parts)
            return task.task_id, seed
        seed = derive_seed(*parts) % 2**31
        return self._envs.task_set.task(seed).task_id, seed

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()

    def __enter__(self) -> GroupCollector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

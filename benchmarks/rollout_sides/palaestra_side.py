"""Palaestra: its collector and its GRPO learner, put together as a recipe does."""

from __future__ import annotations

import copy
import time
from pathlib import Path

from palaestra.agents.llm import LLMPolicy
from palaestra.core.trajectories import Group
from palaestra.learners.collection import GroupCollector
from palaestra.learners.config import EnvConfig, Recipe, RolloutConfig
from palaestra.learners.grpo import GRPOLearner
from palaestra.learners.grpo_config import GRPOConfig

from . import game
from .orders import GROUP_SIZE, KL_BETA, LEARNING_RATE, Answer, Order


class PalaestraSide:
    """See `orders.Side`."""

    def __init__(self, folder: Path) -> None:
        self._policy = LLMPolicy.load(folder)
        self._reference = copy.deepcopy(self._policy.model)

    def measure(self, order: Order) -> Answer:
        """See `orders.Side`."""
        recipe = _recipe(order)
        learner = GRPOLearner(self._policy.model, recipe.grpo, seed=0, reference=self._reference)
        episodes = []
        rollout_s: list[float] = []
        prefilled: list[int] = []
        with GroupCollector(recipe, self._policy, 0, 1) as collector:

            def collect(step: int) -> list[Group]:
                engine = self._policy.engine(order.episodes, recipe.rollout.max_context_tokens)
                before, started = engine.stats.prefilled_tokens, time.perf_counter()
                groups = collector(step)
                rollout_s.append(time.perf_counter() - started)
                prefilled.append(engine.stats.prefilled_tokens - before)
                episodes.append([episode for group in groups for episode in group.episodes])
                return groups

            learner.step(collect)
            started = time.perf_counter()
            for _ in range(order.steps):
                learner.step(collect)
            seconds = time.perf_counter() - started
        counted = [episode.trajectories[0] for step in episodes[1:] for episode in step]
        actions = [turn for trajectory in counted for turn in trajectory.turns]
        inner = [turn for trajectory in counted for turn in trajectory.turns[:-1]]
        return Answer(
            seconds_rollout=sum(rollout_s[1:]),
            seconds=seconds,
            sampled_tokens=sum(int(segment.action_mask_T.sum()) for each in counted for segment in each.segments),
            prefilled_tokens=sum(prefilled[1:]),
            actions=len(actions),
            valid=sum(turn.parse_error is None for turn in inner) / max(1, len(inner)),
            episode_tokens=sum(len(segment.token_ids_T) for each in counted for segment in each.segments)
            / len(counted),
            prompt_tokens=sum(each.turns[0].start for each in counted) / len(counted),
        )


def _recipe(order: Order) -> Recipe:
    return Recipe(
        name="rollout",
        run="",
        stages=("grpo",),
        reference="as loaded",
        env=EnvConfig(
            id=game.ID,
            max_turns=order.turns,
            prompt_style="compact",
            keywords={"tool_s": order.tool_s, "codes": order.codes},
        ),
        rollout=RolloutConfig(
            max_turn_tokens=order.turn_tokens,
            max_context_tokens=2048,
            environments=order.episodes,
            workers=order.episodes if order.tool_s else 0,
        ),
        grpo=GRPOConfig(
            steps=order.steps + 1,
            groups_per_step=order.episodes // GROUP_SIZE,
            group_size=GROUP_SIZE,
            learning_rate=LEARNING_RATE,
            kl_beta=KL_BETA,
            kl_beta_min=KL_BETA,
            kl_beta_max=KL_BETA,
            micro_batch_tokens=16_000,
        ),
    )

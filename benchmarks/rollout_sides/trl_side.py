"""TRL: `GRPOTrainer` with `environment_factory`, in one of the configurations that it has."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from . import game
from .orders import GROUP_SIZE, KL_BETA, LEARNING_RATE, Answer, Order

PLAIN: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "fp32": {**PLAIN, "generation_kwargs": {}},
    "bf16": {**PLAIN, "bf16": True, "generation_kwargs": {}},
    "static cache": {**PLAIN, "generation_kwargs": {"cache_implementation": "static"}},
    "continuous batching": {**PLAIN, "use_transformers_continuous_batching": True, "generation_kwargs": {}},
    "async tools": {**PLAIN, "generation_kwargs": {}},
}
"""What is asked for beyond sizes; where there are `generation_kwargs`, as many new tokens per turn as we allow.
`default` is TRL's own: bfloat16 autocast, gradient checkpointing, and as many of them as an episode may have."""


class TRLSide:
    """See `orders.Side`."""

    def __init__(self, folder: Path, configuration: str) -> None:
        self._folder, self._configuration = folder, configuration

    def measure(self, order: Order) -> Answer:
        """See `orders.Side`."""
        with tempfile.TemporaryDirectory() as output:
            trainer = self._trainer(order, output)
            clock = StepClock()
            trainer.add_callback(clock)
            torch.manual_seed(order.turns)
            trainer.train()
        counted = trainer.rollouts[1:]
        masks = [mask for rollout in counted for mask in rollout["masks"]]
        inner = len(masks) * (order.turns - 1)
        prompt_tokens = sum(sum(rollout["prompts"]) for rollout in counted) / len(masks)
        return Answer(
            seconds_rollout=sum(rollout["seconds"] for rollout in counted),
            seconds=sum(clock.seconds[1:]),
            sampled_tokens=sum(map(sum, masks)),
            prefilled_tokens=sum(rollout["prefilled"] for rollout in counted),
            actions=sum(rollout["generated"] for rollout in counted),
            valid=sum(rollout["calls"] for rollout in counted) / max(1, inner),
            episode_tokens=sum(map(len, masks)) / len(masks) + prompt_tokens,
            prompt_tokens=prompt_tokens,
        )

    def _trainer(self, order: Order, output: str) -> Any:
        rng = random.Random(order.turns)
        secrets = [game.draw_secret(rng) for _ in range((order.steps + 2) * order.episodes // GROUP_SIZE)]
        prompts = [[{"role": "user", "content": game.prompt_of(secret, order.codes)}] for secret in secrets]
        asked = dict(CONFIGURATIONS[self._configuration])
        if "generation_kwargs" in asked:
            asked["generation_kwargs"] = {"max_new_tokens": order.turn_tokens, **asked["generation_kwargs"]}
        config = GRPOConfig(
            output_dir=output,
            per_device_train_batch_size=order.episodes,
            gradient_accumulation_steps=1,
            num_generations=GROUP_SIZE,
            max_completion_length=order.turns * 2 * order.turn_tokens,
            max_tool_calling_iterations=order.turns - 1,
            max_steps=order.steps + 1,
            learning_rate=LEARNING_RATE,
            beta=KL_BETA,
            logging_steps=1000,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **asked,
        )
        return TimedTrainer(
            model=str(self._folder),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts, "secret": secrets}),
            processing_class=AutoTokenizer.from_pretrained(self._folder),
            environment_factory=game.trl_factory(order.tool_s, self._configuration == "async tools"),
        )


class StepClock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the trainer."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


class TimedTrainer(GRPOTrainer):
    """TRL's trainer, which notes what its rollouts took."""

    def __init__(self, **keywords: Any) -> None:
        self.rollouts: list[dict[str, Any]] = []
        self._note: dict[str, Any] = {}
        super().__init__(**keywords)

    def _generate(self, prompts: list[Any]) -> Any:
        self._note = {"prefilled": 0, "generated": 0}
        started = time.perf_counter()
        result = super()._generate(prompts)
        prompt_ids, _, masks, completions = result[:4]
        self._note |= {
            "seconds": time.perf_counter() - started,
            "masks": masks,
            "prompts": [len(ids) for ids in prompt_ids],
            "calls": sum(message["role"] == "tool" for each in completions for message in each),
        }
        self.rollouts.append(self._note)
        return result

    def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any, **keywords: Any) -> Any:
        self._note["prefilled"] += sum(map(len, prompt_ids))
        self._note["generated"] += len(prompt_ids)
        return super()._generate_single_turn(prompt_ids, *others, **keywords)

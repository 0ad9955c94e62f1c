"""A tiny model, scripted groups, and functions that spawned processes run; also a script that trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from palaestra.core.seeding import generator
from palaestra.core.tasks import TaskSet
from palaestra.core.trajectories import Episode, Group, Segment, Trajectory, Turn
from palaestra.envs.tasks.code.compose import ComposeFamily
from palaestra.learners.checkpoint import CheckpointStore
from palaestra.learners.curriculum import LevelCurriculum
from palaestra.learners.distributed import Ranks
from palaestra.learners.grpo import GRPOConfig, GRPOLearner, train_grpo
from palaestra.learners.logprobs import segment_logprobs
from palaestra.learners.metrics import MetricsWriter
from palaestra.learners.sft import SFTConfig, train_sft
from palaestra.models.adapters import LoRAConfig, add_adapter, trained_state
from palaestra.models.loading import recompute_activations

VOCABULARY = 24


def tiny_model(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
    config = LlamaConfig(
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.2,
        **{**sizes, **changes},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def adapted_model(seed: int = 0, recompute: bool = False, **changes: Any) -> LlamaForCausalLM:
    """The tiny model with a new adapter."""
    model = tiny_model(seed)
    add_adapter(model, LoRAConfig(**{"rank": 4, "alpha": 8.0, **changes}), seed=seed)
    if recompute:
        recompute_activations(model)
    return model


def random_segment(rng: np.random.Generator, length: int | None = None) -> Segment:
    """A prompt, then turns of sampled tokens and observations."""
    length = length or int(rng.integers(6, 20))
    mask = rng.random(length) < 0.5
    mask[:2], mask[2] = False, True
    return Segment(
        token_ids_T=rng.integers(0, VOCABULARY, length).astype(np.int32),
        action_mask_T=mask,
        logprobs_T=np.where(mask, -rng.random(length) - 1.0, np.nan).astype(np.float32),
    )


def with_logprobs(segment: Segment, logprobs_T: np.ndarray) -> Segment:
    recorded = np.where(segment.action_mask_T, logprobs_T, np.nan).astype(np.float32)
    return Segment(token_ids_T=segment.token_ids_T, action_mask_T=segment.action_mask_T, logprobs_T=recorded)


def episode(segments: tuple[Segment, ...], reward: float, **changes: Any) -> Episode:
    turn = Turn(action="submit", observation="")
    values: dict[str, Any] = {
        "task_id": "t",
        "family": "f",
        "level": 1,
        "seed": 0,
        "trajectories": (Trajectory(segments=segments, turns=(turn,)),),
        "reward": reward,
        "success": reward > 0.5,
        "stop_reason": "submitted",
    }
    return Episode(**{**values, **changes})


def scripted_groups(model: Any, step: int, numbers: range, size: int = 4, drift: float = 0.1) -> list[Group]:
    """Groups that depend on (step, group number) only; recorded log-probabilities are the model's, plus some noise."""
    groups: list[Group] = []
    for number in numbers:
        rng = generator("scripted", step, number)
        segments = [random_segment(rng) for _ in range(size)]
        scored = segment_logprobs(model, segments, autocast="none")
        segments = [
            with_logprobs(s, logprobs + drift * rng.standard_normal(len(s)))
            for s, logprobs in zip(segments, scored, strict=True)
        ]
        rewards = [float(i % 2) for i in range(size)] if number % 4 else [1.0] * size
        episodes = tuple(episode((s,), r) for s, r in zip(segments, rewards, strict=True))
        groups.append(Group(task_id=f"t{number}", episodes=episodes))
    return groups


def collector(ranks: Ranks, learner: GRPOLearner, groups: int = 4) -> Callable[[int], list[Group]]:
    return lambda step: scripted_groups(learner.model, step, range(ranks.rank, groups, ranks.size))


def parameters_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


CONFIG = GRPOConfig(
    steps=6,
    groups_per_step=4,
    group_size=4,
    autocast="none",
    schedule="fixed",
    checkpoint_every=2,
    kl_target=3.0,
    loss_normaliser="constant",
)


def grpo_weights(ranks: Ranks, steps: int) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    torch.set_num_threads(1)
    learner = GRPOLearner(tiny_model(), CONFIG, seed=0, ranks=ranks)
    rows = [learner.step(collector(ranks, learner)) for _ in range(steps)]
    return parameters_of(learner.model), rows


def adapter_after_a_step(ranks: Ranks, recompute: bool) -> dict[str, Any]:
    """What a step of GRPO makes of an adapter, with or without gradient checkpointing."""
    torch.set_num_threads(1)
    learner = GRPOLearner(adapted_model(recompute=recompute), CONFIG, seed=0, ranks=ranks)
    row = learner.step(collector(ranks, learner))
    adapter = torch.cat([value.flatten() for value in trained_state(learner.model).values()])
    return {"adapter": adapter.numpy(), "loss": row["loss"], "grad_norm": row["grad_norm"]}


def curriculum_weights(ranks: Ranks) -> list[dict[Any, float]]:
    """Every rank's weights after two steps, in which each rank fed its own half of the groups."""
    curriculum = LevelCurriculum(TaskSet(split="train", families=(ComposeFamily(),), levels=(1, 2)))
    for step in range(2):
        groups = [
            Group(task_id="t", episodes=(episode((), float((number + step) % 3 > 0), family="compose", level=level),))
            for number in range(ranks.rank, 8, ranks.size)
            for level in [1 + number % 2]
        ]
        curriculum.update(ranks.sum_floats(curriculum.sums(groups)))
    return ranks.gather_objects(curriculum.weights)


def sft_weights(ranks: Ranks) -> torch.Tensor:
    model = tiny_model()
    config = SFTConfig(batch_tokens=10_000, autocast="none", muon_learning_rate=0.0, warmup_steps=0)
    segments = [random_segment(generator("sft-data", i)) for i in range(8)]
    train_sft(model, segments[ranks.rank :: ranks.size], config, seed=0, ranks=ranks)
    return parameters_of(model)


def weights_after_training(ranks: Ranks) -> dict[str, Any]:
    """What the test of data parallelism compares between one process and two."""
    weights, rows = grpo_weights(ranks, steps=1)
    return {"grpo": weights, "row": rows[0], "sft": sft_weights(ranks)}


def train_in(ranks: Ranks, folder: str, resume: bool, pause_s: float = 0.0) -> torch.Tensor:
    """SFT, then GRPO, with checkpoints and metrics in `folder`; gives the final weights."""
    torch.set_num_threads(1)
    store = CheckpointStore(Path(folder) / "checkpoints", "tiny")
    with MetricsWriter(folder, enabled=ranks.is_first, resume=resume) as metrics:
        learner = GRPOLearner(tiny_model(), CONFIG, seed=0, ranks=ranks)

        def after_step(step: int, row: dict[str, Any]) -> None:
            if ranks.is_first:
                print(f"step {step}", flush=True)
            time.sleep(pause_s)

        train_grpo(
            learner,
            collector(ranks, learner),
            metrics=metrics,
            checkpoints=store,
            resume=resume,
            after_step=after_step,
        )
    return parameters_of(learner.model)


if __name__ == "__main__":
    from palaestra.learners.distributed import launch

    target, processes, resuming, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "resume", float(sys.argv[4])
    weights = launch(train_in, processes, (target, resuming, seconds))
    torch.save(weights, Path(target) / "weights.pt")

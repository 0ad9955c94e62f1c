"""Group-relative policy optimisation (GRPO) with a KL to a frozen reference policy, data parallel and resumable.

A step: collect groups of episodes, turn rewards into advantages, score every trajectory with the reference, update,
steer the KL's weight. Collection is a callable that is passed in, so nothing here knows engines or environments. There
is no critic and no replay: every step trains on the episodes it has just collected.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.seeding import generator
from ..core.trajectories import Group, Segment
from .advantages import group_advantages, has_spread
from .batch import Sample, TokenBatch, token_budget_batches
from .checkpoint import CheckpointStore, rng_state, set_rng_state
from .distributed import Ranks
from .group_statistics import group_row, group_sums, is_scored
from .grpo_config import GRPOConfig
from .kl import MAX_LOG_RATIO, k3
from .logprobs import action_logprobs, log_ratio_sum, segment_logprobs
from .losses import grpo_loss
from .metrics import MetricsWriter
from .optim import Optimisers, constant_then_linear
from .precision import device_of

__all__ = ["GRPOConfig", "GRPOLearner", "train_grpo"]

Collect = Callable[[int], list[Group]]
"""Gives this process's groups of a step; steps count from 1."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scored:
    """One segment of a scored episode, before the reference has seen it."""

    segment: Segment
    advantage: float
    trajectory: int
    informative: bool


class GRPOLearner:
    """Trains a model in place, one step at a time.

    Args:
        model: A transformers causal language model; equal on all ranks.
        config: How to train.
        seed: Decides the order of updates within a step.
        ranks: The data-parallel processes; None = this one alone.
        reference: The frozen reference policy; None = a copy of the model as it is now.
    """

    def __init__(
        self,
        model: nn.Module,
        config: GRPOConfig,
        *,
        seed: int,
        ranks: Ranks | None = None,
        reference: nn.Module | None = None,
    ) -> None:
        self.model, self.config, self.seed = model, config, seed
        self.ranks = ranks or Ranks()
        self.reference = (copy.deepcopy(model) if reference is None else reference).eval().requires_grad_(False)
        self.controller = config.kl_controller()
        self.steps_done = 0
        self._optimisers = Optimisers(
            model,
            learning_rate=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
        )

    def step(self, collect: Collect) -> Row:
        """Collects, updates once (or `minibatches` times), and gives the row of metrics of this step."""
        number, started = self.steps_done + 1, time.monotonic()
        groups = collect(number)
        collected = time.monotonic()
        scored = self._advantages(groups, number)
        reference_logprobs = self._score(self.reference, [item.segment for item in scored])
        sums = self.ranks.sum_floats(group_sums(groups) | _kl_sums(scored, reference_logprobs))
        samples = self._samples(scored, reference_logprobs)
        referenced = time.monotonic()
        update = self._update(samples, sums, number)
        finished = time.monotonic()
        self.steps_done = number

        kl_seq = sums["kl"] / sums["trajectories"] if sums["trajectories"] else math.nan
        row: Row = {"stage": "grpo", "step": number, "beta": self.controller.beta, "kl_seq": kl_seq}
        row |= {"kl_token": sums["kl"] / max(1.0, sums["tokens"])} | group_row(sums) | update
        self.controller.update(kl_seq)
        times = {
            "seconds": finished - started,
            "seconds_generation": collected - started,
            "seconds_reference": referenced - collected,
            "seconds_update": finished - referenced,
        }
        row |= self.ranks.mean_floats(times)
        row["seconds_environment"] = sums["environment_s"] / self.ranks.size
        row["seconds_generation"] = max(0.0, row["seconds_generation"] - row["seconds_environment"])
        return row

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; all ranks must call it together."""
        return {
            "model": self.model.state_dict(),
            "optimisers": self._optimisers.state_dict(),
            "controller": self.controller.state_dict(),
            "steps_done": self.steps_done,
            "rng": self.ranks.gather_objects(rng_state()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict()`. The reference is not part of it: pass the same one to the constructor."""
        self.model.load_state_dict(state["model"])
        self._optimisers.load_state_dict(state["optimisers"])
        self.controller.load_state_dict(state["controller"])
        self.steps_done = state["steps_done"]
        set_rng_state(state["rng"], self.ranks.rank)

    def _advantages(self, groups: Sequence[Group], number: int) -> list[_Scored]:
        """One entry per segment of every scored episode; failed episodes are left out altogether."""
        rewards = [[e.reward if is_scored(e) else math.nan for e in group.episodes] for group in groups]
        if self.config.shuffle_rewards:
            rewards = _shuffled(rewards, generator(self.seed, "shuffle", number, self.ranks.rank))
        scored: list[_Scored] = []
        trajectory_number = 0
        for group, group_rewards in zip(groups, rewards, strict=True):
            advantages = group_advantages(group_rewards, normalise_std=self.config.normalise_std)
            informative = bool(has_spread(group_rewards))
            for episode, advantage in zip(group.episodes, advantages.tolist(), strict=True):
                for trajectory in episode.trajectories if is_scored(episode) else ():
                    scored += [
                        _Scored(
                            segment=segment,
                            advantage=advantage,
                            trajectory=trajectory_number,
                            informative=informative,
                        )
                        for segment in trajectory.segments
                        if segment.action_mask_T[1:].any()
                    ]
                    trajectory_number += 1
        return scored

    def _score(self, model: nn.Module, segments: Sequence[Segment]) -> list[NDArray[np.float32]]:
        config = self.config
        return segment_logprobs(
            model,
            segments,
            batch_tokens=config.micro_batch_tokens,
            temperature=config.temperature,
            autocast=config.autocast,
        )

    def _samples(self, scored: Sequence[_Scored], reference_logprobs: Sequence[NDArray[np.float32]]) -> list[Sample]:
        """What the loss is computed on, with importance weights where they are wanted."""
        everything = self.config.kl_on_all_groups and self.controller.beta > 0
        chosen = [
            (item, reference)
            for item, reference in zip(scored, reference_logprobs, strict=True)
            if item.informative or everything
        ]
        old = [item.segment.logprobs_T for item, _ in chosen]
        weights: dict[int, float] = {}
        if self.config.importance_cap is not None:
            old = self._score(self.model, [item.segment for item, _ in chosen])
            weights = _importance_weights([item for item, _ in chosen], old, self.config.importance_cap)
        return [
            Sample(
                segment=item.segment,
                advantage=item.advantage,
                old_logprobs_T=old_T,
                reference_logprobs_T=reference_T,
                importance_weight=weights.get(item.trajectory, 1.0),
            )
            for (item, reference_T), old_T in zip(chosen, old, strict=True)
        ]

    def _update(self, samples: list[Sample], step_sums: Mapping[str, float], number: int) -> Row:
        """All updates of one step; gives the metrics that only they know."""
        config, rng = self.config, generator(self.seed, "update", number, self.ranks.rank)
        samples = [samples[i] for i in rng.permutation(len(samples))]
        size = (
            step_sums["tokens"]
            if config.loss_normaliser == "tokens"
            else (step_sums["episodes"] * config.tokens_per_episode)
        )
        denominator = max(1.0, size / config.minibatches)
        lr_share = constant_then_linear(
            number - 1,
            config.steps,
            warmup_steps=config.warmup_steps,
            decay_from=config.decay_from,
            min_share=config.min_lr_share,
        )
        totals: dict[str, float] = dict.fromkeys(("loss", "clip_low", "clip_high", "loss_tokens"), 0.0)
        mismatch: dict[str, float] = dict.fromkeys(("tokens", "k3", "ratio", "ratio_squared"), 0.0)
        norms: list[float] = []
        self.model.train()
        for part in range(config.minibatches):
            sums, off = self._gradient(samples[part :: config.minibatches], denominator, rng)
            sums = self.ranks.sum_floats(sums)
            for name, value in sums.items():
                totals[name] += value
            if part == 0:  # only here are weights those that the episodes were sampled with
                mismatch = self.ranks.sum_floats(off)
            if sums["loss_tokens"]:  # with nothing to learn from, momentum alone would still move the weights
                self.ranks.sum_gradients(self._optimisers.parameters)
                norms.append(self._optimisers.step(lr_share))
        self.model.eval()
        return _update_row(totals, mismatch, norms, config, lr_share)

    def _gradient(
        self, samples: Sequence[Sample], denominator: float, rng: np.random.Generator
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Accumulates this rank's gradient over micro-batches; gives sums for the loss and for the mismatch."""
        sums: dict[str, float] = dict.fromkeys(("loss", "clip_low", "clip_high", "loss_tokens"), 0.0)
        off: dict[str, float] = dict.fromkeys(("tokens", "k3", "ratio", "ratio_squared"), 0.0)
        self._optimisers.zero_grad()
        lengths = [len(sample.segment) for sample in samples]
        for indices in token_budget_batches(lengths, self.config.micro_batch_tokens, rng):
            rows = [samples[i] for i in indices]
            log_ratio_N, loss, counts = self._micro_batch(rows, denominator)
            loss.backward()
            sums["loss"] += float(loss.detach())
            sums["loss_tokens"] += float(counts["tokens"])
            sums["clip_low"] += float(counts["clip_low"])
            sums["clip_high"] += float(counts["clip_high"])
            for name, value in _mismatch_sums(log_ratio_N).items():
                off[name] += value
        return sums, off

    def _micro_batch(self, rows: Sequence[Sample], denominator: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        config = self.config
        batch = TokenBatch.from_segments([row.segment for row in rows], device_of(self.model))
        logprobs_N = action_logprobs(
            self.model,
            batch.input_ids_BT,
            batch.action_mask_BT,
            temperature=config.temperature,
            autocast=config.autocast,
        )
        corrected = config.importance_cap is not None
        result = grpo_loss(
            logprobs_N,
            batch.action_tokens([row.old_logprobs_T for row in rows]),
            batch.spread([row.advantage for row in rows]),
            torch.ones_like(logprobs_N, dtype=torch.bool),
            denominator=denominator,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            kl_beta=self.controller.beta,
            reference_logprobs=batch.action_tokens([row.reference_logprobs_T for row in rows]),
            weights=batch.spread([row.importance_weight for row in rows]) if corrected else None,
        )
        recorded_N = batch.action_tokens([row.segment.logprobs_T for row in rows])
        return logprobs_N.detach() - recorded_N, result.loss, result.sums


def train_grpo(
    learner: GRPOLearner,
    collect: Collect,
    *,
    metrics: MetricsWriter | None = None,
    checkpoints: CheckpointStore | None = None,
    resume: bool = False,
    after_step: Callable[[int, Row], None] | None = None,
) -> bool:
    """Runs the steps that are left, with metrics, checkpoints and a clean stop.

    Args:
        learner: The learner; its ranks are asked after every step whether to stop.
        collect: Gives this process's groups of a step.
        metrics: Where the rows go.
        checkpoints: Where to save every `checkpoint_every` steps and on a stop.
        resume: Continue from the newest GRPO checkpoint, if there is one.
        after_step: Called on every rank with (steps done, row), for progress and for evaluations.

    Returns:
        Whether all steps are done; False means that the run was stopped and can be resumed.
    """
    if resume:
        _resume(learner, metrics, checkpoints)
    config, ranks = learner.config, learner.ranks
    while learner.steps_done < config.steps:
        row = learner.step(collect)
        if metrics is not None:
            metrics.log(row)
        stop = ranks.should_stop()
        finished = learner.steps_done == config.steps
        due = config.checkpoint_every and learner.steps_done % config.checkpoint_every == 0
        if checkpoints is not None and (stop or due or finished):
            state = learner.state_dict()
            if ranks.is_first:
                checkpoints.save("grpo", learner.steps_done, state)
            ranks.barrier()
        if after_step is not None:
            after_step(learner.steps_done, row)
        if stop and not finished:
            return False
    return True


def _resume(learner: GRPOLearner, metrics: MetricsWriter | None, checkpoints: CheckpointStore | None) -> None:
    checkpoint = checkpoints.load_latest() if checkpoints is not None else None
    if checkpoint is None or checkpoint.stage != "grpo":
        return
    learner.load_state_dict(checkpoint.state)
    if metrics is not None:
        metrics.drop_after("grpo", checkpoint.step)


def _shuffled(rewards: list[list[float]], rng: np.random.Generator) -> list[list[float]]:
    """Deals the scored episodes' rewards out anew over all of this rank's episodes; NaN stays where it is."""
    flat = np.array([reward for group in rewards for reward in group], dtype=np.float64)
    flat[~np.isnan(flat)] = rng.permutation(flat[~np.isnan(flat)])
    stops = np.cumsum([len(group) for group in rewards])[:-1]
    return [part.tolist() for part in np.split(flat, stops)]


def _kl_sums(scored: Sequence[_Scored], reference_logprobs: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """The KL to the reference summed over all trajectories, informative or not."""
    pairs = zip(scored, reference_logprobs, strict=True)
    return {"kl": sum(log_ratio_sum(item.segment, reference_T) for item, reference_T in pairs)}


def _importance_weights(
    items: Sequence[_Scored], training_logprobs: Sequence[NDArray[np.float32]], cap: float
) -> dict[int, float]:
    """min(pi_train(trajectory) / pi_rollout(trajectory), cap) by trajectory."""
    log_weights: dict[int, float] = {}
    for item, training_T in zip(items, training_logprobs, strict=True):
        log_weight = log_weights.get(item.trajectory, 0.0) - log_ratio_sum(item.segment, training_T)
        log_weights[item.trajectory] = log_weight
    return {trajectory: min(math.exp(min(value, MAX_LOG_RATIO)), cap) for trajectory, value in log_weights.items()}


def _mismatch_sums(log_ratio_N: Tensor) -> dict[str, float]:
    """How far training's log-probabilities are from the recorded ones, for k3 and the effective sample size."""
    ratio = log_ratio_N.clamp(max=MAX_LOG_RATIO).exp()
    return {
        "tokens": float(len(log_ratio_N)),
        "k3": float(k3(torch.zeros_like(log_ratio_N), log_ratio_N).sum()),
        "ratio": float(ratio.sum()),
        "ratio_squared": float((ratio**2).sum()),
    }


def _update_row(
    totals: Mapping[str, float],
    mismatch: Mapping[str, float],
    norms: Sequence[float],
    config: GRPOConfig,
    lr_share: float,
) -> Row:
    tokens, off_tokens = max(1.0, totals["loss_tokens"]), mismatch["tokens"]
    finite = [norm for norm in norms if math.isfinite(norm)]
    return {
        "loss": totals["loss"] / config.minibatches,
        "clip_low": totals["clip_low"] / tokens,
        "clip_high": totals["clip_high"] / tokens,
        "grad_norm": sum(finite) / len(finite) if finite else math.nan,
        "updates_skipped": config.minibatches - len(finite),
        "mismatch_k3": mismatch["k3"] / off_tokens if off_tokens else math.nan,
        "mismatch_ess": mismatch["ratio"] ** 2 / (off_tokens * mismatch["ratio_squared"]) if off_tokens else math.nan,
        "lr": config.learning_rate * lr_share,
    }

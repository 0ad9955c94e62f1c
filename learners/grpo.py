"""Group-relative policy optimisation (GRPO) with a KL to a frozen reference policy, data parallel and resumable.

A step: collect groups of episodes, turn rewards into advantages, score every trajectory with the reference, update,
steer the KL's weight. Collection is a callable that is passed in, so nothing here knows engines or environments. There
is no critic and no replay: every step trains on the episodes it has just collected.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.errors import EnvironmentFailure
from ..core.seeding import generator
from ..core.trajectories import Group, Segment
from ..models.adapters import load_trained_state, trained_state
from .batch import Sample, TokenBatch, token_budget_batches
from .checkpoint import CheckpointStore, rng_state, set_rng_state
from .credit import CreditedSegment, credit, shared_anchor_sums
from .curriculum import LevelCurriculum
from .distributed import Ranks
from .group_statistics import group_row, group_sums
from .grpo_config import GRPOConfig
from .kl import MAX_LOG_RATIO, k3
from .logprobs import action_logprobs, action_logprobs_and_entropies, log_ratio_sum, segment_logprobs
from .losses import PolicyTokens, grpo_loss
from .metrics import MetricsWriter
from .optim import Optimisers, constant_then_linear
from .precision import device_of
from .reference import Reference
from .shared_prompts import SharedPrompts, prompt_batches, shared_prompts

__all__ = ["GRPOConfig", "GRPOLearner", "train_grpo"]

Collect = Callable[[int], list[Group]]
"""Gives this process's groups of a step; steps count from 1."""
Row = dict[str, Any]
_LOSS_SUMS = ("loss", "clip_low", "clip_high", "loss_tokens", "entropy")
OnCredit = Callable[[int, Sequence[Group], Sequence[CreditedSegment]], None]
"""Called on each process with a step's number, its groups and the credit that their tokens got."""


class GRPOLearner:
    """Trains a model in place, one step at a time.

    Args:
        model: A transformers causal language model; equal on all ranks.
        config: How to train.
        seed: Decides the order of updates within a step.
        ranks: The data-parallel processes; None = this one alone.
        reference: The frozen reference policy; None = the model with its adapter off, or a copy of it as it is
            now where it has no adapter.
        curriculum: What `collect` draws levels by, if it does; the learner tells it what became of them and keeps it in
            checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        config: GRPOConfig,
        *,
        seed: int,
        ranks: Ranks | None = None,
        reference: nn.Module | None = None,
        curriculum: LevelCurriculum | None = None,
    ) -> None:
        self.model, self.config, self.seed = model, config, seed
        self.ranks = ranks or Ranks()
        self.reference = Reference(model, reference)
        self.controller, self.exploration = config.kl_controller(), config.entropy_controller()
        self.curriculum = curriculum
        self.steps_done = 0
        self.on_credit: OnCredit | None = None
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
        scored = credit(groups, self.config, generator(self.seed, "shuffle", number, self.ranks.rank))
        if self.on_credit is not None:
            self.on_credit(number, groups, scored)
        with self.reference.model() as reference:
            reference_logprobs = self._score(reference, [item.segment for item in scored], number)
        local = group_sums(groups) | _kl_sums(scored, reference_logprobs)
        if self.config.advantage == "gigpo":
            local |= shared_anchor_sums(groups)
        if self.curriculum is not None:
            local |= self.curriculum.sums(groups)
        sums = self.ranks.sum_floats(local)
        samples = self._samples(scored, reference_logprobs, number)
        referenced = time.monotonic()
        update = self._update(samples, sums, number)
        finished = time.monotonic()
        self.steps_done = number

        kl_seq = sums["kl"] / sums["trajectories"] if sums["trajectories"] else math.nan
        row: Row = {"stage": "grpo", "step": number, "beta": self.controller.beta, "kl_seq": kl_seq}
        row |= {"kl_token": sums["kl"] / max(1.0, sums["kl_tokens"])} | group_row(sums) | update
        row |= {"temperature": self.config.temperature_at(number), "entropy_bonus": self.exploration.bonus}
        self.controller.update(kl_seq)
        self.exploration.update(row["entropy"] if sums["tokens"] else math.nan)
        if self.curriculum is not None:
            row |= self.curriculum.row()
            self.curriculum.update(sums)
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
        """What a resumed run needs, of the weights only those that are trained; all ranks must call it together."""
        return {
            "model": trained_state(self.model),
            "optimisers": self._optimisers.state_dict(),
            "controller": self.controller.state_dict(),
            "exploration": self.exploration.state_dict(),
            "curriculum": None if self.curriculum is None else self.curriculum.state_dict(),
            "steps_done": self.steps_done,
            "rng": self.ranks.gather_objects(rng_state()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict()`. The reference is not part of it: pass the same one to the constructor."""
        load_trained_state(self.model, state["model"])
        self._optimisers.load_state_dict(state["optimisers"])
        self.controller.load_state_dict(state["controller"])
        if "exploration" in state:  # checkpoints of earlier releases have none
            self.exploration.load_state_dict(state["exploration"])
        if self.curriculum is not None and state.get("curriculum"):
            self.curriculum.load_state_dict(state["curriculum"])
        self.steps_done = state["steps_done"]
        set_rng_state(state["rng"], self.ranks.rank)

    def _score(self, model: nn.Module, segments: Sequence[Segment], number: int) -> list[NDArray[np.float32]]:
        config = self.config
        return segment_logprobs(
            model,
            segments,
            batch_tokens=config.micro_batch_tokens,
            temperature=config.temperature_at(number),
            autocast=config.autocast,
            share_prompts=config.share_prompts,
        )

    def _samples(
        self, scored: Sequence[CreditedSegment], reference_logprobs: Sequence[NDArray[np.float32]], number: int
    ) -> list[Sample]:
        """What the loss is computed on, with importance weights where they are wanted."""
        everything = self.config.kl_on_all_groups and (self.controller.beta > 0 or self.exploration.bonus > 0)
        chosen = [
            (item, reference)
            for item, reference in zip(scored, reference_logprobs, strict=True)
            if (item.informative or everything) and item.trained.action_mask_T[1:].any()
        ]
        old = [item.segment.logprobs_T for item, _ in chosen]
        weights: dict[int, float] = {}
        each_once = self.config.loss_normaliser == "sequences"
        if self.config.importance_cap is not None:
            old = self._score(self.model, [item.segment for item, _ in chosen], number)
            weights = _importance_weights([item for item, _ in chosen], old, self.config.importance_cap)
        return [
            Sample(
                segment=item.trained,
                advantages_T=item.advantages_T,
                old_logprobs_T=old_T,
                reference_logprobs_T=reference_T,
                trajectory=item.trajectory,
                weight=weights.get(item.trajectory, 1.0) / (item.trajectory_tokens if each_once else 1),
            )
            for (item, reference_T), old_T in zip(chosen, old, strict=True)
        ]

    def _update(self, samples: list[Sample], step_sums: Mapping[str, float], number: int) -> Row:
        """All updates of one step; gives the metrics that only they know."""
        config, rng = self.config, generator(self.seed, "update", number, self.ranks.rank)
        units = _trajectories(samples) if config.loss == "gspo" else [[sample] for sample in samples]
        units = [units[i] for i in rng.permutation(len(units))]
        size = {
            "tokens": step_sums["tokens"],
            "constant": step_sums["episodes"] * config.tokens_per_episode,
            "sequences": step_sums["trajectories"],
        }[config.loss_normaliser]
        denominator = max(1.0, size / config.minibatches)
        lr_share = constant_then_linear(
            number - 1,
            config.steps,
            warmup_steps=config.warmup_steps,
            decay_from=config.decay_from,
            min_share=config.min_lr_share,
        )
        totals: dict[str, float] = dict.fromkeys(_LOSS_SUMS, 0.0)
        mismatch: dict[str, float] = dict.fromkeys(("tokens", "k3", "ratio", "ratio_squared"), 0.0)
        norms: list[float] = []
        self.model.train()
        for part in range(config.minibatches):
            sums, off = self._gradient(units[part :: config.minibatches], denominator, rng, number)
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
        self, units: Sequence[Sequence[Sample]], denominator: float, rng: np.random.Generator, number: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Accumulates this rank's gradient over micro-batches; gives sums for the loss and for the mismatch.

        Samples of one unit stay together.
        """
        sums: dict[str, float] = dict.fromkeys(_LOSS_SUMS, 0.0)
        off: dict[str, float] = dict.fromkeys(("tokens", "k3", "ratio", "ratio_squared"), 0.0)
        self._optimisers.zero_grad()
        for rows in self._micro_batches(units, rng):
            log_ratio_N, loss, counts = self._micro_batch(rows, denominator, number)
            loss.backward()
            sums["loss"] += float(loss.detach())
            sums["loss_tokens"] += float(counts["tokens"])
            sums["clip_low"] += float(counts["clip_low"])
            sums["clip_high"] += float(counts["clip_high"])
            sums["entropy"] += float(counts.get("entropy", 0.0))
            for name, value in _mismatch_sums(log_ratio_N).items():
                off[name] += value
        return sums, off

    def _micro_batches(self, units: Sequence[Sequence[Sample]], rng: np.random.Generator) -> Iterator[list[Sample]]:
        """Samples whose prompts are equal meet where that may be; else those of similar length."""
        budget = self.config.micro_batch_tokens
        if self.config.share_prompts and all(len(unit) == 1 for unit in units):
            samples = [sample for unit in units for sample in unit]
            for indices in prompt_batches([sample.segment for sample in samples], budget, rng):
                yield [samples[i] for i in indices]
            return
        lengths = [max(len(sample.segment) for sample in unit) for unit in units]
        for indices in token_budget_batches(lengths, budget, rng, [len(unit) for unit in units]):
            yield [sample for i in indices for sample in units[i]]

    def _micro_batch(
        self, rows: Sequence[Sample], denominator: float, number: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        config, bonus = self.config, self.exploration.bonus
        segments = [row.segment for row in rows]
        batch = TokenBatch.from_segments(segments, device_of(self.model))
        prompts = shared_prompts(segments, device_of(self.model)) if config.share_prompts else None
        logprobs_N, entropies_N = self._scored_actions(batch, prompts, number)
        weighted = config.importance_cap is not None or config.loss_normaliser == "sequences"
        place = {trajectory: i for i, trajectory in enumerate(dict.fromkeys(row.trajectory for row in rows))}
        tokens = PolicyTokens(
            logprobs=logprobs_N,
            old_logprobs=batch.action_tokens([row.old_logprobs_T for row in rows]),
            advantages=batch.action_tokens([row.advantages_T for row in rows]),
            mask=torch.ones_like(logprobs_N, dtype=torch.bool),
            reference_logprobs=batch.action_tokens([row.reference_logprobs_T for row in rows]),
            entropies=entropies_N,
            weights=batch.spread([row.weight for row in rows]) if weighted else None,
            sequences=batch.spread([place[row.trajectory] for row in rows], torch.long),
        )
        result = grpo_loss(tokens, config.loss_settings(self.controller.beta, bonus), denominator=denominator)
        recorded_N = batch.action_tokens([row.segment.logprobs_T for row in rows])
        return logprobs_N.detach() - recorded_N, result.loss, result.sums

    def _scored_actions(
        self, batch: TokenBatch, prompts: SharedPrompts | None, number: int
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of a batch's action tokens, and their entropies where a bonus needs them."""
        settings: dict[str, Any] = {
            "prompts": prompts,
            "temperature": self.config.temperature_at(number),
            "autocast": self.config.autocast,
        }
        if self.exploration.bonus:
            return action_logprobs_and_entropies(self.model, batch.input_ids_BT, batch.action_mask_BT, **settings)
        return action_logprobs(self.model, batch.input_ids_BT, batch.action_mask_BT, **settings), None


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

    Raises:
        EnvironmentFailure: A server that samples could not be given weights; the steps before can be resumed.
    """
    if resume:
        _resume(learner, metrics, checkpoints)
    config, ranks = learner.config, learner.ranks
    while learner.steps_done < config.steps:
        try:
            row = learner.step(collect)
        except EnvironmentFailure:  # a server that samples is gone; nothing of this step has been learned
            if checkpoints is not None and learner.steps_done and ranks.size == 1:
                checkpoints.save("grpo", learner.steps_done, learner.state_dict())
            raise
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


def _trajectories(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Puts the samples of each trajectory together: a ratio of a whole trajectory reads all of its tokens at once."""
    together: dict[int, list[Sample]] = {}
    for sample in samples:
        together.setdefault(sample.trajectory, []).append(sample)
    return list(together.values())


def _kl_sums(scored: Sequence[CreditedSegment], reference_logprobs: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """The KL to the reference summed over all trajectories, informative or not; shared turns are in each of them."""
    pairs = zip(scored, reference_logprobs, strict=True)
    return {
        "kl": sum(log_ratio_sum(item.segment, reference_T) for item, reference_T in pairs),
        "kl_tokens": float(sum(int(item.segment.action_mask_T.sum()) for item in scored)),
    }


def _importance_weights(
    items: Sequence[CreditedSegment], training_logprobs: Sequence[NDArray[np.float32]], cap: float
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
    row = {
        "loss": totals["loss"] / config.minibatches,
        "clip_low": totals["clip_low"] / tokens,
        "clip_high": totals["clip_high"] / tokens,
        "grad_norm": sum(finite) / len(finite) if finite else math.nan,
        "updates_skipped": config.minibatches - len(finite),
        "mismatch_k3": mismatch["k3"] / off_tokens if off_tokens else math.nan,
        "mismatch_ess": mismatch["ratio"] ** 2 / (off_tokens * mismatch["ratio_squared"]) if off_tokens else math.nan,
        "lr": config.learning_rate * lr_share,
    }
    return row | ({"entropy_exact": totals["entropy"] / tokens} if totals["entropy"] else {})

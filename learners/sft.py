"""Supervised fine-tuning on the agent's tokens of demonstrations: maximum likelihood, data parallel, resumable.

Each process trains on its own share of the sequences. The loss of a step is summed over all action tokens of all
processes and divided by their number. Context tokens (prompts, observations) are read and, unless `context_weight` says
otherwise, not learnt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from ..core.seeding import generator
from ..core.trajectories import Segment
from ..models.adapters import load_trained_state, trained_state
from .batch import TokenBatch, token_budget_batches
from .checkpoint import CheckpointStore, rng_state, set_rng_state
from .distributed import Ranks
from .logprobs import action_logprobs
from .metrics import MetricsWriter
from .optim import Optimisers, warmup_cosine
from .precision import Autocast, device_of
from .ranges import check_choices, check_ranges

Progress = Callable[[int, int, Mapping[str, Any]], None]
"""Called with (steps done, steps in all, the newest row of metrics)."""

_RANGES = {
    "epochs": "[1, inf)",
    "context_weight": "[0, 1]",
    "batch_tokens": "[1, inf)",
    "micro_batch_tokens": "[0, inf)",
    "learning_rate": "(0, inf)",
    "betas": "[0, 1)",
    "muon_learning_rate": "[0, inf)",
    "weight_decay": "[0, 1)",
    "warmup_steps": "[0, inf)",
    "min_lr_share": "[0, 1]",
    "max_grad_norm": "(0, inf)",
    "log_every": "[1, inf)",
    "checkpoint_every": "[0, inf)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTConfig:
    """How to fine-tune. The defaults suit a small model that is trained from scratch; see the recipes for others."""

    epochs: int = 1
    context_weight: float = 0.0
    """Weight of the loss on a context token, where an action token has 1 ("prompt loss weight", Huerta-Enochian and Ko
    2024). A model from scratch learns from what it reads how sentences and programs go together."""
    batch_tokens: int = 1000
    """Padded tokens per process and step, at most."""
    micro_batch_tokens: int = 0
    """Padded tokens of one forward and backward pass; changes memory and speed, not the gradient. 0 = a whole step."""
    learning_rate: float = 3e-3
    """Of AdamW."""
    muon_learning_rate: float = 0.02
    """Of Muon, for the matrices inside the layers; 0 = AdamW for everything (right for pretrained models). Adapters are
    AdamW's in any case."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 40
    min_lr_share: float = 0.05
    """The cosine ends at this share of the learning rate."""
    max_grad_norm: float = 1.0
    autocast: Autocast = "auto"
    log_every: int = 20
    """Steps between two rows of metrics."""
    checkpoint_every: int = 0
    """Steps between two checkpoints; 0 = only when the run is stopped."""

    def __post_init__(self) -> None:
        check_ranges(self, "sft.", _RANGES)
        check_choices(self, "sft.", {"autocast": get_args(Autocast)})


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTResult:
    """What `train_sft` did."""

    steps: int
    """Steps done in all, those before a resume included."""
    loss: float
    """Mean loss per action token (nats) of the last logged stretch; NaN when no step was left to do."""
    stopped: bool
    """Whether it was stopped before its end (a checkpoint was saved if a store was given)."""


def train_sft(
    model: nn.Module,
    sequences: Sequence[Segment],
    config: SFTConfig,
    *,
    seed: int,
    ranks: Ranks | None = None,
    metrics: MetricsWriter | None = None,
    checkpoints: CheckpointStore | None = None,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> SFTResult:
    """Trains the model in place.

    Args:
        model: A transformers causal language model, with an adapter or without; equal on all ranks.
        sequences: This rank's tokenised demonstrations.
        config: How to train.
        seed: Decides the order of the data.
        ranks: The data-parallel processes; None = this one alone.
        metrics: Where rows with `stage="sft"` go.
        checkpoints: Where to save on a stop, and every `checkpoint_every` steps.
        resume: Continue from the newest SFT checkpoint, if there is one.
        on_progress: Called on the first rank after every step.
    """
    return _Trainer(model, sequences, config, seed, ranks or Ranks(), metrics, checkpoints).run(resume, on_progress)


class _Trainer:
    def __init__(
        self,
        model: nn.Module,
        sequences: Sequence[Segment],
        config: SFTConfig,
        seed: int,
        ranks: Ranks,
        metrics: MetricsWriter | None,
        checkpoints: CheckpointStore | None,
    ) -> None:
        self.model, self.config, self.ranks = model, config, ranks
        self.metrics, self.checkpoints = metrics, checkpoints
        self.sequences = [segment for segment in sequences if segment.action_mask_T[1:].any()]
        self.batches = self._plan(seed)
        self.optimisers = Optimisers(
            model,
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
        )
        self.step = 0

    def run(self, resume: bool, on_progress: Progress | None) -> SFTResult:
        if resume:
            self._resume()
        self.model.train()
        started, loss, stopped = time.monotonic(), float("nan"), False
        loss_sum = token_sum = 0.0
        while self.step < len(self.batches) and not stopped:
            step_loss, tokens, norm, lr_share, stopped = self._train_step()
            loss_sum, token_sum = loss_sum + step_loss, token_sum + tokens
            row: dict[str, Any] = {"stage": "sft", "step": self.step, "lr": self.config.learning_rate * lr_share}
            if self.step % self.config.log_every == 0 or self.step == len(self.batches) or stopped:
                loss = loss_sum / max(1.0, token_sum)
                now = time.monotonic()
                row |= {"seconds": now - started, "loss": loss, "grad_norm": norm, "tokens": token_sum}
                started, loss_sum, token_sum = now, 0.0, 0.0
                if self.metrics is not None:
                    self.metrics.log(row)
            every = self.config.checkpoint_every
            if stopped or (every and self.step % every == 0 and self.step < len(self.batches)):
                self._save()
            if on_progress is not None and self.ranks.is_first:
                on_progress(self.step, len(self.batches), row)
        self.model.eval()
        return SFTResult(steps=self.step, loss=loss, stopped=stopped and self.step < len(self.batches))

    def _plan(self, seed: int) -> list[list[int]]:
        """All batches of this rank, in order; every rank makes as many steps as the one with the fewest."""
        lengths = [len(segment) for segment in self.sequences]
        batches: list[list[int]] = []
        for epoch in range(self.config.epochs):
            rng = generator(seed, "sft", epoch, self.ranks.rank)
            batches += token_budget_batches(lengths, self.config.batch_tokens, rng)
        return batches[: min(self.ranks.gather_objects(len(batches)))]

    def _train_step(self) -> tuple[float, float, float, float, bool]:
        """One update; gives the summed loss, its tokens, the gradient norm, the schedule's factor, whether to stop."""
        self.optimisers.zero_grad()
        losses = [self._accumulate(indices) for indices in self._micro_batches()]
        parameters = self.optimisers.parameters
        local = [*(sum(values) for values in zip(*losses, strict=True)), float(self.ranks.stop_requested)]
        total_loss, tokens, stop = self.ranks.sum_gradients(parameters, local)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(self.config.batch_tokens / tokens)
        lr_share = warmup_cosine(
            self.step,
            len(self.batches),
            warmup_steps=self.config.warmup_steps,
            min_share=self.config.min_lr_share,
        )
        norm = self.optimisers.step(lr_share)
        self.step += 1
        return total_loss, tokens, norm, lr_share, stop > 0

    def _micro_batches(self) -> list[list[int]]:
        """The sequences of this step, in parts of at most `micro_batch_tokens`."""
        batch, limit = self.batches[self.step], self.config.micro_batch_tokens
        if not limit:
            return [batch]
        parts = token_budget_batches([len(self.sequences[i]) for i in batch], limit, generator("sft-micro", self.step))
        return [[batch[i] for i in part] for part in parts]

    def _accumulate(self, indices: Sequence[int]) -> tuple[float, float]:
        """Adds the gradient of a part of the step; gives its summed loss and the number of its tokens."""
        segments, weight = [self.sequences[i] for i in indices], self.config.context_weight
        batch = TokenBatch.from_segments(segments, device_of(self.model))
        learnt_BT = batch.token_mask(segments) if weight else batch.action_mask_BT
        logprobs = action_logprobs(self.model, batch.input_ids_BT, learnt_BT, autocast=self.config.autocast)
        is_action = batch.action_mask_BT[learnt_BT]
        loss_sum = -logprobs[is_action].sum()
        objective = loss_sum - weight * logprobs[~is_action].sum() if weight else loss_sum
        (objective / self.config.batch_tokens).backward()  # scaled, so that half-precision gradients stay in range
        return float(loss_sum.detach()), float(is_action.sum())

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        rng_states = self.ranks.gather_objects(rng_state())
        if self.ranks.is_first:
            state = {"model": trained_state(self.model), "optimisers": self.optimisers.state_dict(), "rng": rng_states}
            self.checkpoints.save("sft", self.step, state)
        self.ranks.barrier()

    def _resume(self) -> None:
        checkpoint = self.checkpoints.load_latest() if self.checkpoints is not None else None
        if checkpoint is None or checkpoint.stage != "sft":
            return
        load_trained_state(self.model, checkpoint.state["model"])
        self.optimisers.load_state_dict(checkpoint.state["optimisers"])
        set_rng_state(checkpoint.state["rng"], self.ranks.rank)
        self.step = checkpoint.step
        if self.metrics is not None:
            self.metrics.drop_after("sft", self.step)

"""Optimisers and learning-rate schedules: AdamW, or Muon for the matrices inside the layers with AdamW for the rest.

AdamW is torch's, Muon is torch's with its matrices batched. Schedules are pure functions of the step, so that a
resumed run needs no scheduler state.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .muon import BatchedMuon


class Optimisers:
    """One or two torch optimisers that step together, with gradient clipping.

    Args:
        model: Its trainable parameters are optimised.
        learning_rate: Of AdamW.
        muon_learning_rate: Of Muon (Jordan et al. 2024) for 2-D weights that are neither embeddings, output head
            nor an adapter's; 0 = AdamW for all.
        betas: Of AdamW.
        weight_decay: Of both.
        max_grad_norm: Gradients are scaled down to this norm (over all parameters together).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        muon_learning_rate: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._max_grad_norm = max_grad_norm
        matrices = _layer_matrices(model) if muon_learning_rate else []
        chosen = {id(p) for p in matrices}
        rest = [p for p in self.parameters if id(p) not in chosen]
        self._optimisers: list[torch.optim.Optimizer] = []
        if rest:
            adamw = torch.optim.AdamW(rest, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
            self._optimisers.append(adamw)
        if matrices:
            muon = BatchedMuon(matrices, lr=muon_learning_rate, weight_decay=weight_decay, momentum=0.95)
            self._optimisers.append(muon)
        self._base_lrs = [[group["lr"] for group in optimiser.param_groups] for optimiser in self._optimisers]

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, lr_share: float) -> float:
        """Clips the gradients and updates the parameters.

        Args:
            lr_share: The schedule's factor on every learning rate.

        Returns:
            The gradient norm before clipping. When it is not finite, nothing is updated.
        """
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self._max_grad_norm))
        if not math.isfinite(norm):
            return norm
        for optimiser, base_lrs in zip(self._optimisers, self._base_lrs, strict=True):
            for group, base in zip(optimiser.param_groups, base_lrs, strict=True):
                group["lr"] = base * lr_share
            optimiser.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"optimisers": [optimiser.state_dict() for optimiser in self._optimisers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict()`."""
        for optimiser, saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(copy.deepcopy(saved))  # torch would go on using the tensors it is given


def warmup_cosine(step: int, steps: int, *, warmup_steps: int, min_share: float) -> float:
    """Share of the learning rate at a step (from 0): linear warm-up times a cosine from 1 to `min_share`."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))
    return _warmup(step, warmup_steps) * (min_share + (1 - min_share) * cosine)


def constant_then_linear(step: int, steps: int, *, warmup_steps: int, decay_from: float, min_share: float) -> float:
    """Share of the learning rate at a step (from 0): warm-up, constant, then a line to `min_share`.

    Args:
        step: The step, counted from 0.
        steps: Steps in all.
        warmup_steps: Length of the warm-up.
        decay_from: Where the line starts, as a share of all steps; 1 = never.
        min_share: Lower bound.
    """
    done = step / max(1, steps)
    share = 1.0 if done < decay_from or decay_from >= 1 else (1 - done) / (1 - decay_from)
    return _warmup(step, warmup_steps) * max(min_share, share)


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / max(1, warmup_steps))


def _layer_matrices(model: Any) -> list[Tensor]:
    """Trainable 2-D weights that are neither embeddings nor the output head.

    Adapters are left out, too. Muon gives every direction of an update the same length; the factors of a low-rank
    product are a map into few directions and one out of them, and B begins at zero.
    """
    outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        outer.add(id(head.weight))
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2 and id(parameter) not in outer and ".lora_" not in name
    ]

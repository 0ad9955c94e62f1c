"""Muon for many small matrices: torch's optimiser with one orthogonalisation per shape instead of one per matrix.

A small model spends more time on starting operations than on arithmetic. Matrices of one shape (or its transpose) are
stacked and orthogonalised together; the update of each is the one that `torch.optim.Muon` makes, up to round-off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` (Jordan et al. 2024) with Nesterov momentum and its original learning-rate adjustment.

    Constructor, state and checkpoints are torch's own.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            buffers: list[Tensor] = []
            self._init_group(group, parameters, gradients, buffers)
            momentum = group["momentum"]
            for buffer, gradient in zip(buffers, gradients, strict=True):
                buffer.lerp_(gradient, 1 - momentum)
            updates = [gradient.lerp(buffer, momentum) for buffer, gradient in zip(buffers, gradients, strict=True)]
            for members in _by_shape(parameters):
                _apply(parameters, updates, members, group)
        return loss


def _by_shape(parameters: list[Tensor]) -> list[list[int]]:
    """Indices of the parameters whose shapes are equal or each other's transpose."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index, parameter in enumerate(parameters):
        shapes.setdefault(tuple(sorted(parameter.shape)), []).append(index)
    return list(shapes.values())


def _apply(parameters: list[Tensor], updates: list[Tensor], members: list[int], group: dict[str, Any]) -> None:
    """Decays some equally shaped parameters and takes their orthogonalised updates off them."""
    tall = [parameters[i].shape[0] > parameters[i].shape[1] for i in members]
    wide = [updates[i].mT if is_tall else updates[i] for i, is_tall in zip(members, tall, strict=True)]
    orthogonal = orthogonalised(torch.stack(wide), group["ns_coefficients"], group["ns_steps"], group["eps"])
    for i, is_tall, direction in zip(members, tall, orthogonal.unbind(), strict=True):
        parameters[i].mul_(1 - group["lr"] * group["weight_decay"])
        rows, columns = parameters[i].shape
        parameters[i].sub_(
            direction.mT if is_tall else direction, alpha=group["lr"] * math.sqrt(max(1, rows / columns))
        )


def orthogonalised(
    matrices_NRC: Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> Tensor:
    """The nearest half-orthogonal matrices, about: singular values end between 0.5 and 1.5.

    A quintic Newton-Schulz iteration in bfloat16 (Jordan et al. 2024, "Muon: An optimizer for hidden layers"), for N
    matrices of R rows and C >= R columns at once.
    """
    a, b, c = coefficients
    x_NRC = matrices_NRC.bfloat16()
    x_NRC = x_NRC / x_NRC.norm(dim=(1, 2), keepdim=True).clamp(min=epsilon)
    for _ in range(steps):
        gram_NRR = x_NRC @ x_NRC.mT
        change_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, change_NRR, x_NRC, beta=a)
    return x_NRC

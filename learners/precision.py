"""Arithmetic of training's forward and backward passes: bfloat16 where it is faster, and attention to match."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

Autocast = Literal["auto", "bfloat16", "none"]
"""`auto` takes bfloat16 where the processor has matrix units for it; weights and gradients stay as they are."""

EAGER_UP_TO = 512 * 512
"""Most attention weights of a row and head that are held in memory."""


@contextlib.contextmanager
def training_arithmetic(model: Any, weights: int, autocast: Autocast) -> Iterator[None]:
    """A context in which to run a forward pass (the backward pass may run outside).

    In bfloat16 on a CPU, torch's fused attention is slow going backward: plain matrix products took a tenth of its
    time on rows of 60-120 tokens, which makes a whole step of a tiny model 0.7 times as long (torch 2.13). Long rows
    keep the fused kernel, which needs no memory for the attention weights.

    Args:
        model: A transformers model, or any module.
        weights: Attention weights of a row and head: tokens times tokens that they may attend to.
        autocast: Arithmetic of the forward pass.
    """
    device = device_of(model)
    if autocast == "none" or (autocast == "auto" and not has_bfloat16_units(device)):
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16), contextlib.ExitStack() as stack:
        if device.type == "cpu" and torch.is_grad_enabled() and weights <= EAGER_UP_TO:
            stack.enter_context(_eager_attention(model))
        yield


@contextlib.contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    """Switches from `sdpa` to `eager` attention, where the model uses the one and can do the other."""
    used = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if used != "sdpa" or recomputes_activations(model):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(used)


def recomputes_activations(model: Any) -> bool:
    """Whether the backward pass runs the forward pass again, which would be after the context has ended."""
    new_name = "is_activation_checkpointing"  # transformers 5.20; before, "gradient"
    return getattr(model, new_name if hasattr(type(model), new_name) else "is_gradient_checkpointing", False)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on this device (measured 1.6-1.8 times on CPUs that have the units)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False

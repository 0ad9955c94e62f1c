"""Weights of a Llama-shaped model in the form that `FusedDecoder` multiplies with.

Small float32 models get joined copies: q, k, v in one matrix, gate and up in one, and the norm before a matrix folded
into it (a linear map commutes with the row's scale), so that a step takes few operations. Large models and half
precision keep their own tensors, because a copy would cost memory, or round differently.

An adapter (LoRA) is added into the joined copies, where it costs nothing. Beside tensors that are the model's own it is
two small products: adding it in would change the base, and half precision would round small updates away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm

from ..core.errors import ModelError
from .adapters import LinearParts, linear_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_JOINED_LIMIT = 64 * 2**20
"""Greatest number of elements of a model whose weights are copied; above it, joining saves nothing worth the memory."""
Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass(slots=True)
class FusedLayer:
    """One decoder layer; `qkv` and `gate_up` contain the norm before them."""

    qkv: Map
    qk_norm: Map | None
    """Norms of query and key heads together, (N, H+K, D)."""
    scales_queries: bool
    """Whether queries come out scaled by 1/sqrt(D) already."""
    out: Map
    gate_up: Map
    down: Map


class FusedWeights:
    """A snapshot of a model's weights; make a new one after they changed."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel) -> None:
        inner: Any = model.model
        self.embedding = inner.embed_tokens.weight.detach()
        elements = sum(parameter.numel() for parameter in model.parameters())
        self._joins = model.dtype == torch.float32 and elements <= _JOINED_LIMIT
        self._epsilon = float(model.config.rms_norm_eps)
        self.layers = [self._layer(layer) for layer in inner.layers]
        self.logits = self._normed(inner.norm.weight, [model.lm_head])

    def _layer(self, layer: Any) -> FusedLayer:
        attention, mlp = layer.self_attn, layer.mlp
        has_qk_norm = getattr(attention, "q_norm", None) is not None
        scale = attention.head_dim**-0.5
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        scales = [scale, 1.0, 1.0] if self._joins and not has_qk_norm else [1.0, 1.0, 1.0]
        return FusedLayer(
            qkv=self._normed(layer.input_layernorm.weight, projections, scales),
            qk_norm=self._qk_norm(attention, scale) if has_qk_norm else None,
            scales_queries=self._joins or has_qk_norm,
            out=self._single(attention.o_proj),
            gate_up=self._normed(layer.post_attention_layernorm.weight, [mlp.gate_proj, mlp.up_proj]),
            down=self._single(mlp.down_proj),
        )

    def _single(self, item: nn.Module) -> Map:
        """One linear layer without a norm before it."""
        parts = _parts(item)
        return _affine(LinearParts(parts.joined(), parts.bias) if self._joins else parts)

    def _normed(self, norm: torch.Tensor, linears: Sequence[nn.Linear], scales: Sequence[float] | None = None) -> Map:
        """RMSNorm, then several linear layers side by side, each times its scale."""
        scales = scales or [1.0] * len(linears)
        parts = [_parts(item) for item in linears]
        if not self._joins:
            return _separate(norm.detach(), self._epsilon, [_affine(item) for item in parts])
        size = norm.shape[0]
        folded = norm.detach() * size**0.5
        weight = torch.cat([item.joined() * scale for item, scale in zip(parts, scales, strict=True)]) * folded
        bias = None
        if any(item.bias is not None for item in parts):
            biases = [
                item.weight.new_zeros(len(item.weight)) if item.bias is None else item.bias * scale
                for item, scale in zip(parts, scales, strict=True)
            ]
            bias = torch.cat(biases)
        floor = torch.tensor((size * self._epsilon) ** 0.5, dtype=norm.dtype, device=norm.device)

        def joined(x: torch.Tensor) -> torch.Tensor:
            # x / sqrt(mean(x^2) + epsilon) = sqrt(C) x / sqrt(|x|^2 + C epsilon); sqrt(C) is in the weight
            return linear(x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor), weight, bias)

        return joined

    def _qk_norm(self, attention: Any, scale: float) -> Map:
        """RMSNorm over each head of queries and keys, with the heads' own weights; queries times `scale`."""
        heads = attention.q_proj.out_features // attention.head_dim
        key_heads = attention.k_proj.out_features // attention.head_dim
        q_weight, k_weight = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
        weight_HD = torch.cat([(q_weight * scale).expand(heads, -1), k_weight.expand(key_heads, -1)])
        shape, epsilon = (attention.head_dim,), self._epsilon

        def normed(x_NHD: torch.Tensor) -> torch.Tensor:
            return rms_norm(x_NHD, shape, None, epsilon) * weight_HD

        return normed


def _parts(item: nn.Module) -> LinearParts:
    parts = linear_parts(item)
    if parts is None:
        raise ModelError(f"{type(item).__name__} is no linear layer that this decoder knows; make a new engine")
    return parts


def _affine(parts: LinearParts) -> Map:
    """The layer with the model's own tensors; an adapter computes in its own dtype, as in training."""
    weight, bias, down, up = parts.weight, parts.bias, parts.down, parts.up
    if down is None or up is None:
        return lambda x: linear(x, weight, bias)

    def adapted(x: torch.Tensor) -> torch.Tensor:
        added = linear(linear(x.to(down.dtype), down), up)
        return linear(x, weight, bias).add_(added)

    return adapted


def _separate(norm: torch.Tensor, epsilon: float, maps: list[Map]) -> Map:
    def apply(x: torch.Tensor) -> torch.Tensor:
        x = rms_norm(x, norm.shape, norm, epsilon)
        outputs = [each(x) for each in maps]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    return apply

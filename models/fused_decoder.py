"""A handwritten decoding forward for Llama-shaped models, with the model's own weights.

Shape: RMSNorm, rotary positions, grouped-query attention (with or without q/k norms and biases), SwiGLU: Llama, Qwen2
and Qwen3. What makes it fast on small models: one projection for q, k, v and one for gate and up, no padding in the
matrix products of a chunk, only the last token of a chunk in the last layer, keys stored transposed. What it leaves
out: sliding windows, mixtures of experts, adapters, quantised weights; those take the model's own forward.

Legend: R cache rows, B rows of a call, N tokens of a call, T tokens of the longest chunk, S positions in use, H query
heads, K key heads, G = H/K, D head size, C hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .decoders import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_FUSED_WEIGHT_LIMIT = 64 * 2**20
"""Greatest number of elements in a layer's joined weights; above it joining saves nothing and costs memory."""
_ODD_STRIDE = 8
"""Added to the cache's length: rows a power of two apart would share cache sets."""


def fits(model: PreTrainedModel, max_context: int) -> bool:
    """Whether a model is of the shape that `FusedDecoder` knows."""
    config = model.config
    if config.model_type not in MODEL_TYPES or config.hidden_act != "silu":
        return False
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if window is not None and window < max_context and kinds != {"full_attention"}:
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in _ROPE_TYPES:
        return False
    linears = [*(_projections(layer) for layer in model.model.layers), [model.lm_head]]
    # Exactly nn.Linear: an adapter or a quantised layer has a `weight` that is not all of what it computes.
    return all(type(linear) is nn.Linear for group in linears for linear in group)


def _projections(layer: Any) -> list[nn.Linear]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    ]


@dataclass(slots=True)
class _Joined:
    """Several linear layers of one input; one matrix where that is small."""

    weights: list[torch.Tensor]
    biases: list[torch.Tensor | None]

    @classmethod
    def of(cls, *linears: nn.Linear) -> _Joined:
        weights = [linear.weight.detach() for linear in linears]
        biases = [None if linear.bias is None else linear.bias.detach() for linear in linears]
        if sum(weight.numel() for weight in weights) > _FUSED_WEIGHT_LIMIT:
            return cls(weights, biases)
        joined = [bias for bias in biases if bias is not None]
        return cls([torch.cat(weights)], [torch.cat(joined) if joined else None])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.weights) == 1:
            return nn.functional.linear(x, self.weights[0], self.biases[0])
        return torch.cat(
            [nn.functional.linear(x, w, b) for w, b in zip(self.weights, self.biases, strict=True)], dim=-1
        )


@dataclass(slots=True)
class _Layer:
    norm: torch.Tensor
    qkv: _Joined
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: nn.Linear
    mlp_norm: torch.Tensor
    gate_up: _Joined
    down: nn.Linear


class FusedDecoder:
    """See `decoders.Decoder`; `refresh` copies the joined weights again."""

    def __init__(self, model: PreTrainedModel, rows: int, max_context: int) -> None:
        config = model.config
        self._model, self._epsilon = model, config.rms_norm_eps
        self._heads, self._key_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._scale = self._head_size**-0.5
        slots = -(-max_context // 16) * 16 + _ODD_STRIDE
        shape = (config.num_hidden_layers, rows, self._key_heads)
        options: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
        self._keys_RKDS = torch.zeros(*shape, self._head_size, slots, **options)
        self._values_RKSD = torch.zeros(*shape, slots, self._head_size, **options)
        self._positions_S = torch.arange(slots, device=model.device)
        self._row_numbers = torch.arange(rows, device=model.device)
        self._cos, self._sin = self._rotary_tables(slots)
        self._layers: list[_Layer] = []
        self.refresh()

    def _rotary_tables(self, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines per position; the first half of the sines is negated, so that rotating is a roll."""
        probe = torch.zeros(1, 1, dtype=self._model.dtype, device=self._model.device)
        cos, sin = self._model.model.rotary_emb(probe, self._positions_S[None])
        half = self._head_size // 2
        return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)

    @torch.no_grad()
    def refresh(self) -> None:
        """See `Decoder.refresh`."""
        self._layers = []
        for layer in self._model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
            q_norm, k_norm = (None if norm is None else norm.weight.detach() for norm in norms)
            self._layers.append(
                _Layer(
                    norm=layer.input_layernorm.weight.detach(),
                    qkv=_Joined.of(attention.q_proj, attention.k_proj, attention.v_proj),
                    q_norm=q_norm,
                    k_norm=k_norm,
                    out=attention.o_proj,
                    mlp_norm=layer.post_attention_layernorm.weight.detach(),
                    gate_up=_Joined.of(mlp.gate_proj, mlp.up_proj),
                    down=mlp.down_proj,
                )
            )

    def copy_rows(self, sources: IntArray, targets: IntArray, length: int) -> None:
        """See `Decoder.copy_rows`."""
        from_rows, to_rows = self._to_device(sources), self._to_device(targets)
        for keys_RKDS, values_RKSD in zip(self._keys_RKDS, self._values_RKSD, strict=True):
            keys_RKDS[to_rows, :, :, :length] = keys_RKDS[from_rows, :, :, :length]
            values_RKSD[to_rows, :, :length] = values_RKSD[from_rows, :, :length]

    # -- one token per row ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, tokens_B: IntArray, positions_B: IntArray) -> torch.Tensor:
        """See `Decoder.decode`."""
        count, length = len(tokens_B), int(positions_B.max()) + 1
        at_B = self._to_device(positions_B)
        cos, sin = self._cos[at_B][:, None], self._sin[at_B][:, None]
        unseen_BS = self._positions_S[:length] > at_B[:, None]
        bias_B1S = torch.zeros(unseen_BS.shape, dtype=self._cos.dtype, device=at_B.device)
        bias_B1S = bias_B1S.masked_fill_(unseen_BS, float("-inf"))[:, None]
        rows_B = self._row_numbers[:count]
        x_BC = nn.functional.embedding(self._to_device(tokens_B), self._model.model.embed_tokens.weight)
        for index, layer in enumerate(self._layers):
            keys_RKDS, values_RKSD = self._keys_RKDS[index], self._values_RKSD[index]
            query_BHD, key_BKD, value_BKD = self._qkv(layer, x_BC, cos, sin)
            keys_RKDS[rows_B, :, :, at_B] = key_BKD
            values_RKSD[rows_B, :, at_B] = value_BKD
            mixed = self._attend_one(
                query_BHD, keys_RKDS[:count, :, :, :length], values_RKSD[:count, :, :length], bias_B1S
            )
            x_BC = self._finish(layer, x_BC, mixed)
        return self._logits(x_BC)

    def _attend_one(
        self, query_BHD: torch.Tensor, keys_BKDS: torch.Tensor, values_BKSD: torch.Tensor, bias_B1S: torch.Tensor
    ) -> torch.Tensor:
        """Attention of one query per row, as two batched products: faster than any fused kernel for a single query."""
        count, heads, size = query_BHD.shape
        groups = heads // self._key_heads
        query = query_BHD.reshape(count * self._key_heads, groups, size) * self._scale
        scores = torch.bmm(query, keys_BKDS.flatten(0, 1)).view(count, heads, -1).add_(bias_B1S)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        weights = weights.view(count * self._key_heads, groups, -1)
        return torch.bmm(weights, values_BKSD.flatten(0, 1)).view(count, heads * size)

    # -- chunks ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill(self, rows: IntArray, starts: IntArray, chunks: list[IntArray]) -> torch.Tensor:
        """See `Decoder.prefill`. All chunks' tokens stand in one line (N); only attention sees padded rows."""
        lengths = np.array([len(chunk) for chunk in chunks])
        batch_N = np.repeat(np.arange(len(chunks)), lengths)
        column_N = np.arange(len(batch_N)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        position_N = column_N + starts[batch_N]
        length, longest = int(position_N.max()) + 1, int(lengths.max())
        plan = _ChunkPlan(
            rows_B=self._to_device(rows),
            row_N=self._to_device(rows[batch_N]),
            position_N=self._to_device(position_N),
            batch_N=self._to_device(batch_N),
            column_N=self._to_device(column_N),
            last_B=self._to_device(np.cumsum(lengths) - 1),
            longest=longest,
            length=length,
        )
        starts_B = self._to_device(starts)
        seen_until_BT = starts_B[:, None] + self._positions_S[:longest]
        plan.mask_BTS = self._positions_S[:length] > seen_until_BT[:, :, None]
        cos, sin = self._cos[plan.position_N][:, None], self._sin[plan.position_N][:, None]
        tokens_N = self._to_device(np.concatenate(chunks))
        x_NC = nn.functional.embedding(tokens_N, self._model.model.embed_tokens.weight)
        for index, layer in enumerate(self._layers):
            query_NHD, key_NKD, value_NKD = self._qkv(layer, x_NC, cos, sin)
            self._keys_RKDS[index][plan.row_N, :, :, plan.position_N] = key_NKD
            self._values_RKSD[index][plan.row_N, :, plan.position_N] = value_NKD
            keys_BKDS = self._keys_RKDS[index][:, :, :, :length][plan.rows_B]
            values_BKSD = self._values_RKSD[index][:, :, :length][plan.rows_B]
            if index + 1 < len(self._layers):
                mixed_NC = self._attend_chunks(query_NHD, keys_BKDS, values_BKSD, plan)
                x_NC = self._finish(layer, x_NC, mixed_NC)
            else:
                bias_B1S = plan.last_bias(self._positions_S[:length], self._cos.dtype)
                mixed_BC = self._attend_one(query_NHD[plan.last_B], keys_BKDS, values_BKSD, bias_B1S)
                x_NC = self._finish(layer, x_NC[plan.last_B], mixed_BC)
        return self._logits(x_NC)

    def _attend_chunks(
        self, query_NHD: torch.Tensor, keys_BKDS: torch.Tensor, values_BKSD: torch.Tensor, plan: _ChunkPlan
    ) -> torch.Tensor:
        """Attention of all tokens of the chunks, each to its own row's past."""
        count, heads, size = len(plan.rows_B), query_NHD.shape[1], query_NHD.shape[2]
        groups = heads // self._key_heads
        query_BTHD = query_NHD.new_zeros(count, plan.longest, heads, size)
        query_BTHD[plan.batch_N, plan.column_N] = query_NHD * self._scale
        query = query_BTHD.view(count, plan.longest, self._key_heads, groups, size).transpose(1, 2)
        query = query.reshape(count * self._key_heads, plan.longest * groups, size)
        scores = torch.bmm(query, keys_BKDS.flatten(0, 1))
        assert plan.mask_BTS is not None
        scores.view(count, self._key_heads, plan.longest, groups, -1).masked_fill_(
            plan.mask_BTS[:, None, :, None], float("-inf")
        )
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        mixed = torch.bmm(weights, values_BKSD.flatten(0, 1))
        mixed = mixed.view(count, self._key_heads, plan.longest, groups, size).transpose(1, 2)
        return mixed[plan.batch_N, plan.column_N].reshape(len(query_NHD), heads * size)

    # -- parts of a layer -----------------------------------------------------------------------------------------

    def _qkv(
        self, layer: _Layer, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        joined = layer.qkv(self._rms_norm(x, layer.norm)).view(len(x), -1, self._head_size)
        rotated, value = joined.split([self._heads + self._key_heads, self._key_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            query, key = rotated.split([self._heads, self._key_heads], dim=1)
            rotated = torch.cat([self._rms_norm(query, layer.q_norm), self._rms_norm(key, layer.k_norm)], dim=1)
        rotated = torch.addcmul(rotated * cos, rotated.roll(self._head_size // 2, dims=-1), sin)
        query, key = rotated.split([self._heads, self._key_heads], dim=1)
        return query, key, value

    def _finish(self, layer: _Layer, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        x = x + nn.functional.linear(mixed, layer.out.weight, layer.out.bias)
        gate, up = layer.gate_up(self._rms_norm(x, layer.mlp_norm)).chunk(2, dim=-1)
        return x + nn.functional.linear(nn.functional.silu(gate).mul_(up), layer.down.weight, layer.down.bias)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        head = self._model.lm_head
        return nn.functional.linear(self._rms_norm(x, self._model.model.norm.weight), head.weight, head.bias)

    def _rms_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, weight.shape, weight, self._epsilon)

    def _to_device(self, array: IntArray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._cos.device, non_blocking=True)


@dataclass(slots=True)
class _ChunkPlan:
    """Where the tokens of a call's chunks stand: in the cache (row, position), in the padded batch (batch, column)."""

    rows_B: torch.Tensor
    row_N: torch.Tensor
    position_N: torch.Tensor
    batch_N: torch.Tensor
    column_N: torch.Tensor
    last_B: torch.Tensor
    longest: int
    length: int
    mask_BTS: torch.Tensor | None = None
    """True = not seen."""

    def last_bias(self, positions_S: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Attention bias of each chunk's last token, B1S."""
        unseen_BS = positions_S > self.position_N[self.last_B][:, None]
        bias_BS = torch.zeros(unseen_BS.shape, dtype=dtype, device=unseen_BS.device)
        return bias_BS.masked_fill_(unseen_BS, float("-inf"))[:, None]

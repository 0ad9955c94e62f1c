"""A handwritten decoding forward for Llama-shaped models, with the model's own weights.

Shape: RMSNorm, rotary positions, grouped-query attention (with or without q/k norms and biases), SwiGLU: Llama, Qwen2
and Qwen3. What makes it fast on small models: few operations per token (joined projections, norm weights folded into
them), no padding in the matrix products of a chunk, only the last token of a chunk in the last layer, keys stored
transposed. Low-rank adapters are part of the weights that it multiplies with. What it leaves out: sliding windows,
mixtures of experts, other adapters, quantised weights; `fits` sends those to the model's own forward.

Legend: R cache rows, B rows of a call, N tokens of a call, T tokens of the longest chunk, S positions in use, H query
heads, K key heads, G = H/K, D head size, C hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad, silu

from .adapters import linear_parts
from .decoders import IntArray
from .fused_weights import FusedLayer, FusedWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_FIRST_SLOTS = 256
"""Positions that the cache has at first; it doubles when a conversation outgrows it."""
_ODD_STRIDE = 8
"""Added to the cache's length: rows a power of two apart would share cache sets."""
_UNSEEN = 1e30
"""Taken off a score for every position that lies after the query: its weight becomes exactly 0."""


def fits(model: PreTrainedModel, max_context: int) -> bool:
    """Whether a model is of the shape that `FusedDecoder` knows."""
    config, layers = model.config, getattr(getattr(model, "model", None), "layers", None)
    if layers is None or config.model_type not in MODEL_TYPES or config.hidden_act != "silu":
        return False
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if window is not None and window < max_context and kinds != {"full_attention"}:
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in _ROPE_TYPES:
        return False
    linears = [model.lm_head, *(linear for layer in layers for linear in _linears(layer))]
    # Parts that are all of the layer: another adapter or a quantised layer has a `weight` that is not.
    return type(model.model.embed_tokens) is nn.Embedding and all(
        linear_parts(linear) is not None for linear in linears
    )


def _linears(layer: Any) -> list[nn.Module]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    ]


class FusedDecoder:
    """See `decoders.Decoder`; `refresh` joins the weights again."""

    def __init__(self, model: PreTrainedModel, rows: int, max_context: int) -> None:
        config = model.config
        self._model = model
        self._heads, self._key_heads = config.num_attention_heads, config.num_key_value_heads
        self._groups = self._heads // self._key_heads
        self._head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._slots = _ODD_STRIDE
        shape = (rows, self._key_heads)
        empty = torch.zeros(0, dtype=model.dtype, device=model.device)
        layers = range(config.num_hidden_layers)
        self._keys_RKDS = [empty.new_zeros(*shape, self._head_size, self._slots) for _ in layers]
        self._values_RKSD = [empty.new_zeros(*shape, self._slots, self._head_size) for _ in layers]
        self._positions_S = torch.arange(max_context, device=model.device)
        self._row_numbers = torch.arange(rows, device=model.device)
        self._rotary_SxD = self._rotary_table()
        self._weights = FusedWeights(model)

    def _rotary_table(self) -> torch.Tensor:
        """Cosines, then sines, per position; the first half of the sines is negated, so that rotating is a roll."""
        probe = torch.zeros(1, 1, dtype=self._model.dtype, device=self._model.device)
        cos, sin = self._model.model.rotary_emb(probe, self._positions_S[None])
        half = self._head_size // 2
        return torch.stack([cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)], dim=1)

    def _reserve(self, length: int) -> None:
        """Makes the cache long enough for this many positions."""
        if length <= self._slots:
            return
        slots = max(_FIRST_SLOTS, 1 << (length - 1).bit_length()) + _ODD_STRIDE
        more = slots - self._slots
        for index in range(len(self._keys_RKDS)):
            self._keys_RKDS[index] = pad(self._keys_RKDS[index], (0, more))
            self._values_RKSD[index] = pad(self._values_RKSD[index], (0, 0, 0, more))
        self._slots = slots

    def refresh(self) -> None:
        """See `Decoder.refresh`."""
        self._weights = FusedWeights(self._model)

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
        self._reserve(length)
        at_B, rows_B = self._to_device(positions_B), self._row_numbers[:count]
        rotary_BxD = self._rotary_SxD.index_select(0, at_B)
        bias_B1S = self._bias(at_B, length)[:, None]
        x_BC = self._weights.embedding.index_select(0, self._to_device(tokens_B))
        for layer, keys_RKDS, values_RKSD in zip(self._weights.layers, self._keys_RKDS, self._values_RKSD, strict=True):
            query_BHD, key_BKD, value_BKD = self._qkv(layer, x_BC, rotary_BxD)
            keys_RKDS[rows_B, :, :, at_B] = key_BKD
            values_RKSD[rows_B, :, at_B] = value_BKD
            keys, values = keys_RKDS[:count, :, :, :length], values_RKSD[:count, :, :length]
            x_BC = self._finish(layer, x_BC, self._attend_one(query_BHD, keys, values, bias_B1S))
        return self._weights.logits(x_BC)

    def _attend_one(
        self, query_BHD: torch.Tensor, keys_BKDS: torch.Tensor, values_BKSD: torch.Tensor, bias_B1S: torch.Tensor
    ) -> torch.Tensor:
        """Attention of one query per row, as two batched products: faster than any fused kernel for a single query."""
        count, heads, size = query_BHD.shape
        query = query_BHD.reshape(count * self._key_heads, self._groups, size)
        scores = torch.bmm(query, keys_BKDS.flatten(0, 1))
        weights = _softmax(scores.view(count, heads, -1).add_(bias_B1S))
        return torch.bmm(weights.view_as(scores), values_BKSD.flatten(0, 1)).view(count, heads * size)

    def _bias(self, positions: torch.Tensor, length: int) -> torch.Tensor:
        """0 for positions up to the given ones, very negative after them; one more dimension, S."""
        distance = (positions[..., None] - self._positions_S[:length]).clamp_(max=0)
        return distance.to(torch.float32).mul_(_UNSEEN).to(self._rotary_SxD.dtype)

    # -- chunks ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill(self, rows: IntArray, starts: IntArray, chunks: list[IntArray]) -> torch.Tensor:
        """See `Decoder.prefill`. All chunks' tokens stand in one line (N); only attention sees padded rows."""
        lengths = np.array([len(chunk) for chunk in chunks])
        chunk_N = np.repeat(np.arange(len(chunks)), lengths)
        column_N = np.arange(len(chunk_N)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        position_N = column_N + starts[chunk_N]
        length, longest = int(position_N.max()) + 1, int(lengths.max())
        self._reserve(length)
        rows_B, starts_B = self._to_device(rows), self._to_device(starts)
        row_N, at_N = self._to_device(rows[chunk_N]), self._to_device(position_N)
        padded_N = self._to_device(chunk_N * longest + column_N)
        last_B = self._to_device(np.cumsum(lengths) - 1)
        bias_BTS = self._bias(starts_B[:, None] + self._positions_S[:longest], length)
        bias_B1S = self._bias(at_N[last_B], length)[:, None]
        rotary_NxD = self._rotary_SxD.index_select(0, at_N)
        x = self._weights.embedding.index_select(0, self._to_device(np.concatenate(chunks)))
        for index, layer in enumerate(self._weights.layers):
            query_NHD, key_NKD, value_NKD = self._qkv(layer, x, rotary_NxD)
            self._keys_RKDS[index][row_N, :, :, at_N] = key_NKD
            self._values_RKSD[index][row_N, :, at_N] = value_NKD
            keys = self._keys_RKDS[index][:, :, :, :length][rows_B]
            values = self._values_RKSD[index][:, :, :length][rows_B]
            if index + 1 < len(self._weights.layers):
                mixed = self._attend_chunks(query_NHD, keys, values, bias_BTS, padded_N)
            else:  # nothing reads the other tokens any more
                x, mixed = x[last_B], self._attend_one(query_NHD[last_B], keys, values, bias_B1S)
            x = self._finish(layer, x, mixed)
        return self._weights.logits(x)

    def _attend_chunks(
        self,
        query_NHD: torch.Tensor,
        keys_BKDS: torch.Tensor,
        values_BKSD: torch.Tensor,
        bias_BTS: torch.Tensor,
        padded_N: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of all tokens of the chunks, each to its own row's past; `padded_N` is their place in B x T."""
        count, longest, _ = bias_BTS.shape
        heads, size = query_NHD.shape[1:]
        query_BTHD = query_NHD.new_zeros(count * longest, heads, size)
        query_BTHD[padded_N] = query_NHD
        query = query_BTHD.view(count, longest, self._key_heads, self._groups, size).permute(0, 2, 3, 1, 4)
        scores = torch.bmm(
            query.reshape(count * self._key_heads, self._groups * longest, size), keys_BKDS.flatten(0, 1)
        )
        weights = _softmax(scores.view(count, heads, longest, -1).add_(bias_BTS[:, None]))
        mixed = torch.bmm(weights.view_as(scores), values_BKSD.flatten(0, 1))
        mixed = mixed.view(count, heads, longest, size).transpose(1, 2).reshape(count * longest, heads * size)
        return mixed[padded_N]

    # -- parts of a layer -----------------------------------------------------------------------------------------

    def _qkv(
        self, layer: FusedLayer, x: torch.Tensor, rotary_NxD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries (scaled by 1/sqrt(D)) and keys, and values."""
        joined = layer.qkv(x).view(len(x), -1, self._head_size)
        rotated, value = joined.split_with_sizes([self._heads + self._key_heads, self._key_heads], dim=1)
        if layer.qk_norm is not None:
            rotated = layer.qk_norm(rotated)
        cos, sin = rotary_NxD.split_with_sizes([1, 1], dim=1)
        rotated = torch.addcmul(rotated * cos, rotated.roll(self._head_size // 2, dims=-1), sin)
        query, key = rotated.split_with_sizes([self._heads, self._key_heads], dim=1)
        return (query if layer.scales_queries else query * self._head_size**-0.5), key, value

    def _finish(self, layer: FusedLayer, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        x = x + layer.out(mixed)
        gate, up = layer.gate_up(x).chunk(2, dim=-1)
        return x + layer.down(silu(gate).mul_(up))

    def _to_device(self, array: IntArray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        device = self._positions_S.device
        return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    if scores.dtype == torch.float32:
        return scores.softmax(-1)
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)

"""A handwritten decoding forward for Llama-shaped models, with the model's own weights.

Shape: RMSNorm, rotary positions, grouped-query attention (with or without q/k norms and biases), SwiGLU: Llama, Qwen2
and Qwen3. What makes it fast on small models: few operations per token (joined projections, norm weights folded into
them), no padding in the matrix products of a chunk, only the last token of a chunk in the last layer, products that
suit the machine (`attention`), a prompt that rows share read once for all of them (`prefix_cache`). Low-rank adapters
are part of the weights that it multiplies with. What it leaves out: sliding windows, mixtures of experts, other
adapters, quantised weights; `fits` sends those to the model's own forward.

Legend: R cache rows, B rows of a call, N tokens of a call, S positions, H query heads, K key heads, D head size, C
hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import silu

from .adapters import linear_parts
from .attention import attention_of
from .decoders import IntArray, counted, to_device
from .fused_weights import FusedLayer, FusedWeights
from .prefix_cache import SHORTEST, PrefixCache
from .row_cache import RowCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


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
        layers, key_heads = config.num_hidden_layers, config.num_key_value_heads
        empty = torch.zeros(0, dtype=model.dtype, device=model.device)
        self._cache = RowCache(rows, layers, key_heads, self._head_size, empty)
        self._prefixes = PrefixCache(rows, layers, empty)
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

    def refresh(self) -> None:
        """See `Decoder.refresh`."""
        self._weights = FusedWeights(self._model)
        self._prefixes.clear()

    def copy_rows(self, sources: IntArray, targets: IntArray, length: int) -> None:
        """See `Decoder.copy_rows`."""
        slots = max(0, length - int(self._prefixes.offsets(sources).min(initial=length)))
        self._cache.copy(self._to_device(sources), self._to_device(targets), slots)
        self._prefixes.move(sources, targets)

    def share_prompt(self, source: int, targets: IntArray, length: int) -> None:
        """See `Decoder.share_prompt`."""
        rows = np.array([source, *targets])
        if length < SHORTEST or self._prefixes.offsets(rows[:1])[0]:
            self.copy_rows(np.full_like(targets, source), targets, length)
            return
        keys = [keys_RKSD[source, :, :length] for keys_RKSD in self._cache.keys_RKSD]
        values = [values_RKSD[source, :, :length] for values_RKSD in self._cache.values_RKSD]
        self._prefixes.add(rows, keys, values)

    @property
    def pays_per_token(self) -> bool:
        """See `Verifier.pays_per_token`."""
        return self._positions_S.device.type == "cpu"

    # -- tokens to logits -----------------------------------------------------------------------------------------

    def decode(self, tokens_B: IntArray, positions_B: IntArray) -> torch.Tensor:
        """See `Decoder.decode`."""
        ones_B = np.ones_like(tokens_B)
        return self._feed(np.arange(len(tokens_B)), positions_B, tokens_B, ones_B, ones_B)

    def prefill(self, rows: IntArray, starts: IntArray, chunks: list[IntArray]) -> torch.Tensor:
        """See `Decoder.prefill`."""
        self._prefixes.leave(rows[starts == 0])
        return self.verify(rows, starts, chunks, np.ones_like(rows))

    def verify(self, rows: IntArray, starts: IntArray, chunks: list[IntArray], tails: IntArray) -> torch.Tensor:
        """See `Verifier.verify`."""
        counts = np.array([len(chunk) for chunk in chunks])
        return self._feed(rows, starts, np.concatenate(chunks), counts, tails)

    @torch.no_grad()
    def _feed(
        self, rows: IntArray, starts: IntArray, tokens_N: IntArray, counts: IntArray, tails: IntArray
    ) -> torch.Tensor:
        """Logits after the last tokens of each chunk. All tokens stand in one line, N; attention knows of rows."""
        chunk_N, column_N = np.repeat(np.arange(len(rows)), counts), counted(counts)
        # rows that are free stand at position 0, whatever they began with
        first_B = np.maximum(starts - self._prefixes.offsets(rows), 0)
        ends_B = first_B + counts
        self._cache.reserve(int(ends_B.max()))
        row_N, slot_N = self._to_device(rows[chunk_N]), self._to_device(column_N + first_B[chunk_N])
        rotary_NxD = self._rotary_SxD.index_select(0, self._to_device(column_N + starts[chunk_N]))
        attend = attention_of(self._cache, self._prefixes, rows, counts, ends_B)
        x = self._weights.embedding.index_select(0, self._to_device(tokens_N))
        for index, layer in enumerate(self._weights.layers):
            query_NHD, key_NKD, value_NKD = self._qkv(layer, x, rotary_NxD)
            self._cache.write(index, row_N, slot_N, key_NKD, value_NKD)
            if index + 1 == len(self._weights.layers) and (tails < counts).any():  # nothing reads the others any more
                last_N = self._to_device(np.flatnonzero(column_N >= (counts - tails)[chunk_N]))
                x, query_NHD = x[last_N], query_NHD[last_N]
                attend = attention_of(self._cache, self._prefixes, rows, tails, ends_B)
            x = self._finish(layer, x, attend(query_NHD, index))
        return self._weights.logits(x)

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
        return to_device(array, self._positions_S.device)

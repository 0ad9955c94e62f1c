"""A handwritten decoding forward for Llama-shaped models, with the model's own weights.

Shape: RMSNorm, rotary positions, grouped-query attention (with or without q/k norms and biases), SwiGLU: Llama, Qwen2
and Qwen3. What makes it fast on small models: few operations per token (joined projections, norm weights folded into
them), no padding in the matrix products of a chunk, only the last token of a chunk in the last layer, keys stored
transposed, a prompt that rows share read once for all of them (`prefix_cache`). Low-rank adapters are part of the
weights that it multiplies with. What it leaves out: sliding windows, mixtures of experts, other adapters, quantised
weights; `fits` sends those to the model's own forward.

Legend: R cache rows, B rows of a call, N tokens of a call, T tokens of the longest chunk, S slots in use (a row's
positions after the prompt that it shares), H query heads, K key heads, G = H/K, D head size, C hidden size, V
vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad, silu

from .adapters import linear_parts
from .decoders import IntArray, counted, to_device
from .fused_weights import FusedLayer, FusedWeights
from .prefix_cache import SHORTEST, UNSEEN, PrefixCache, PrefixPlan, softmax

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_FIRST_SLOTS = 256
"""Positions that the cache has at first; it doubles when a conversation outgrows it."""
_ODD_STRIDE = 8
"""Added to the cache's length: rows a power of two apart would share cache sets."""

_CPU_SCORES, _SCORES = 1 << 20, 1 << 28
"""Scores of a chunk that exist at one time: what a processor's cache holds (4 MiB), and what is little for a GPU."""


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
        self._prefixes = PrefixCache(rows, config.num_hidden_layers, empty)
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
        self._prefixes.clear()

    def copy_rows(self, sources: IntArray, targets: IntArray, length: int) -> None:
        """See `Decoder.copy_rows`."""
        slots = max(0, length - int(self._prefixes.offsets(sources).min(initial=length)))
        from_rows, to_rows = self._to_device(sources), self._to_device(targets)
        for keys_RKDS, values_RKSD in zip(self._keys_RKDS, self._values_RKSD, strict=True):
            keys_RKDS[to_rows, :, :, :slots] = keys_RKDS[from_rows, :, :, :slots]
            values_RKSD[to_rows, :, :slots] = values_RKSD[from_rows, :, :slots]
        self._prefixes.move(sources, targets)

    def share_prompt(self, source: int, targets: IntArray, length: int) -> None:
        """See `Decoder.share_prompt`."""
        rows = np.array([source, *targets])
        if length < SHORTEST or self._prefixes.offsets(rows[:1])[0]:
            self.copy_rows(np.full_like(targets, source), targets, length)
            return
        keys = [keys_RKDS[source, :, :, :length] for keys_RKDS in self._keys_RKDS]
        values = [values_RKSD[source, :, :length] for values_RKSD in self._values_RKSD]
        self._prefixes.add(rows, keys, values)

    # -- one token per row ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, tokens_B: IntArray, positions_B: IntArray) -> torch.Tensor:
        """See `Decoder.decode`."""
        count = len(tokens_B)
        # rows that are free stand at position 0, whatever they began with
        slots_B = np.maximum(positions_B - self._prefixes.offsets(np.arange(count)), 0)
        length = int(slots_B.max()) + 1
        self._reserve(length)
        plan = self._prefixes.leading_plan(count)
        at_B, rows_B = self._to_device(slots_B), self._row_numbers[:count]
        rotary_BxD = self._rotary_SxD.index_select(0, self._to_device(positions_B))
        bias_B1S = self._bias(at_B[:, None], length)
        x_BC = self._weights.embedding.index_select(0, self._to_device(tokens_B))
        for index, layer in enumerate(self._weights.layers):
            query_BHD, key_BKD, value_BKD = self._qkv(layer, x_BC, rotary_BxD)
            self._keys_RKDS[index][rows_B, :, :, at_B] = key_BKD
            self._values_RKSD[index][rows_B, :, at_B] = value_BKD
            cache = self._read(index, slice(count), length)
            x_BC = self._finish(layer, x_BC, self._attend(query_BHD[:, None], cache, bias_B1S, plan, index))
        return self._weights.logits(x_BC)

    def _read(self, layer: int, rows: slice | torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys BKDS and values BKSD of rows' first slots; a slice of rows is not copied."""
        return self._keys_RKDS[layer][:, :, :, :length][rows], self._values_RKSD[layer][:, :, :length][rows]

    def _attend(
        self,
        query_BTHD: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        bias_BTS: torch.Tensor,
        plan: PrefixPlan | None,
        layer: int,
    ) -> torch.Tensor:
        """Attention as batched products, (BT)C: faster than any fused kernel for a single query."""
        count, tokens, heads, size = query_BTHD.shape
        grouped = query_BTHD.view(count, tokens, self._key_heads, self._groups, size).permute(0, 2, 3, 1, 4)
        query_BKMD = grouped.reshape(count, self._key_heads, self._groups * tokens, size)
        prefix = self._prefixes.keys_PKDL[layer], self._prefixes.values_PKLD[layer]
        if tokens > 1:
            length = bias_BTS.shape[-1] + (plan.length if plan is not None else 0)
            step = max(1, (_CPU_SCORES if query_BTHD.device.type == "cpu" else _SCORES) // (heads * tokens * length))
            parts: list[torch.Tensor] = []
            for first in range(0, count, step):
                rows = slice(first, first + step)
                some = query_BKMD[rows], (cache[0][rows], cache[1][rows]), bias_BTS[rows]
                parts.append(_attend_own(*some) if plan is None else plan.attend_many(rows, *some, *prefix))
            mixed = torch.cat(parts) if len(parts) > 1 else parts[0]
        elif plan is None:
            mixed = _attend_own(query_BKMD, cache, bias_BTS)
        else:
            keys, values = (states.flatten(0, 1) for states in cache)
            scores = torch.bmm(query_BKMD.flatten(0, 1), keys).view(*query_BKMD.shape[:3], -1)
            shared_BKMD, own = plan.attend(query_BKMD, scores.add_(bias_BTS[:, None]), *prefix)
            mixed = torch.bmm(own.flatten(0, 1), values).add_(shared_BKMD.flatten(0, 1))
        return mixed.view(count, heads, tokens, size).transpose(1, 2).reshape(count * tokens, heads * size)

    def _bias(self, slots: torch.Tensor, length: int) -> torch.Tensor:
        """0 for slots up to the given ones, very negative after them; one more dimension, S."""
        distance = (slots[..., None] - self._positions_S[:length]).clamp_(max=0)
        return distance.to(torch.float32).mul_(-UNSEEN).to(self._rotary_SxD.dtype)

    # -- chunks ---------------------------------------------------------------------------------------------------

    def prefill(self, rows: IntArray, starts: IntArray, chunks: list[IntArray]) -> torch.Tensor:
        """See `Decoder.prefill`."""
        self._prefixes.leave(rows[starts == 0])
        return self._feed(rows, starts, chunks, every=False)

    def verify(self, rows: IntArray, starts: IntArray, chunks: list[IntArray]) -> torch.Tensor:
        """See `Verifier.verify`."""
        return self._feed(rows, starts, chunks, every=True)

    @torch.no_grad()
    def _feed(self, rows: IntArray, starts: IntArray, chunks: list[IntArray], *, every: bool) -> torch.Tensor:
        """Logits after the last or every token. All tokens stand in one line (N); only attention sees padded rows."""
        lengths = np.array([len(chunk) for chunk in chunks])
        chunk_N = np.repeat(np.arange(len(chunks)), lengths)
        column_N = counted(lengths)
        # rows that are free stand at position 0, whatever they began with
        first_B = np.maximum(starts - self._prefixes.offsets(rows), 0)
        slot_N = column_N + first_B[chunk_N]
        length, longest = int(slot_N.max()) + 1, int(lengths.max())
        self._reserve(length)
        plan = self._prefixes.plan(rows)
        row_N, at_N = self._to_device(rows[chunk_N]), self._to_device(slot_N)
        padded_N = self._to_device(chunk_N * longest + column_N)
        last_B = self._to_device(np.cumsum(lengths) - 1)
        bias_BTS = self._bias(self._to_device(first_B)[:, None] + self._positions_S[:longest], length)
        bias_B1S = self._bias(at_N[last_B][:, None], length)
        rotary_NxD = self._rotary_SxD.index_select(0, self._to_device(column_N + starts[chunk_N]))
        x = self._weights.embedding.index_select(0, self._to_device(np.concatenate(chunks)))
        read = _as_slice(rows)
        read = self._to_device(rows) if read is None else read
        for index, layer in enumerate(self._weights.layers):
            query_NHD, key_NKD, value_NKD = self._qkv(layer, x, rotary_NxD)
            self._keys_RKDS[index][row_N, :, :, at_N] = key_NKD
            self._values_RKSD[index][row_N, :, at_N] = value_NKD
            cache = self._read(index, read, length)
            if every or index + 1 < len(self._weights.layers):
                query_BTHD = query_NHD.new_zeros(len(chunks) * longest, *query_NHD.shape[1:])
                query_BTHD[padded_N] = query_NHD
                query_BTHD = query_BTHD.view(len(chunks), longest, *query_NHD.shape[1:])
                mixed = self._attend(query_BTHD, cache, bias_BTS, plan, index)[padded_N]
            else:  # nothing reads the other tokens any more
                x = x[last_B]
                mixed = self._attend(query_NHD[last_B][:, None], cache, bias_B1S, plan, index)
            x = self._finish(layer, x, mixed)
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


def _attend_own(
    query_BKMD: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], bias_BTS: torch.Tensor
) -> torch.Tensor:
    """Attention of rows to themselves, (BK)MD."""
    keys, values = (states.flatten(0, 1) for states in cache)
    scores = torch.bmm(query_BKMD.flatten(0, 1), keys)
    scores.view(len(query_BKMD), -1, *bias_BTS.shape[1:]).add_(bias_BTS[:, None])
    return torch.bmm(softmax(scores), values)


def _as_slice(rows: IntArray) -> slice | None:
    """Rows that follow each other as a slice, which is not copied when it is read."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) and (np.diff(rows) == 1).all() else None

"""Decoding through a model's own forward, with a preallocated cache of keys and values that has a position per row.

The model is given explicit positions and an explicit attention mask. Chunks are padded on the left, so that only the
last column's logits are needed; padding is written to a scratch position that nobody attends to.
Legend: R cache rows, B rows of a call, H heads, S positions in use, T tokens of a chunk, D head size, V vocabulary.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, CacheLayerMixin

from .decoders import IntArray, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_SCRATCH = -1
"""Position of padding; it is kept in slot 0, position p in slot p + 1."""
_FIRST_SLOTS = 256
"""Slots that a layer has at first; they double when a conversation outgrows them."""


@dataclass(slots=True)
class _Place:
    """Where the forward that is running reads and writes."""

    rows_B: torch.Tensor
    slot_BT: torch.Tensor
    """Where each token is written."""
    length: int
    """S: positions that are read."""
    leading: bool
    """Whether the rows are 0..B-1, so that no copy is needed to read them."""


class _RowLayer(CacheLayerMixin):
    """One layer's keys and values, RHSD, allocated at the first use."""

    is_sliding = False

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows = self._cache.rows
        self.keys = key_states.new_zeros(rows, key_states.shape[1], 0, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], 0, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self._cache.place
        assert place is not None
        assert self.keys is not None
        assert self.values is not None
        missing = place.length + 1 - self.keys.shape[2]
        if missing > 0:
            more = max(_FIRST_SLOTS, self.keys.shape[2], missing)
            self.keys, self.values = (pad(states, (0, 0, 0, more)) for states in (self.keys, self.values))
        rows_B1 = place.rows_B[:, None]
        self.keys[rows_B1, :, place.slot_BT] = key_states.transpose(1, 2)
        self.values[rows_B1, :, place.slot_BT] = value_states.transpose(1, 2)
        read, count = slice(1, place.length + 1), len(place.rows_B)
        if place.leading:
            return self.keys[:count, :, read], self.values[:count, :, read]
        return self.keys[:, :, read][place.rows_B], self.values[:, :, read][place.rows_B]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        assert self._cache.place is not None
        return self._cache.place.length, 0

    def get_seq_length(self) -> int:
        place = self._cache.place
        return 0 if place is None else place.length - place.slot_BT.shape[1]

    def get_max_length(self) -> int:
        return -1


class RowCache(Cache):
    """Keys and values of many conversations, one per row; `place` says which part a forward works on."""

    def __init__(self, layers: int, rows: int) -> None:
        self.rows = rows
        self.place: _Place | None = None
        super().__init__(layers=[_RowLayer(self) for _ in range(layers)])


class CachedDecoder:
    """See `decoders.Decoder`; works with every model whose forward takes a cache, positions and a 4-D mask."""

    def __init__(self, model: PreTrainedModel, rows: int, max_context: int) -> None:
        config = model.config.get_text_config()
        self._model = model
        self._cache = RowCache(config.num_hidden_layers, rows)
        self._additive = config._attn_implementation == "eager"
        self._window = _window(config, max_context)
        inner: Any = getattr(model, "get_base_model", None)  # a model with adapters has one
        base = inner() if inner is not None else model
        takes = inspect.signature(base.forward).parameters
        self._keeps_last = "logits_to_keep" in takes
        self._cache_name = "cache" if "cache" in takes else "past_key_values"  # renamed in transformers 5.24

    def decode(self, tokens_B: IntArray, positions_B: IntArray) -> torch.Tensor:
        """See `Decoder.decode`."""
        return self._forward(np.arange(len(tokens_B)), tokens_B[:, None], positions_B[:, None], leading=True)

    def prefill(self, rows: IntArray, starts: IntArray, chunks: list[IntArray]) -> torch.Tensor:
        """See `Decoder.prefill`."""
        longest = max(len(chunk) for chunk in chunks)
        tokens_BT = np.zeros((len(chunks), longest), dtype=np.int64)
        positions_BT = np.full((len(chunks), longest), _SCRATCH, dtype=np.int64)
        for i, (start, chunk) in enumerate(zip(starts.tolist(), chunks, strict=True)):
            tokens_BT[i, longest - len(chunk) :] = chunk
            positions_BT[i, longest - len(chunk) :] = np.arange(start, start + len(chunk))
        return self._forward(rows, tokens_BT, positions_BT, leading=False)

    def copy_rows(self, sources: IntArray, targets: IntArray, length: int) -> None:
        """See `Decoder.copy_rows`."""
        from_rows, to_rows = torch.from_numpy(sources), torch.from_numpy(targets)
        for layer in self._cache.layers:
            for states in (layer.keys, layer.values):  # pyright: ignore[reportAttributeAccessIssue]
                if states is not None:
                    states[to_rows, :, : length + 1] = states[from_rows, :, : length + 1]

    def share_prompt(self, source: int, targets: IntArray, length: int) -> None:
        """See `Decoder.share_prompt`."""
        self.copy_rows(np.full_like(targets, source), targets, length)

    def refresh(self) -> None:
        """The forward reads the model's own weights."""

    @torch.no_grad()
    def _forward(self, rows: IntArray, tokens: IntArray, positions: IntArray, leading: bool) -> torch.Tensor:
        device = self._model.device
        at_BT, length = torch.from_numpy(positions).to(device), int(positions.max()) + 1
        self._cache.place = _Place(torch.from_numpy(rows).to(device), at_BT + 1, length, leading)
        at_BT = at_BT.clamp(min=0)  # padding looks at position 0, and nobody looks at it
        arguments: dict[str, Any] = {"logits_to_keep": 1} if self._keeps_last else {}
        with evaluating(self._model):
            output = self._model(
                input_ids=torch.from_numpy(tokens).to(device),
                position_ids=at_BT,
                attention_mask=self._mask(at_BT, length),
                use_cache=True,
                **{self._cache_name: self._cache},
                **arguments,
            )
        return output.logits[:, -1]

    def _mask(self, query_BT: torch.Tensor, length: int) -> Any:
        """Who may attend to whom, B1TS; one mask per kind of layer where a model has several."""
        key_S = torch.arange(length, device=query_BT.device)
        seen_BTS = key_S <= query_BT[:, :, None]
        if self._window is None:
            return self._as_model_wants(seen_BTS)
        near_BTS = seen_BTS & (key_S > query_BT[:, :, None] - self._window.size)
        if not self._window.mixed:
            return self._as_model_wants(near_BTS)
        return {
            "full_attention": self._as_model_wants(seen_BTS),
            "sliding_attention": self._as_model_wants(near_BTS),
        }

    def _as_model_wants(self, seen_BTS: torch.Tensor) -> torch.Tensor:
        seen_B1TS = seen_BTS[:, None]
        if not self._additive:
            return seen_B1TS
        dtype = self._model.dtype
        bias = torch.zeros(seen_B1TS.shape, dtype=dtype, device=seen_BTS.device)
        return bias.masked_fill_(~seen_B1TS, torch.finfo(dtype).min)


@dataclass(frozen=True, slots=True)
class _Window:
    size: int
    mixed: bool
    """Whether some layers attend to everything."""


def _window(config: Any, max_context: int) -> _Window | None:
    """The sliding window of a model's attention, where the context is long enough for it to matter."""
    size = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if size is None or size >= max_context or kinds == {"full_attention"}:
        return None
    return _Window(size, mixed="full_attention" in kinds)

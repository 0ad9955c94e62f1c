"""What the engine asks of a model: logits of next tokens, with keys and values kept per row. Three ways, best first.

- `FusedDecoder` (`fused_decoder`): a handwritten forward for Llama-shaped models, several times faster on small ones.
- `CachedDecoder` (`cached_decoder`): the model's own forward with a preallocated cache; almost every architecture.
- `RecomputeDecoder` (here): the model's own forward over the whole history; slow, and right for every causal model.

`choose_decoder` takes the first one whose log-probabilities agree with the model's plain forward on random tokens.
Legend: B rows of a call, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IntArray = NDArray[np.int64]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Greatest difference of log-probabilities (nats) in the self-test."""
LOW_PRECISION_TOLERANCE = 0.1
_TEST_LENGTHS = (11, 7, 9)


class Decoder(Protocol):
    """Logits of next tokens for rows of a cache; row r holds one conversation's keys and values from position 0 on."""

    def decode(self, tokens_B: IntArray, positions_B: IntArray) -> torch.Tensor:
        """Feeds one token to each of the first B rows at the given positions; gives the logits after it, BV."""
        ...

    def prefill(self, rows: IntArray, starts: IntArray, chunks: list[IntArray]) -> torch.Tensor:
        """Feeds a chunk of tokens to each of the given rows from `starts` on; gives the logits after the last, BV."""
        ...

    def copy_rows(self, sources: IntArray, targets: IntArray, length: int) -> None:
        """Copies what the source rows hold for the first `length` positions; the two sets of rows are disjoint."""
        ...

    def refresh(self) -> None:
        """Takes over the model's weights after they changed."""
        ...


class RecomputeDecoder:
    """The model's plain forward over each row's whole history, padded on the right."""

    def __init__(self, model: PreTrainedModel, rows: int, max_context: int) -> None:
        self._model = model
        self._tokens_RT = torch.zeros(rows, max_context, dtype=torch.long, device=model.device)

    def decode(self, tokens_B: IntArray, positions_B: IntArray) -> torch.Tensor:
        """See `Decoder.decode`."""
        rows = torch.arange(len(tokens_B), device=self._tokens_RT.device)
        last_B = torch.from_numpy(positions_B).to(rows.device)
        self._tokens_RT[rows, last_B] = torch.from_numpy(tokens_B).to(rows.device)
        return self._forward(rows, last_B)

    def prefill(self, rows: IntArray, starts: IntArray, chunks: list[IntArray]) -> torch.Tensor:
        """See `Decoder.prefill`."""
        device = self._tokens_RT.device
        for row, start, chunk in zip(rows.tolist(), starts.tolist(), chunks, strict=True):
            self._tokens_RT[row, start : start + len(chunk)] = torch.from_numpy(chunk).to(device)
        last = starts + np.array([len(chunk) for chunk in chunks]) - 1
        return self._forward(torch.from_numpy(rows).to(device), torch.from_numpy(last).to(device))

    def copy_rows(self, sources: IntArray, targets: IntArray, length: int) -> None:
        """See `Decoder.copy_rows`."""
        self._tokens_RT[torch.from_numpy(targets), :length] = self._tokens_RT[torch.from_numpy(sources), :length]

    def refresh(self) -> None:
        """Nothing is kept that depends on weights."""

    @torch.no_grad()
    def _forward(self, rows_B: torch.Tensor, last_B: torch.Tensor) -> torch.Tensor:
        length = int(last_B.max()) + 1
        positions_T = torch.arange(length, device=rows_B.device)
        mask_BT = (positions_T[None] <= last_B[:, None]).long()
        output = self._model(input_ids=self._tokens_RT[rows_B, :length], attention_mask=mask_BT, use_cache=False)
        return output.logits[torch.arange(len(rows_B), device=rows_B.device), last_B]


def choose_decoder(model: PreTrainedModel, rows: int, max_context: int) -> Decoder:
    """Gives the fastest decoder that agrees with the model's own forward (`TOLERANCE`) in a self-test."""
    from .cached_decoder import CachedDecoder
    from .fused_decoder import FusedDecoder, fits

    makers: list[Callable[[], Decoder]] = []
    if fits(model, max_context):
        makers.append(lambda: FusedDecoder(model, rows, max_context))
    makers.append(lambda: CachedDecoder(model, rows, max_context))
    for make in makers:
        try:
            decoder = make()
            if disagreement(decoder, model, rows, max_context) <= tolerance(model):
                return decoder
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError, NotImplementedError):
            continue  # this architecture's forward takes no such cache, mask or positions
    return RecomputeDecoder(model, rows, max_context)


def tolerance(model: PreTrainedModel) -> float:
    """How far log-probabilities may differ in the self-test: round-off of the model's dtype."""
    return TOLERANCE.get(model.dtype, LOW_PRECISION_TOLERANCE)


@torch.no_grad()
def disagreement(decoder: Decoder, model: PreTrainedModel, rows: int, max_context: int) -> float:
    """Greatest |difference| of log-probabilities between a decoder and the model's plain forward, on random tokens.

    Rows of different lengths are prefilled in two chunks, copied, and decoded by two tokens; row order is shuffled.
    """
    lengths = [min(length, max_context) for length in _TEST_LENGTHS[: max(1, min(rows, len(_TEST_LENGTHS)))]]
    if min(lengths) < 5:
        return float("inf")  # too short to be split as below
    random = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    texts = [torch.randint(vocabulary, (length,), generator=random).numpy() for length in lengths]
    with evaluating(model):
        rows_B = np.arange(len(texts))[::-1].copy()
        cuts = np.array([len(text) // 2 for text in texts])
        decoder.prefill(rows_B, np.zeros_like(cuts), [text[:cut] for text, cut in zip(texts, cuts, strict=True)])
        decoder.prefill(rows_B, cuts, [text[cut:-2] for text, cut in zip(texts, cuts, strict=True)])
        ordered = texts[::-1]
        for back in (2, 1):
            tokens_B = np.array([text[-back] for text in ordered])
            logits_BV = decoder.decode(tokens_B, np.array([len(text) - back for text in ordered]))
        worst = 0.0
        for text, logits_V in zip(ordered, logits_BV, strict=True):
            wanted_V = model(input_ids=torch.from_numpy(text)[None].to(model.device), use_cache=False).logits[0, -1]
            gap = (wanted_V.float().log_softmax(-1) - logits_V.float().log_softmax(-1)).abs().max()
            worst = max(worst, float(gap)) if torch.isfinite(gap) else float("inf")
    return worst


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switches dropout off for a while."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()

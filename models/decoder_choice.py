"""Chooses how a model is decoded: the fastest way whose log-probabilities agree with its plain forward.

Legend: B rows of a call, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from .cached_decoder import CachedDecoder
from .decoders import Decoder, RecomputeDecoder, evaluating
from .fused_decoder import FusedDecoder, fits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Greatest difference of log-probabilities (nats) in the self-test."""
LOW_PRECISION_TOLERANCE = 0.1
_TEST_LENGTHS = (11, 7, 9)


def choose_decoder(model: PreTrainedModel, rows: int, max_context: int) -> Decoder:
    """Gives the fastest decoder that agrees with the model's own forward (`TOLERANCE`) in a self-test."""
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

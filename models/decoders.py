"""What the engine asks of a model: logits of next tokens, with keys and values kept per row. Three ways, best first.

- `FusedDecoder` (`fused_decoder`): a handwritten forward for Llama-shaped models, several times faster on small ones.
- `CachedDecoder` (`cached_decoder`): the model's own forward with a preallocated cache; almost every architecture.
- `RecomputeDecoder` (here): the model's own forward over the whole history; slow, and right for every causal model.

`decoder_choice` takes the first one that agrees with the model's plain forward.
Legend: B rows of a call, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IntArray = NDArray[np.int64]


def to_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """An array as a tensor where a model is; on the CPU it is not copied."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)


def counted(sizes: IntArray) -> IntArray:
    """Counts from 0 within groups that stand in one line: sizes 2, 3 give 0, 1, 0, 1, 2."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


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

    def share_prompt(self, source: int, targets: IntArray, length: int) -> None:
        """Lets target rows begin with all that a source row holds, its first `length` positions."""
        ...

    def refresh(self) -> None:
        """Takes over the model's weights after they changed; what rows hold is void."""
        ...


@runtime_checkable
class Verifier(Protocol):
    """A decoder that gives the logits after several tokens of its chunks."""

    @property
    def pays_per_token(self) -> bool:
        """Whether time goes into tokens, padding among them, as on a processor, and not into calls, as on a GPU."""
        ...

    def verify(self, rows: IntArray, starts: IntArray, chunks: list[IntArray], tails: IntArray) -> torch.Tensor:
        """Feeds chunks as `Decoder.prefill` does; gives the logits after each one's last `tails` tokens, in one line.

        A row is the same conversation as before, also at position 0.
        """
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

    def share_prompt(self, source: int, targets: IntArray, length: int) -> None:
        """See `Decoder.share_prompt`."""
        self.copy_rows(np.full_like(targets, source), targets, length)

    def refresh(self) -> None:
        """Nothing is kept that depends on weights."""

    @torch.no_grad()
    def _forward(self, rows_B: torch.Tensor, last_B: torch.Tensor) -> torch.Tensor:
        length = int(last_B.max()) + 1
        positions_T = torch.arange(length, device=rows_B.device)
        mask_BT = (positions_T[None] <= last_B[:, None]).long()
        output = self._model(input_ids=self._tokens_RT[rows_B, :length], attention_mask=mask_BT, use_cache=False)
        return output.logits[torch.arange(len(rows_B), device=rows_B.device), last_B]


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

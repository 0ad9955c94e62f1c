"""Segments of different length as padded batches of a bounded number of tokens.

Legend: B rows (one segment each), T tokens. Every [B, T] tensor is aligned with the tokens: entry t speaks of token t.
Rows are padded on the right. Under causal attention a token never sees what comes after it, so no attention mask is
needed, and the fast causal kernels apply. Packing several segments into one row is not done: it needs a dense
block-diagonal mask, which took 1.9 times as long as length-grouped rows (2 % padding) on a CPU and changes no result.
What rows have in common at their beginning is `shared_prompts`' subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.trajectories import Segment

LENGTH_STEP = 8
"""Rows whose lengths differ by less than this are shuffled among each other before they are cut into batches."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One segment with what the policy loss needs to know about it."""

    segment: Segment
    advantages_T: NDArray[np.float32]
    """Read at action tokens only, like the log-probabilities."""
    old_logprobs_T: NDArray[np.float32]
    """Log-probabilities under the policy that the ratio is taken against; read at action tokens only."""
    reference_logprobs_T: NDArray[np.float32]
    """The same under the reference policy."""
    trajectory: int = 0
    """Number of its trajectory: segments with the same number are one answer."""
    weight: float = 1.0
    """Multiplies the loss: the truncated probability ratio of training and rollout engine for the whole trajectory, and
    1 / its tokens where every trajectory counts once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenBatch:
    """Padded segments.

    Example: segments of 3 and 2 tokens give `input_ids_BT = [[5, 6, 7], [8, 9, 0]]`.
    """

    input_ids_BT: Tensor
    action_mask_BT: Tensor
    """True = the policy sampled this token (and it can be scored: the first token of a row never is)."""

    @staticmethod
    def from_segments(segments: Sequence[Segment], device: torch.device | str = "cpu") -> TokenBatch:
        """Pads segments on the right."""
        mask_BT = pad([segment.action_mask_T for segment in segments])
        mask_BT[:, 0] = False
        return TokenBatch(
            input_ids_BT=pad([segment.token_ids_T for segment in segments]).to(device, torch.long),
            action_mask_BT=mask_BT.to(device),
        )

    def token_mask(self, segments: Sequence[Segment]) -> Tensor:
        """[B, T], True at every token of the batch's segments that can be scored, whoever wrote it."""
        mask_BT = pad([np.ones(len(segment), dtype=np.bool_) for segment in segments])
        mask_BT[:, 0] = False
        return mask_BT.to(self.action_mask_BT.device)

    def action_tokens(self, rows: Sequence[NDArray[np.float32]]) -> Tensor:
        """Picks the entries at action tokens from one array per row: flat [N], in row-major order."""
        return pad(rows).to(self.action_mask_BT.device)[self.action_mask_BT]

    def spread(self, values_B: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        """Repeats one number per row at each of its action tokens: flat [N], in row-major order."""
        per_row = torch.tensor(values_B, dtype=dtype, device=self.action_mask_BT.device)
        return per_row.repeat_interleave(self.action_mask_BT.sum(dim=1))


def pad(rows: Sequence[NDArray[np.generic]]) -> Tensor:
    """Stacks 1-D arrays into one tensor, filled with 0 on the right."""
    padded = np.zeros((len(rows), max(map(len, rows))), dtype=rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


def token_budget_batches(
    lengths: Sequence[int], budget: int, generator: np.random.Generator, rows: Sequence[int] | None = None
) -> list[list[int]]:
    """Groups indices by similar length into batches of at most `budget` padded tokens, in random order.

    What is larger than the budget makes a batch of its own.

    Args:
        lengths: Tokens of each row, or of the longest row of what must stay together.
        budget: Rows times longest row, at most.
        generator: Decides which rows of similar length meet, and the order of the batches.
        rows: How many rows each index stands for, if not one.
    """
    similar = np.asarray(lengths, dtype=np.int64) // LENGTH_STEP
    order = np.lexsort((generator.random(len(lengths)), similar))
    batches: list[list[int]] = []
    current: list[int] = []
    width = height = 0
    for index in order.tolist():
        wider, more = max(width, lengths[index]), 1 if rows is None else rows[index]
        if current and wider * (height + more) > budget:
            batches.append(current)
            current, wider, height = [], lengths[index], 0
        current.append(index)
        width, height = wider, height + more
    if current:
        batches.append(current)
    return [batches[i] for i in generator.permutation(len(batches))]

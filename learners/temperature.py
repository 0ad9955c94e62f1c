"""The sampling temperature of each step of a run: constant, or moving from a first to a last value.

Sampling and loss use the same one: the loss divides the logits by the temperature that its tokens were sampled with.
Evaluation is not concerned; it samples at temperature 1.
"""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["linear", "cosine"]


def temperature_at(
    step: int, steps: int, start: float, final: float | None, *, share: float = 1.0, shape: Shape = "linear"
) -> float:
    """Gives the temperature of a step.

    The first step has `start`, the last one of the first `share` of the steps has `final`, and so do all that follow.
    With u from 0 to 1 in between: start + u (final - start), or with `cosine` the same with (1 - cos(pi u)) / 2 for u,
    which is flat at both ends.

    Args:
        step: Counted from 1.
        steps: Steps of the run.
        start: First temperature.
        final: Last temperature; None = it never changes.
        share: Share of the steps over which it moves; 0 = `final` from the first step on.
        shape: How it moves.
    """
    if final is None or final == start:
        return start
    moving = round(share * steps)
    if step >= moving:
        return final
    u = (step - 1) / (moving - 1)
    if shape == "cosine":
        u = (1 - math.cos(math.pi * u)) / 2
    return start + u * (final - start)

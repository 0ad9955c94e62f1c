"""How a positive weight follows what it is to steer: by bounded shares, within bounds."""

from __future__ import annotations

import math
from typing import Protocol


class Steering(Protocol):
    """The settings of a controller."""

    gain: float
    """How strongly a deviation acts."""
    limit: float
    """Greatest change of log(weight) in one step."""
    minimum: float
    maximum: float


def steered(weight: float, deviation: float, by: Steering) -> float:
    """Gives weight * exp(clip(gain * deviation, -limit, limit)), kept within its bounds."""
    change = max(-by.limit, min(by.limit, by.gain * deviation))
    return max(by.minimum, min(by.maximum, weight * math.exp(change)))

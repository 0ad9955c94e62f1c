"""Two agents on the same tasks: the difference of their success, its 95 % interval, and how surprising it would be.

Pure functions. Pairing by task takes out how hard each task is, which is most of what two rates vary by. With one
attempt per task and side, the test is McNemar's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .pass_rates import NORMAL_975, TaskCount

WIDEST = 200_000
"""Points of the exact distribution; differences are rounded to a grid where it would have more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """Side B against side A, over the tasks that both were scored on."""

    tasks: int
    share_a: float
    """Mean over tasks of solved attempts per attempt."""
    share_b: float
    low: float
    """The 95 % interval of the difference, `share_b - share_a`."""
    high: float
    p_value: float
    """Chance of a difference at least as large, in either direction, were the sides exchangeable task by task."""
    better: int
    """Tasks that B solved more often than A."""
    worse: int

    @property
    def difference(self) -> float:
        """`share_b - share_a`."""
        return self.share_b - self.share_a

    @property
    def direction(self) -> str:
        """`"up"` or `"down"` where the interval leaves out 0, else `"flat"`."""
        return "up" if self.low > 0 else "down" if self.high < 0 else "flat"


def compare_paired(a: Mapping[str, TaskCount], b: Mapping[str, TaskCount]) -> PairedComparison | None:
    """Compares two sides over the tasks (by name) that both have scored attempts at; None when there is none."""
    shared = [name for name, count in a.items() if count.n and name in b and b[name].n]
    if not shared:
        return None
    pairs = [(_exact(a[name]), _exact(b[name])) for name in shared]
    differences = [after - before for before, after in pairs]
    low, high = paired_interval([float(difference) for difference in differences])
    return PairedComparison(
        tasks=len(shared),
        share_a=float(sum(before for before, _ in pairs) / len(shared)),
        share_b=float(sum(after for _, after in pairs) / len(shared)),
        low=low,
        high=high,
        p_value=sign_flip_p_value(differences),
        better=sum(difference > 0 for difference in differences),
        worse=sum(difference < 0 for difference in differences),
    )


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of differences in [-1, 1], one per task.

    The adjusted Wald interval of Bonett and Price 2012 (doi 10.3102/1076998611411915), which Fagerland et al. 2014 (doi
    10.1002/sim.6148) recommend for pairs of successes: one task is added that only A solved, and one that only B did.
    Written over differences, it takes rates of several attempts too, and it has a width where all tasks agree.
    """
    adjusted = [*differences, 1.0, -1.0]
    mean = math.fsum(adjusted) / len(adjusted)
    variance = max(0.0, math.fsum(d * d for d in adjusted) / len(adjusted) - mean**2)
    half = NORMAL_975 * math.sqrt(variance / len(adjusted))
    return max(-1.0, mean - half), min(1.0, mean + half)


def sign_flip_p_value(differences: Sequence[Fraction]) -> float:
    """The two-sided p-value of Fisher's randomisation test: each task's difference might have had the other sign.

    It is exact, by the distribution of the sum over all sign patterns. Where differences are -1, 0 and 1 it is
    McNemar's exact test: the binomial test of how many of the discordant tasks B won.
    """
    steps = _whole_steps([difference for difference in differences if difference])
    if not steps:
        return 1.0
    total = sum(abs(step) for step in steps)
    observed = abs(sum(steps))
    chances = np.zeros(2 * total + 1)  # of each sum from -total to total
    chances[total] = 1.0
    for step in map(abs, steps):
        # what is pushed over an end is 0 there: the sum so far is smaller than the total by at least this step
        chances = 0.5 * (np.roll(chances, step) + np.roll(chances, -step))
    return min(
        1.0, float(chances[: total - observed + 1].sum() + chances[total + observed :].sum()) if observed else 1.0
    )


def _whole_steps(differences: Sequence[Fraction]) -> list[int]:
    """Differences as multiples of one step; rounded to a coarser one where too many would be needed."""
    scale = math.lcm(*(difference.denominator for difference in differences)) if differences else 1
    if 2 * scale * sum(abs(difference) for difference in differences) > WIDEST:
        scale = WIDEST // (2 * len(differences))
    steps = [round(difference * scale) for difference in differences]
    step = math.gcd(*steps) or 1
    return [number // step for number in steps if number]


def _exact(count: TaskCount) -> Fraction:
    return Fraction(count.wins, count.n)

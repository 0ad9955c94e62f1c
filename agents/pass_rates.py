"""Rates over tasks that were each attempted several times: success, pass@k, pass^k, and their 95 % intervals.

Pure functions of counts. The attempts at one task are alike, so intervals treat tasks, not attempts, as what was
sampled: they say what other tasks of the same kind would give. Nothing here knows how episodes are collected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..core.errors import ConfigError

NORMAL_975 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class TaskCount:
    """How often one task was solved: `wins` of `n` scored attempts."""

    wins: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.wins <= self.n:
            raise ValueError(f"wins={self.wins}: must be in 0..{self.n}")

    @property
    def share(self) -> float:
        """Solved attempts per attempt."""
        return self.wins / self.n


@dataclass(frozen=True, slots=True)
class Rate:
    """A mean over tasks with its 95 % interval."""

    value: float
    low: float
    high: float
    tasks: int
    """Tasks that it is the mean of; with none, the value is 0 and the interval (0, 1)."""


def pass_at_k(count: TaskCount, k: int) -> float:
    """The chance that at least one of k attempts succeeds, estimated without bias from `count.n >= k` attempts.

    `1 - C(n - c, k) / C(n, k)`: Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    _check_k(count, k)
    return 1.0 - math.comb(count.n - count.wins, k) / math.comb(count.n, k)


def pass_hat_k(count: TaskCount, k: int) -> float:
    """The chance that all of k attempts succeed, estimated without bias from `count.n >= k` attempts.

    `C(c, k) / C(n, k)`: Yao et al. 2024 (tau-bench), arXiv 2406.12045.
    """
    _check_k(count, k)
    return math.comb(count.wins, k) / math.comb(count.n, k)


def mean_pass_at_k(counts: Iterable[TaskCount], k: int) -> Rate:
    """pass@k over tasks; those with fewer than k scored attempts cannot be estimated and are left out."""
    usable = [count for count in counts if count.n >= k]
    return mean_over_tasks([pass_at_k(count, k) for count in usable], [count.n for count in usable])


def mean_pass_hat_k(counts: Iterable[TaskCount], k: int) -> Rate:
    """pass^k over tasks; those with fewer than k scored attempts cannot be estimated and are left out."""
    usable = [count for count in counts if count.n >= k]
    return mean_over_tasks([pass_hat_k(count, k) for count in usable], [count.n for count in usable])


def success_rate(counts: Iterable[TaskCount]) -> Rate:
    """Solved attempts per attempt, with an interval for attempts that come in clusters, one cluster per task."""
    tried = [count for count in counts if count.n]
    return mean_over_tasks([count.share for count in tried], [count.n for count in tried], weighted=True)


def mean_over_tasks(values: Sequence[float], attempts: Sequence[int], weighted: bool = False) -> Rate:
    """The mean of one value in [0, 1] per task, and its 95 % interval.

    The interval is Wilson's (1927) at the effective sample size `m = p (1 - p) / Var(p)`, where `Var` is the variance
    of the mean between tasks (a linearised ratio where weighted): Kish 1965; Korn and Graubard 1998 (Survey Methodology
    24:193); Miller 2024, arXiv 2411.00640, on evaluations. With one attempt per task, and where all attempts at a task
    agree, m is the number of tasks; we keep it to the number of attempts. Of few tasks (under twenty) the variance is
    hardly known, and one task says nothing of others: m is then 1.

    Args:
        values: The value of each task.
        attempts: How many attempts each value was estimated from.
        weighted: Whether a task counts in proportion to its attempts.
    """
    tasks = len(values)
    if not tasks:
        return Rate(0.0, 0.0, 1.0, 0)
    weights = [n / sum(attempts) if weighted else 1 / tasks for n in attempts]
    mean = math.fsum(weight * value for weight, value in zip(weights, values, strict=True))
    mean = min(1.0, max(0.0, mean))
    variance = math.fsum((w * (value - mean)) ** 2 for w, value in zip(weights, values, strict=True))
    independent, spread = 1 / math.fsum(weight * weight for weight in weights), mean * (1 - mean)
    if tasks > 1 and spread > 0:
        independent = sum(attempts) if spread > sum(attempts) * variance else spread / variance
    return Rate(mean, *score_interval(mean, independent), tasks)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927); (0, 1) when nothing was counted."""
    return score_interval(successes / n, n) if n else (0.0, 1.0)


def score_interval(share: float, n: float) -> tuple[float, float]:
    """The 95 % score interval of a share that is worth `n` independent observations (Wilson 1927)."""
    z2 = NORMAL_975**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_975 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _check_k(count: TaskCount, k: int) -> None:
    if not 1 <= k <= count.n:
        raise ConfigError(f"k={k}: must be in 1..{count.n}, the number of attempts at a task")

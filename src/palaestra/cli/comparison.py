"""Two success rates side by side: counts, 95 % intervals, and the interval of their difference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..agents.pass_rates import wilson_interval
from ..core.trajectories import Episode


@dataclass(frozen=True, slots=True)
class Proportion:
    """Successes out of `n` scored episodes; failures of infrastructure are in neither."""

    wins: int
    n: int

    @property
    def share(self) -> float:
        """Successes per episode."""
        return self.wins / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % score interval."""
        return wilson_interval(self.wins, self.n)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same tasks before and after training; None where there is no evaluation."""

    before: Proportion | None
    after: Proportion | None

    @property
    def delta(self) -> float | None:
        """Share after minus share before."""
        return self.after.share - self.before.share if self.before and self.after else None

    @property
    def delta_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the difference of two independent proportions (Newcombe 1998, method 10).

        The two sides share their tasks, which makes this interval too wide rather than too narrow.
        """
        if not (self.before and self.after):
            return None
        before, after = self.before, self.after
        difference = after.share - before.share
        before_low, before_high = before.interval
        after_low, after_high = after.interval
        down = math.hypot(after.share - after_low, before_high - before.share)
        up = math.hypot(after_high - after.share, before.share - before_low)
        return difference - down, difference + up

    @property
    def direction(self) -> str:
        """`"up"` or `"down"` where the interval of the difference leaves out 0, else `"flat"`; `""` with one side."""
        interval = self.delta_interval
        if interval is None:
            return ""
        return "up" if interval[0] > 0 else "down" if interval[1] < 0 else "flat"


def proportion(episodes: Iterable[Episode]) -> Proportion | None:
    """Counts the scored episodes; None when there is none."""
    scored = [bool(episode.success) for episode in episodes if not episode.failed]
    return Proportion(sum(scored), len(scored)) if scored else None


def compare(before: Sequence[Episode], after: Sequence[Episode]) -> Comparison:
    """Compares all episodes."""
    return Comparison(proportion(before), proportion(after))


def compare_by_level(before: Sequence[Episode], after: Sequence[Episode]) -> dict[str, Comparison]:
    """Compares the episodes of each `"family/level"`, in order of family and level."""
    groups = sorted({(episode.family, episode.level) for episode in (*before, *after)})

    def of(group: tuple[str, int], episodes: Sequence[Episode]) -> list[Episode]:
        return [episode for episode in episodes if (episode.family, episode.level) == group]

    return {f"{group[0]}/{group[1]}": compare(of(group, before), of(group, after)) for group in groups}

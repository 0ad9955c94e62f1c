"""The same task before and after training, and which of them are worth reading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..core.trajectories import Episode

Outcome = Literal["learned", "forgot", "unsolved", "kept"]
_WEIGHTS: dict[Outcome, int] = {"learned": 8, "forgot": 3, "unsolved": 3, "kept": 2}
"""How many of each outcome are shown out of 16; what one outcome lacks goes to the others, in this order."""
_TELLING_TURNS = 4
"""Episodes of about so many turns show a run, a repair and a submission without being long."""


@dataclass(frozen=True, slots=True)
class EpisodePair:
    """Two scored episodes of one task."""

    before: Episode
    after: Episode

    @property
    def outcome(self) -> Outcome:
        """What training changed on this task."""
        if self.before.success:
            return "kept" if self.after.success else "forgot"
        return "learned" if self.after.success else "unsolved"


def pair_episodes(before: Iterable[Episode], after: Iterable[Episode]) -> list[EpisodePair]:
    """Pairs episodes by task, leaving out failures of infrastructure and tasks with one side only."""
    by_task = {episode.task_id: episode for episode in before if not episode.failed}
    return [
        EpisodePair(by_task[episode.task_id], episode)
        for episode in after
        if not episode.failed and episode.task_id in by_task
    ]


def choose_pairs(pairs: Sequence[EpisodePair], limit: int) -> dict[Outcome, list[EpisodePair]]:
    """Picks at most `limit` pairs to read: mostly what was learned, and some of every other outcome."""
    ranked: dict[Outcome, list[EpisodePair]] = {
        outcome: _telling_first([p for p in pairs if p.outcome == outcome]) for outcome in _WEIGHTS
    }
    total = sum(_WEIGHTS.values())
    chosen: dict[Outcome, list[EpisodePair]] = {
        outcome: ranked[outcome][: limit * weight // total] for outcome, weight in _WEIGHTS.items()
    }
    for outcome, candidates in ranked.items():
        spare = limit - sum(map(len, chosen.values()))
        chosen[outcome] = candidates[: len(chosen[outcome]) + spare]
    return {outcome: picked for outcome, picked in chosen.items() if picked}


def telling_pair(pairs: Sequence[EpisodePair]) -> EpisodePair | None:
    """One task that the policy got wrong before and right after; None when there is none."""
    learned = _telling_first([pair for pair in pairs if pair.outcome == "learned"])
    return learned[0] if learned else None


def _telling_first(pairs: Sequence[EpisodePair]) -> list[EpisodePair]:
    """Orders pairs by how readable they are, levels taking turns."""
    levels: dict[tuple[str, int], list[EpisodePair]] = {}
    for pair in sorted(pairs, key=_distance_from_telling):
        levels.setdefault((pair.after.family, pair.after.level), []).append(pair)
    queues = [levels[level] for level in sorted(levels)]
    return [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]


def _distance_from_telling(pair: EpisodePair) -> int:
    return abs(len(pair.after.trajectories[0].turns) - _TELLING_TURNS)

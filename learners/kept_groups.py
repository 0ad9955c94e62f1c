"""Keeps some groups of training episodes with the advantages that they were given, to be read after the run.

One group a step, at steps spread over the run: the first one that teaches something, else the first. Episodes that
infrastructure ended are kept at any step, up to `MAX_FAILURES`. Advantages stand in `Episode.info["advantages"]`: for
each trajectory and each of its segments, runs of sampled tokens with one value, `[start, stop, advantage]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..agents.episode_origin import EpisodeOrigin
from ..agents.store import KIND
from ..core.errors import StorageError
from ..core.records import RecordWriter, episode_to_record, read_about, read_records, write_records
from ..core.trajectories import Episode, Group, Trajectory

if TYPE_CHECKING:
    from .credit import CreditedSegment

FILE = "grpo_train"
"""Name of the file among a run's episodes."""
MAX_FAILURES = 20
Run = tuple[int, int, float]


class GroupKeeper:
    """Called with the groups of each step and what credit they got; writes what is to be kept.

    A resumed run replaces what it does again.

    Args:
        path: The episodes file.
        origin: The environment of training.
        steps: Steps of the whole run.
        wanted: Groups to keep; 0 = none, and no file.
    """

    def __init__(self, path: Path, origin: EpisodeOrigin, steps: int, wanted: int) -> None:
        self._path, self._origin = path, origin
        self._steps = kept_steps(steps, wanted)
        self._has_written = False
        self._failures = 0

    def __call__(self, step: int, groups: Sequence[Group], credited: Sequence[CreditedSegment]) -> None:
        """Keeps what is wanted of a step.

        Raises:
            StorageError: The file cannot be written.
        """
        if not self._steps:
            return
        chosen = _telling(groups, credited) if step in self._steps else None
        episodes = list(chosen.episodes) if chosen else []
        for group in groups:
            episodes += self._failed(group) if group is not chosen else ()
        if not episodes:
            return
        if not self._has_written:
            _drop_from(self._path, step)
            self._has_written = True
        by_segment = {id(item.segment): item for item in credited}
        with RecordWriter(self._path, KIND, append=True, about=self._origin.about()) as writer:
            for episode in episodes:
                writer.write(episode_to_record(_with_credit(episode, step, by_segment)))

    def _failed(self, group: Group) -> list[Episode]:
        failed = [episode for episode in group.episodes if episode.failed][: MAX_FAILURES - self._failures]
        self._failures += len(failed)
        return failed


def kept_steps(steps: int, wanted: int) -> frozenset[int]:
    """Which of the steps 1..`steps` are kept: `wanted` of them, evenly spread, the first and the last included."""
    if wanted < 1 or steps < 1:
        return frozenset()
    return frozenset(round(float(step)) for step in np.linspace(1, steps, min(wanted, steps)))


def advantage_runs(item: CreditedSegment) -> list[Run]:
    """The advantages of a segment's sampled tokens, as runs of one value."""
    runs: list[Run] = []
    for position in np.flatnonzero(item.segment.action_mask_T).tolist():
        value = round(float(item.advantages_T[position]), 6)
        if runs and runs[-1][1] == position and runs[-1][2] == value:
            runs[-1] = (runs[-1][0], position + 1, value)
        else:
            runs.append((position, position + 1, value))
    return runs


def _telling(groups: Sequence[Group], credited: Sequence[CreditedSegment]) -> Group | None:
    informative = {id(item.segment) for item in credited if item.informative}

    def teaches(group: Group) -> bool:
        trajectories = (trajectory for episode in group.episodes for trajectory in episode.trajectories)
        return any(id(segment) in informative for trajectory in trajectories for segment in trajectory.segments)

    return next((group for group in groups if teaches(group)), groups[0] if groups else None)


def _with_credit(episode: Episode, step: int, credited: Mapping[int, CreditedSegment]) -> Episode:
    info: dict[str, Any] = {**episode.info, "step": step}
    if not episode.failed:
        info["advantages"] = [list(_runs_of(trajectory, credited)) for trajectory in episode.trajectories]
    return dataclasses.replace(episode, info=info)


def _runs_of(trajectory: Trajectory, credited: Mapping[int, CreditedSegment]) -> Iterator[list[list[float]]]:
    for segment in trajectory.segments:
        item = credited.get(id(segment))
        yield [] if item is None else [list(run) for run in advantage_runs(item)]


def _drop_from(path: Path, step: int) -> None:
    """Forgets the episodes of this step and of later ones."""
    if not path.is_file():
        return
    kept = [record for record in read_records(path, KIND) if record.get("info", {}).get("step", 0) < step]
    temporary = path.with_name(path.name + ".tmp")
    write_records(temporary, KIND, kept, about=read_about(path, KIND))
    try:
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error

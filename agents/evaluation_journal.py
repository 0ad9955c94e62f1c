"""Episodes of an evaluation kept as they end, so that one that was killed goes on and repeats nothing.

The file is an ordinary episodes file; its header says how the evaluation was set up. While it grows, episodes stand in
the order in which they ended; a finished evaluation puts them in the order of its tasks, each exactly once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..core.errors import ConfigError, StorageError
from ..core.records import RecordWriter, episode_to_record, read_about, write_records
from ..core.trajectories import Episode
from .store import KIND, load_episodes

AttemptKey = tuple[int, int]
"""Number of the task and of the attempt at it, in one evaluation."""
MAY_GROW = ("n", "samples")
"""Settings that may be larger when an evaluation is continued: they only add episodes."""
MAY_CHANGE = ("base_url", "tasks")
"""A server or a task file may have moved: the model counts by its name, the file by its content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One episode that an evaluation is made of.

    Example: the second of several attempts at the first task::

        Attempt(task_id="compose:heldout:2:17", seed=5, group=0, replica=1)
    """

    task_id: str
    seed: int
    group: int
    """Number of the task in this evaluation."""
    replica: int
    """Which attempt at the task this is."""

    @property
    def key(self) -> AttemptKey:
        """What names it within its evaluation; `attempt_key` finds it again in an episode."""
        return self.group, self.replica


def attempt_key(episode: Episode) -> AttemptKey | None:
    """Which attempt of its evaluation an episode is; None where it does not say."""
    group, replica = episode.info.get("group"), episode.info.get("replica")
    return (group, replica) if isinstance(group, int) and isinstance(replica, int) else None


class Journal:
    """Episodes by attempt, in memory."""

    def __init__(self) -> None:
        self.done: dict[AttemptKey, Episode] = {}

    def add(self, episode: Episode) -> None:
        """Keeps an episode that has just ended."""
        key = attempt_key(episode)
        assert key is not None, "an evaluation's episodes say which attempts they are"
        self.done[key] = episode

    def finish(self, episodes: Iterable[Episode]) -> None:
        """Says that the evaluation is complete, and which its episodes are, in order."""

    def close(self) -> None:
        """Frees what it holds besides memory; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def missing(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Gives the attempts that have no episode yet."""
        return [attempt for attempt in attempts if attempt.key not in self.done]

    def episodes(self, attempts: Sequence[Attempt]) -> list[Episode]:
        """Gives the episodes of attempts, all of which have one, in their order."""
        return [self.done[attempt.key] for attempt in attempts]


class FileJournal(Journal):
    """Episodes in a file too, each as one line that is written at once; nothing is written before the first ends.

    Args:
        path: The episodes file.
        about: How the evaluation is set up, as JSON data.
        resume: Take over what the file holds. Failures of infrastructure are not taken over: they are tried again.

    Raises:
        ConfigError: The file to continue holds an evaluation that was set up differently.
        RecordError: It is damaged, or no episodes file.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], resume: bool) -> None:
        super().__init__()
        self.path = path
        self.about: dict[str, Any] = json.loads(json.dumps(about, default=str))
        self._writer: RecordWriter | None = None
        self._append = resume and path.is_file() and self._take_over()

    def add(self, episode: Episode) -> None:
        """Keeps an episode that has just ended, on disk before this returns."""
        super().add(episode)
        if self._writer is None:
            self._writer = RecordWriter(self.path, KIND, append=self._append, about=self.about)
        self._writer.write(episode_to_record(episode))

    def finish(self, episodes: Iterable[Episode]) -> None:
        """Puts the file in order: these episodes and no others. A device or pipe stays as it is.

        Raises:
            StorageError: The file cannot be written.
        """
        self.close()
        if self.path.exists() and not self.path.is_file():
            return
        temporary = self.path.with_name(self.path.name + ".tmp")
        write_records(temporary, KIND, map(episode_to_record, episodes), about=self.about)
        try:
            os.replace(temporary, self.path)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file; may be called twice."""
        if self._writer is not None:
            self._writer.close()
        self._writer, self._append = None, True

    def _take_over(self) -> bool:
        """Reads what the file holds; False when that is not one whole line, so that it can be written anew."""
        about, episodes = read_about(self.path, KIND), list(load_episodes(self.path))
        if about is None and not episodes:
            return False
        self._check_settings(about)
        known = ((attempt_key(episode), episode) for episode in episodes if not episode.failed)
        self.done = {key: episode for key, episode in known if key is not None}
        return True

    def _check_settings(self, before: Mapping[str, Any] | None) -> None:
        if before is None:
            raise ConfigError(f"--resume: {self.path} does not say how it was made; choose another --save file")
        for name, now in self.about.items():
            then = before.get(name)
            grown = name in MAY_GROW and isinstance(then, int) and then <= now
            if then != now and not grown and name not in MAY_CHANGE:
                raise ConfigError(
                    f"--resume: {self.path} was made with {name}={json.dumps(then)}, not {json.dumps(now)}; "
                    "give the same options, or another --save file"
                )

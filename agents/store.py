"""Episodes in files: JSON lines of kind `episodes`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..core.records import episode_from_record, episode_to_record, read_records, write_records
from ..core.trajectories import Episode
from .episode_origin import EpisodeOrigin

KIND = "episodes"


def save_episodes(path: str | Path, episodes: Iterable[Episode], origin: EpisodeOrigin | None = None) -> int:
    """Writes episodes to a file and gives their number.

    Args:
        path: The file.
        episodes: What to write.
        origin: The environment that they were played in, for those who want to play them again.

    Raises:
        StorageError: The file cannot be written.
    """
    about = None if origin is None else origin.about()
    return write_records(path, KIND, (episode_to_record(episode) for episode in episodes), about=about)


def load_episodes(path: str | Path) -> Iterator[Episode]:
    """Gives the episodes of a file, one by one.

    Raises:
        RecordError: The file is missing, damaged, or holds something else.
    """
    for record in read_records(path, KIND):
        yield episode_from_record(record)

"""Where episodes to be played again come from, and the environment that they were played in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..agents.episode_origin import EpisodeOrigin, origin_of
from ..agents.store import KIND
from ..core.errors import ConfigError, RecordError, did_you_mean
from ..core.records import read_about
from ..core.trajectories import Episode
from .report_data import EPISODE_FILES, read_episodes
from .run_settings import RECIPE_FILE, run_environment

FIRST_CHOICES = ("policy_heldout", "sft_heldout", *EPISODE_FILES)
"""Files of a run folder, in the order in which they are looked for."""


@dataclass(frozen=True, slots=True)
class Numbered:
    """An episode and its number in its file, counted from 1."""

    number: int
    episode: Episode


@dataclass(frozen=True, slots=True)
class FoundEpisodes:
    """The episodes of one file."""

    path: Path
    episodes: Sequence[Numbered]
    origin: EpisodeOrigin | None
    """None where neither the file nor a run's recipe says it."""

    def made_in(self, env_id: str, keywords: Mapping[str, Any]) -> EpisodeOrigin:
        """The environment that is to be made: the recorded one, with what the user names laid over it.

        Raises:
            ConfigError: It is not known.
        """
        if env_id and (self.origin is None or env_id != self.origin.env_id):
            families = list(dict.fromkeys(one.episode.family for one in self.episodes if one.episode.family))
            known = {"families": families} if families and "tasks" not in keywords else {}
            return EpisodeOrigin(env_id=env_id, keywords={**known, **keywords})
        if self.origin is None:
            raise ConfigError(f"{self.path} does not name its environment: add --env-id and --env KEY=VALUE")
        return EpisodeOrigin(env_id=self.origin.env_id, keywords={**self.origin.keywords, **keywords})


def find_episodes(source: Path, name: str = "") -> FoundEpisodes:
    """Reads the episodes of a file, or of a run folder.

    Args:
        source: A file, or a run folder.
        name: The file of the run folder, without `.jsonl`; the first that is there of `FIRST_CHOICES` by default.

    Raises:
        RecordError: There are none, or the file is damaged.
        ConfigError: `name` is none of the run's files.
    """
    if name and not source.is_dir():
        raise ConfigError(f"--file={name}: {source} is no run folder")
    path = _file_of_run(source, name) if source.is_dir() else source
    episodes = [Numbered(number, episode) for number, episode in enumerate(read_episodes(path), 1)]
    return FoundEpisodes(path, episodes, origin_of(read_about(path, KIND)) or _origin_of_run(path))


def _file_of_run(folder: Path, name: str) -> Path:
    there = {path.stem: path for path in sorted((folder / "episodes").glob("*.jsonl"))}
    if not there:
        raise RecordError(f"{folder} holds no episodes: there is no file episodes/*.jsonl")
    if name and name not in there:
        raise ConfigError(f"--file={name}{did_you_mean(name, there)}")
    first = next((choice for choice in FIRST_CHOICES if choice in there), next(iter(there)))
    return there[name or first]


def _origin_of_run(path: Path) -> EpisodeOrigin | None:
    """What the recipe of the run that an older file lies in says."""
    recipe = path.resolve().parent.parent / RECIPE_FILE
    if path.resolve().parent.name != "episodes" or not recipe.is_file():
        return None
    return run_environment(recipe)

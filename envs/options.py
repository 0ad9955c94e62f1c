"""Keywords that all environments share, and the tasks that they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

from ..core.errors import ConfigError, did_you_mean
from ..core.tasks import SPLITS, Split, Task, TaskFamily, TaskSet, fixed_task_set
from .actions import PARSERS


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvOptions:
    """Keywords that all environments share; plain data, so that they cross processes and fit into recipes."""

    families: Sequence[str] = ()
    """Task families to draw from; empty means the environment's default."""
    levels: Sequence[int] = ()
    """Levels to draw from; a level that is listed twice is drawn twice as often. Empty means all."""
    split: str = "train"
    tasks: str | None = None
    """Path of a JSON-lines file with tasks of one's own, instead of families."""
    split_tasks: bool = False
    """Deal tasks of a file that names no splits out to them, eight tenths to train on; else every split has all."""
    max_turns: int = 10
    """Running out is part of the task: the episode terminates with the grade of what stands."""
    max_chars: int = 100_000
    """Greatest length of one action, in characters; longer ones are malformed."""
    parser: str = "auto"
    prompt_style: str = "full"
    """`full` teaches the tools and the turn budget; `compact` shows the task's sentence alone."""
    on_failure: str = "raise"
    """What a failure of infrastructure does: raise `EnvironmentFailure`, or truncate with `info["failure"]`."""
    shaping: Mapping[str, Any] | None = None
    """Rewards for progress, where the environment measures any: fields of `palaestra.rewards.shaping.Shaping`."""
    render_mode: str | None = None

    def __post_init__(self) -> None:
        _check_list("families", self.families, str)
        _check_list("levels", self.levels, int)
        if not isinstance(self.tasks, str | PathLike | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"tasks={self.tasks!r}: must be the path of a file")
        for name, allowed in (
            ("split", SPLITS),
            ("parser", PARSERS),
            ("prompt_style", ("full", "compact")),
            ("on_failure", ("raise", "info")),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"{name}={value!r}{did_you_mean(str(value), allowed)}")
        if type(self.split_tasks) is not bool:
            raise ConfigError(f"split_tasks={self.split_tasks!r}: must be True or False")
        for name in ("max_turns", "max_chars"):
            value: object = getattr(self, name)
            if type(value) is not int:
                raise ConfigError(f"{name}={value!r}: must be a whole number")
            if value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1")


def _check_list(name: str, value: object, kind: type) -> None:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    items = cast(Sequence[object], value) if is_list else (None,)
    if any(type(item) is not kind for item in items):
        raise ConfigError(f"{name}={value!r}: must be a list of {'names' if kind is str else 'whole numbers'}")


def task_set_of(
    options: EnvOptions,
    split: Split,
    families: Mapping[str, TaskFamily],
    load_tasks: Callable[[Path], list[Task]] | None,
) -> TaskSet:
    """The tasks of a split: a file's, or those of families.

    Raises:
        ConfigError: An option names no family, or the environment takes no file.
        TaskError: The file cannot be read, or holds no task for the split.
    """
    if options.tasks is not None:
        if load_tasks is None:
            raise ConfigError("tasks: this environment takes no task file")
        return fixed_task_set(load_tasks(Path(options.tasks)), split, deal=options.split_tasks)
    names = list(options.families) or list(families)[:1]
    for name in names:
        if name not in families:
            raise ConfigError(f"families={name!r}{did_you_mean(name, families)}")
    return TaskSet(split=split, families=tuple(families[name] for name in names), levels=tuple(options.levels))

"""Dashboards as sinks of metrics: Weights & Biases and Trackio, imported where a recipe names them (`log_to`).

A dashboard is for watching: whatever fails there (the network, a login, a full quota) is one line on the screen, and
training goes on without it. A resumed run goes on under its own id, which is kept in the run folder; steps that it does
again are logged again. Where and how they store things is theirs to say (`WANDB_MODE=offline`, `TRACKIO_DIR`, ...).
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import numbers
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import ConfigError, StorageError
from ..core.time_limits import in_time
from .config import Recipe, recipe_to_data
from .metrics import Sink

ID_FILE = "run_id"
START_S = 60.0
"""How long a dashboard may take to start, and to finish."""
Warn = Callable[[str], None]


class Board(Protocol):
    """One run in one dashboard; any method may raise anything."""

    def log(self, values: Mapping[str, float], stage: str, step: int) -> None:
        """Takes numbers by name."""
        ...

    def finish(self) -> None:
        """Hands over what is left."""
        ...


def check_installed(names: Sequence[str]) -> None:
    """Refuses dashboards whose packages are missing.

    Raises:
        ConfigError: One line with the command that installs it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"log_to: {name} is not installed; run: pip install {name}")


def dashboards(recipe: Recipe, resume: bool, warn: Warn) -> list[Sink]:
    """The sinks that a recipe names; a dashboard that does not start is left out, with a word to the user.

    Args:
        recipe: `log_to`, `project`, `run_name`; the whole recipe is the run's configuration there.
        resume: Whether the run goes on: its id stays the same.
        warn: Shows one line.

    Raises:
        StorageError: The id cannot be kept in the run folder.
    """
    if not recipe.log_to:
        return []
    run_id = _run_id(Path(recipe.run) / ID_FILE, resume)
    return [DashboardSink(name, lambda name=name: _BOARDS[name](recipe, run_id), warn) for name in recipe.log_to]


class DashboardSink:
    """A sink that never fails: the first error ends it, and is said once.

    Args:
        name: Of the dashboard.
        start: Makes the run there.
        warn: Shows one line.
    """

    def __init__(self, name: str, start: Callable[[], Board], warn: Warn) -> None:
        self._name, self._warn = name, warn
        self._board: Board | None = None

        def begin() -> None:
            self._board = start()

        self._guarded(begin)

    def log(self, row: Mapping[str, Any]) -> None:
        """Hands on all finite numbers of a row, named `stage/key`."""
        stage, step = str(row["stage"]), int(row["step"])
        values = {f"{stage}/{key}": float(value) for key, value in row.items() if _is_figure(key, value)}
        board = self._board
        if board is not None:
            self._guarded(lambda: board.log(values, stage, step))

    def close(self) -> None:
        """Ends the run there; may be called twice."""
        board = self._board
        if board is not None:
            self._guarded(board.finish)
        self._board = None

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            in_time(act, START_S, f"palaestra-{self._name}")
        except Exception as error:
            self._board = None
            said = " ".join(str(error).split()) or type(error).__name__
            self._warn(f"{self._name} gets no more metrics ({said[:300]}); the run goes on without it")


class WandbBoard:
    """A run at Weights & Biases; each stage has steps of its own."""

    def __init__(self, recipe: Recipe, run_id: str) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=recipe.project,
            name=_run_name(recipe),
            id=run_id,
            resume="allow",
            dir=str(Path(recipe.run).resolve()),
            config=recipe_to_data(recipe),
            settings=wandb.Settings(console="off", init_timeout=START_S / 2, login_timeout=START_S / 2),
        )
        self._stages: set[str] = set()

    def log(self, values: Mapping[str, float], stage: str, step: int) -> None:
        """Logs without a step of wandb's own, which may never go back; charts are drawn over `stage/step`."""
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({**values, f"{stage}/step": step})

    def finish(self) -> None:
        """Ends the run."""
        self._run.finish()


class TrackioBoard:
    """A run in Trackio, which knows runs by their names: the id is part of it."""

    def __init__(self, recipe: Recipe, run_id: str) -> None:
        trackio: Any = importlib.import_module("trackio")
        self._run = trackio.init(
            project=recipe.project,
            name=f"{_run_name(recipe)}-{run_id}",
            config=recipe_to_data(recipe),
            resume="allow",
            embed=False,
        )

    def log(self, values: Mapping[str, float], stage: str, step: int) -> None:
        """Logs at the stage's step."""
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        """Ends the run."""
        self._run.finish()


_BOARDS: dict[str, Callable[[Recipe, str], Board]] = {"wandb": WandbBoard, "trackio": TrackioBoard}


def _run_name(recipe: Recipe) -> str:
    return recipe.run_name or Path(recipe.run).resolve().name


def _run_id(path: Path, resume: bool) -> str:
    """The id that is kept in a file; a new run gets a new one."""
    try:
        if resume and path.is_file() and (kept := path.read_text(encoding="utf-8").strip()):
            return kept
        made = uuid.uuid4().hex[:8]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made + "\n", encoding="utf-8")
        return made
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _is_figure(key: str, value: Any) -> bool:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and key not in ("stage", "step") and math.isfinite(value)

"""Metrics of a run: one JSON line per logged step, and the same numbers as TensorBoard events.

A row is `{"stage": "grpo", "step": 12, "loss": ..., ...}`. NaN is written as null. A resumed run continues both files;
rows beyond the step that it resumes from are dropped.
"""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import StorageError

FILE_NAME = "metrics.jsonl"
Row = dict[str, Any]


class Sink(Protocol):
    """Somewhere that rows go: a file, a dashboard."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Takes one row with keys `stage` and `step` and numbers under other keys."""
        ...

    def close(self) -> None:
        """Flushes and closes; may be called twice."""
        ...


class MetricsWriter:
    """Writes rows to `metrics.jsonl` and TensorBoard files in a run folder, and to further sinks.

    Args:
        folder: The run folder.
        enabled: False makes every method a no-op (all processes but the first).
        resume: Continue the files that are there; False starts new ones.
        sinks: Further sinks.

    Raises:
        StorageError: The folder cannot be written.
    """

    def __init__(
        self, folder: str | Path, *, enabled: bool = True, resume: bool = False, sinks: Sequence[Sink] = ()
    ) -> None:
        self._folder = Path(folder)
        self._sinks: list[Sink] = []
        if enabled:
            self._json = JsonLinesSink(self._folder / FILE_NAME, resume)
            self._sinks = [self._json, *_tensorboard(self._folder / "tb"), *sinks]

    def log(self, row: Mapping[str, Any]) -> None:
        """Writes one row; it must have `stage` and `step`."""
        for sink in self._sinks:
            sink.log(row)

    def drop_after(self, stage: str, step: int) -> None:
        """Forgets rows of this stage beyond `step`, and everything that was logged after the first of them."""
        if self._sinks:
            self._json.drop_after(stage, step)

    def close(self) -> None:
        """Closes all sinks; may be called twice."""
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(folder: str | Path) -> list[Row]:
    """Gives the rows of a run folder; half a line at the end, left by a killed process, is skipped."""
    try:
        text = (Path(folder) / FILE_NAME).read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot read {Path(folder) / FILE_NAME}: {error.strerror}") from error
    return _parse(text)


class JsonLinesSink:
    """Appends rows to a file, each flushed as a whole line."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if resume and path.exists():
                self._rewrite(_parse(path.read_text(encoding="utf-8")))
            self._file = path.open("a" if resume else "w", encoding="utf-8")
        except OSError as error:
            raise self._error(error) from error

    def log(self, row: Mapping[str, Any]) -> None:
        """Writes one line."""
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            raise self._error(error) from error

    def drop_after(self, stage: str, step: int) -> None:
        """Cuts the file before the first row of this stage beyond `step`."""
        rows = _parse(self._path.read_text(encoding="utf-8"))
        beyond = [row.get("stage") == stage and row.get("step", 0) > step for row in rows]
        if True not in beyond:
            return
        try:
            self._file.close()
            self._rewrite(rows[: beyond.index(True)])
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _rewrite(self, rows: Sequence[Row]) -> None:
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(map(_line, rows)), encoding="utf-8")
        os.replace(temporary, self._path)

    def _error(self, error: OSError) -> StorageError:
        return StorageError(f"cannot write {self._path}: {error.strerror}")


class TensorBoardSink:
    """Writes numbers as TensorBoard scalars named `stage/key`."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, row: Mapping[str, Any]) -> None:
        """Writes all finite numbers of a row."""
        for key, value in row.items():
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if key not in ("stage", "step") and is_number and math.isfinite(value):
                self._writer.add_scalar(f"{row['stage']}/{key}", float(value), global_step=int(row["step"]))

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()


def _tensorboard(folder: Path) -> list[Sink]:
    """A TensorBoard sink where the package is installed, else nothing."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        return []
    try:
        return [TensorBoardSink(SummaryWriter(str(folder)))]
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}") from error


def _line(row: Mapping[str, Any]) -> str:
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(clean, allow_nan=False) + "\n"


def _parse(text: str) -> list[Row]:
    """Whole lines only: what follows the last newline was never finished."""
    return [json.loads(line) for line in text.split("\n")[:-1] if line]

"""Metrics of a run: one JSON line per logged step, and the same numbers as TensorBoard events.

A row is `{"stage": "grpo", "step": 12, "loss": ..., ...}`. NaN is written as null. A resumed run continues both files;
rows of `metrics.jsonl` from the step on that it does again are dropped.
"""

from __future__ import annotations

import contextlib
import json
import math
import numbers
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import RecordError, StorageError

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
            self._sinks = [self._json]
            try:
                self._sinks += [*_tensorboard(self._folder / "tb"), *sinks]
            except StorageError:
                self.close()
                raise

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
    """Gives the rows of a run folder; half a line at the end, left by a killed process, is skipped.

    Raises:
        RecordError: The file cannot be read, or another line is damaged; the message names it.
    """
    return _read(Path(folder) / FILE_NAME)


class JsonLinesSink:
    """Appends rows to a file, each flushed as a whole line."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self._continued: set[str] | None = set() if resume else None
        """Stages that have logged a row since the resume; None in a new run."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if resume and path.exists():
                self._rewrite(_read(path))
            self._file = path.open("a" if resume else "w", encoding="utf-8")
        except OSError as error:
            raise self._error(error) from error

    def log(self, row: Mapping[str, Any]) -> None:
        """Writes one line; the first of a stage after a resume takes the place of what was logged from there on."""
        stage = str(row["stage"])
        if self._continued is not None and stage not in self._continued:
            self._continued.add(stage)
            self.drop_after(stage, row["step"] - 1)
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            raise self._error(error) from error

    def drop_after(self, stage: str, step: int) -> None:
        """Cuts the file before the first row of this stage beyond `step`."""
        rows = _read(self._path)
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
        with contextlib.suppress(OSError):  # `log` has flushed, or has said why it could not
            self._file.close()

    def _rewrite(self, rows: Sequence[Row]) -> None:
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(map(_line, rows)), encoding="utf-8")
        os.replace(temporary, self._path)

    def _error(self, error: OSError) -> StorageError:
        return StorageError(f"cannot write {self._path}: {error.strerror}")


class TensorBoardSink:
    """Writes numbers as TensorBoard scalars named `stage/key`, in this thread.

    torch's and TensorBoard's own writers have a thread, which a full disk kills with a traceback and without a word to
    the caller.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        events: Any = event_pb2  # protobuf makes the classes on import, which no static tool sees
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error
        self._records = RecordWriter(self._file)
        try:
            self._write(file_version="brain.Event:2")
        except StorageError:
            self.close()
            raise

    def log(self, row: Mapping[str, Any]) -> None:
        """Writes all finite numbers of a row."""
        values = [
            self._summary.Value(tag=f"{row['stage']}/{key}", simple_value=float(value))
            for key, value in row.items()
            if key not in ("stage", "step") and _is_finite(value)
        ]
        self._write(step=int(row["step"]), summary=self._summary(value=values))

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # `log` has flushed, or has said why it could not
            self._file.close()

    def _write(self, **content: Any) -> None:
        try:
            self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
            self._file.flush()
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _tensorboard(folder: Path) -> list[Sink]:
    """A TensorBoard sink where the package is installed, else nothing."""
    try:
        return [TensorBoardSink(folder)]
    except ImportError:
        return []


def _line(row: Mapping[str, Any]) -> str:
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(clean, allow_nan=False) + "\n"


def _read(path: Path) -> list[Row]:
    """Whole lines only: what follows the last newline was never finished."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is damaged: {error}") from error
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            row: Any = json.loads(line) if line else {}
        except ValueError as error:
            raise RecordError(f"{path}, line {number}: not JSON ({error}); delete the line") from error
        if not isinstance(row, dict):
            raise RecordError(f"{path}, line {number}: expected a JSON object; delete the line")
        if row:
            rows.append(row)
    return rows

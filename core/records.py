"""JSON-lines files with a schema version: one header line, then one record per line.

A file that a killed process was writing may end in half a line; readers drop that line and keep the rest. Any other
damage is an error that names the line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from .errors import RecordError, StorageError
from .messages import Message
from .trajectories import Episode, Sampling, Segment, Trajectory, Turn

VERSION = 1
Record = dict[str, Any]


class RecordWriter:
    """Appends records of one kind to a file; each is flushed as a whole line.

    Raises:
        StorageError: The file cannot be created or written (no permission, full disk).
    """

    def __init__(self, path: str | Path, kind: str, append: bool = False) -> None:
        self.path, self.kind = Path(path), kind
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not (append and self.path.exists() and self.path.stat().st_size)
            if not fresh:
                _drop_torn_line(self.path)
            self._file: IO[str] = self.path.open("w" if fresh else "a", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error
        if fresh:
            self.write({"schema": f"palaestra.{kind}", "version": VERSION})

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record."""
        try:
            self._file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file; may be called twice."""
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_records(path: str | Path, kind: str, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes a whole file and gives the number of records."""
    count = 0
    with RecordWriter(path, kind) as writer:
        for record in records:
            writer.write(record)
            count += 1
    return count


def read_records(path: str | Path, kind: str) -> Iterator[Record]:
    """Gives the records of a file, one by one.

    Raises:
        RecordError: The file is missing, of another kind or version, or damaged; the message names the line.
    """
    path = Path(path)
    try:
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, 1):
            try:
                record: Any = json.loads(line)
            except ValueError as error:
                if not line.endswith("\n"):
                    return  # the writer was killed in this line
                raise RecordError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(record, dict):
                raise RecordError(f"{path}, line {number}: expected a JSON object")
            if number == 1:
                _check_header(path, kind, record)
            else:
                yield record


def _check_header(path: Path, kind: str, header: Record) -> None:
    wanted = f"palaestra.{kind}"
    if header.get("schema") != wanted:
        raise RecordError(f"{path}: expected a file of schema {wanted!r}, found {header.get('schema')!r}")
    if header.get("version") != VERSION:
        raise RecordError(f"{path}: schema version {header.get('version')!r}; this release reads version {VERSION}")


def _drop_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        content_end = file.seek(0, os.SEEK_END)
        while content_end:
            file.seek(content_end - 1)
            if file.read(1) == b"\n":
                break
            content_end -= 1
        file.truncate(content_end)


def episode_to_record(episode: Episode) -> Record:
    """Gives an episode as JSON data; NaN rewards and log-probabilities become null."""
    return {
        "task_id": episode.task_id,
        "family": episode.family,
        "level": episode.level,
        "seed": episode.seed,
        "reward": None if np.isnan(episode.reward) else episode.reward,
        "success": episode.success,
        "stop_reason": episode.stop_reason,
        "terminated": episode.terminated,
        "truncated": episode.truncated,
        "reward_components": dict(episode.reward_components),
        "failure": None if episode.failure is None else dict(episode.failure),
        "info": dict(episode.info),
        "trajectories": [_trajectory_to_record(trajectory) for trajectory in episode.trajectories],
    }


def _trajectory_to_record(trajectory: Trajectory) -> Record:
    return {
        "agent": trajectory.agent,
        "forked_at": trajectory.forked_at,
        "sampling": {name: getattr(trajectory.sampling, name) for name in Sampling.__dataclass_fields__},
        "segments": [
            {
                "token_ids": segment.token_ids_T.tolist(),
                "action_mask": segment.action_mask_T.astype(int).tolist(),
                "logprobs": [
                    float(logprob) if sampled else None
                    for logprob, sampled in zip(segment.logprobs_T, segment.action_mask_T, strict=True)
                ],
            }
            for segment in trajectory.segments
        ],
        "turns": [
            {name: getattr(turn, name) for name in Turn.__dataclass_fields__} | {"messages": list(turn.messages)}
            for turn in trajectory.turns
        ],
    }


def episode_from_record(record: Mapping[str, Any]) -> Episode:
    """Rebuilds an episode from `episode_to_record`'s data.

    Raises:
        RecordError: A field is missing or of the wrong kind.
    """
    try:
        plain = {name: record[name] for name in Episode.__dataclass_fields__ if name != "trajectories"}
        plain["reward"] = float("nan") if plain["reward"] is None else float(plain["reward"])
        return Episode(trajectories=tuple(_trajectory_from_record(item) for item in record["trajectories"]), **plain)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"not an episode record: {type(error).__name__} {error}") from error


def _trajectory_from_record(record: Mapping[str, Any]) -> Trajectory:
    segments = tuple(
        Segment(
            token_ids_T=np.array(item["token_ids"], dtype=np.int32),
            action_mask_T=np.array(item["action_mask"], dtype=np.bool_),
            logprobs_T=np.array([np.nan if x is None else x for x in item["logprobs"]], dtype=np.float32),
        )
        for item in record["segments"]
    )
    turns: list[Turn] = []
    for item in record["turns"]:
        messages: tuple[Message, ...] = tuple(item["messages"])
        turns.append(Turn(**{**item, "messages": messages}))
    return Trajectory(
        segments=segments,
        turns=tuple(turns),
        sampling=Sampling(**record["sampling"]),
        agent=record["agent"],
        forked_at=record["forked_at"],
    )

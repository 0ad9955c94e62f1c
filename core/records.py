"""JSON-lines files with a schema version: one header line, then one record per line.

A file that a killed process was writing may end in half a line; readers drop that line and keep the rest. Any other
damage is an error that names the line.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from .errors import RecordError, StorageError
from .trajectories import Episode, Sampling, Segment, Trajectory, Turn

VERSION = 1
Record = dict[str, Any]


class RecordWriter:
    """Appends records of one kind to a file; each goes out as one whole line, unbuffered.

    Args:
        path: The file; its folder is made when it is missing.
        kind: What the records are, such as `"episodes"`.
        append: Continue an existing file of the same kind; half a line at its end is dropped first.
        about: JSON data about the whole file, kept in the header of a new one; see `read_about`.

    Raises:
        StorageError: The file cannot be created or written (no permission, full disk).
        RecordError: The file to continue is of another kind or schema version.
    """

    def __init__(
        self, path: str | Path, kind: str, append: bool = False, about: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.kind = Path(path), kind
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if append and self.path.exists():
                _drop_torn_line(self.path)
            fresh = not (append and self.path.exists() and self.path.stat().st_size)
        except OSError as error:
            raise self._cannot_write(error) from error
        if not fresh:
            next(read_records(self.path, kind), None)  # checks the header
        try:
            self._file: IO[bytes] = self.path.open("wb" if fresh else "ab", buffering=0)
        except OSError as error:
            raise self._cannot_write(error) from error
        if fresh:
            try:
                header = {"schema": f"palaestra.{kind}", "version": VERSION}
                self.write(header if about is None else {**header, "about": dict(about)})
            except StorageError:
                self.close()
                raise

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record."""
        line = memoryview(_encode(record))
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self) -> None:
        """Closes the file; may be called twice."""
        self._file.close()

    def _cannot_write(self, error: OSError) -> StorageError:
        return StorageError(f"cannot write {self.path}: {error.strerror}")

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _encode(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which a program may print: JSON can escape it, UTF-8 cannot
        return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def write_records(
    path: str | Path, kind: str, records: Iterable[Mapping[str, Any]], about: Mapping[str, Any] | None = None
) -> int:
    """Writes a whole file and gives the number of records."""
    count = 0
    with RecordWriter(path, kind, about=about) as writer:
        for record in records:
            writer.write(record)
            count += 1
    return count


def read_records(path: str | Path, kind: str) -> Iterator[Record]:
    """Gives the records of a file, one by one.

    Raises:
        RecordError: The file is missing, of another kind or version, or damaged; the message names the line.
    """
    for number, record in enumerate(_header_and_records(Path(path), kind)):
        if number:
            yield record


def read_about(path: str | Path, kind: str) -> Record | None:
    """What the writer of a file noted about it as a whole; None where it noted nothing, or the file is still empty.

    Raises:
        RecordError: The file is missing, damaged in its first line, or of another kind or version.
    """
    with closing(_header_and_records(Path(path), kind)) as lines:
        header = next(lines, None)
    about: Any = header and header.get("about")
    return cast(Record, about) if isinstance(about, dict) else None


def _header_and_records(path: Path, kind: str) -> Generator[Record, None, None]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, 1):
            try:
                data: Any = json.loads(line.decode())
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return  # the writer was killed in this line
                raise RecordError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(data, dict):
                raise RecordError(f"{path}, line {number}: expected a JSON object")
            record = cast(Record, data)
            if number == 1:
                _check_header(path, kind, record)
            yield record


def _check_header(path: Path, kind: str, header: Record) -> None:
    wanted = f"palaestra.{kind}"
    if header.get("schema") != wanted:
        raise RecordError(f"{path}: expected a file of schema {wanted!r}, found {header.get('schema')!r}")
    if header.get("version") != VERSION:
        raise RecordError(f"{path}: schema version {header.get('version')!r}; this release reads version {VERSION}")


def _drop_torn_line(path: Path) -> None:
    """Cuts a file after its last whole record; a record that lacks only its line end gets it."""
    with path.open("rb+") as file:
        whole, tail = 0, b""
        for line in file:
            if line.endswith(b"\n"):
                whole += len(line)
            else:
                tail = line
        if not tail:
            return
        try:
            json.loads(tail.decode())
        except ValueError:
            file.truncate(whole)
        else:
            file.write(b"\n")


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
    except (KeyError, TypeError, ValueError, OverflowError) as error:
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
        fields: dict[str, Any] = {**item, "messages": tuple(item["messages"])}
        turns.append(Turn(**fields))
    return Trajectory(
        segments=segments,
        turns=tuple(turns),
        sampling=Sampling(**record["sampling"]),
        agent=record["agent"],
        forked_at=record["forked_at"],
    )

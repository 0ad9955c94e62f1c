"""Checkpoints that survive being killed at any moment.

A checkpoint is written to a temporary folder, synced to disk and renamed; `latest` is replaced after that. Whoever is
killed in between leaves the previous checkpoint in place. The last two are kept.

    checkpoints/
        latest                 name of the newest checkpoint
        grpo-00000040/         state.pt (tensors and plain data), meta.json (format, stage, step, fingerprint)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError, StorageError

FORMAT = 1
_TEMPORARY = ".writing-"
_DAMAGE = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, pickle.UnpicklingError,
)  # fmt: skip
"""What reading a damaged file can raise, from a bad byte in `meta.json` to a half-written archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What was loaded."""

    stage: str
    step: int
    """Steps that were done when it was written."""
    state: dict[str, Any]


class CheckpointStore:
    """Saves and loads the checkpoints of one run.

    Args:
        folder: Where they lie; it is made when the first one is saved.
        fingerprint: Identifies the configuration (see `fingerprint_of`); loading one of another configuration fails.
        keep: How many to keep.
    """

    def __init__(self, folder: str | Path, fingerprint: str = "", keep: int = 2) -> None:
        self.folder, self.fingerprint, self.keep = Path(folder), fingerprint, keep

    def save(self, stage: str, step: int, state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, whole or not at all, and gives its folder.

        Args:
            stage: `"sft"` or `"grpo"`, say.
            step: Steps done so far in this stage.
            state: Nested dictionaries and lists of tensors, numbers, strings and None.

        Raises:
            StorageError: No permission, or the disk is full; earlier checkpoints are untouched.
        """
        name = f"{stage}-{step:08d}"
        temporary = self.folder / f"{_TEMPORARY}{name}"
        meta = {"format": FORMAT, "stage": stage, "step": step, "fingerprint": self.fingerprint}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            temporary.mkdir()
            _write_synced(temporary / "state.pt", dict(state))
            _write_synced(temporary / "meta.json", json.dumps(meta).encode())
            target = self.folder / name
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
            _write_synced(self.folder / "latest.tmp", name.encode())
            os.replace(self.folder / "latest.tmp", self.folder / "latest")
            _sync_folder(self.folder)
            self._prune(newest=name)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._remove_unfinished()
            hint = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
            raise StorageError(f"cannot write checkpoint {self.folder / name}: {error.strerror}{hint}") from error
        return target

    def load_latest(self) -> Checkpoint | None:
        """Gives the newest checkpoint that can be read, or None when there is none at all.

        A damaged one is passed over: the run goes on from the one before it, or says what to delete.

        Raises:
            CheckpointError: There are checkpoints, but all are damaged, or the newest is of another configuration.
        """
        names = list(self._newest_first())
        problem = ""
        for name in names:
            try:
                return self._load(self.folder / name)
            except CheckpointError:
                raise
            except _DAMAGE as error:
                problem = problem or f"checkpoint {self.folder / name} is damaged: {_first_sentence(error)}"
        if names:
            raise CheckpointError(f"{problem}; delete {self.folder} to do its stage again")
        return None

    def _load(self, folder: Path) -> Checkpoint:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["format"] != FORMAT:
            raise CheckpointError(f"checkpoint {folder} has format {meta['format']}; this version reads {FORMAT}")
        if meta["fingerprint"] != self.fingerprint:
            raise CheckpointError(f"checkpoint {folder} is of another configuration; choose another run folder")
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        return Checkpoint(stage=meta["stage"], step=meta["step"], state=state)

    def _newest_first(self) -> Iterator[str]:
        """The name in `latest`, then the others by the time they were written."""
        found = [p for p in self._finished() if (p / "meta.json").exists()]
        names = [p.name for p in sorted(found, key=lambda p: p.stat().st_mtime_ns, reverse=True)]
        latest = self.folder / "latest"
        marked = latest.read_text(errors="replace").strip() if latest.is_file() else ""
        if marked in names:
            names.remove(marked)
            names.insert(0, marked)
        yield from names

    def _finished(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [p for p in self.folder.iterdir() if p.is_dir() and not p.name.startswith(_TEMPORARY)]

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path)

    def _prune(self, newest: str) -> None:
        older = [name for name in self._newest_first() if name != newest]
        for name in older[self.keep - 1 :]:
            shutil.rmtree(self.folder / name)


def fingerprint_of(*parts: object) -> str:
    """A short hash of the parts' text; frozen dataclasses of plain data print all their fields."""
    return hashlib.blake2b("\x1f".join(map(repr, parts)).encode(), digest_size=8).hexdigest()


def rng_state() -> dict[str, Any]:
    """State of torch's global generators in this process (dropout draws from them)."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def set_rng_state(states: Sequence[Mapping[str, Any]], rank: int) -> None:
    """Restores this rank's `rng_state()`; a run that is resumed with more ranks leaves the new ones as they are."""
    if rank < len(states):
        torch.set_rng_state(states[rank]["cpu"])
        if torch.cuda.is_available() and len(states[rank]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states[rank]["cuda"])


def _write_synced(path: Path, content: bytes | dict[str, Any]) -> None:
    with path.open("wb") as file:
        guarded = _KeepsError(file)
        try:
            if isinstance(content, bytes):
                file.write(content)
            else:
                torch.save(content, guarded)  # type: ignore[arg-type]
        except RuntimeError:
            if guarded.error is not None:  # torch's zip writer hides the reason of a failed write
                raise guarded.error from None
            raise
        file.flush()
        os.fsync(file.fileno())


class _KeepsError:
    """A file that remembers why a write failed."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_sentence(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]

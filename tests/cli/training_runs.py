"""Small training runs as processes of their own: started, watched, sent signals, and looked at afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TINY = (
    "demos.n=200", "vocab_size=320", "model.hidden_size=32", "model.intermediate_size=64", "env.max_turns=2",
    "rollout.max_turn_tokens=16", "grpo.steps=4", "grpo.groups_per_step=2", "grpo.group_size=4", "evaluation.n=4",
    "sft.log_every=1",
)  # fmt: skip
MARK = "PALAESTRA_TEST_RUN"
PATIENCE_S = 200.0


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    status: int
    out: str
    err: str
    seconds_after: float
    """From the moment that `act` was called."""
    left: list[str]
    """Processes of the run that were still there."""


class Run:
    """`palaestra train *arguments` in a session of its own, as a terminal starts it."""

    def __init__(self, *arguments: object) -> None:
        self._mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "palaestra", "train", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {MARK: self._mark},
        )

    def when(self, happened: Callable[[], bool], act: Callable[[], None]) -> Ended:
        """Waits for something, does something, and waits for the end."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        acted = time.monotonic()
        act()
        return self.end(acted)

    def end(self, acted: float | None = None) -> Ended:
        """Waits for the end."""
        try:
            out, err = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.signal_all(signal.SIGKILL)
            raise
        seconds = time.monotonic() - (acted or time.monotonic())
        return Ended(self.process.returncode, out, err, seconds, self.left())

    def signal_all(self, number: signal.Signals) -> None:
        """Sends a signal to the whole process group: what Ctrl-C does in a terminal."""
        os.killpg(self.process.pid, number)

    def ranks(self) -> list[int]:
        """Process ids of the training processes."""
        return [
            pid for pid, command, parent in self._processes() if parent == self.process.pid and "spawn_main" in command
        ]

    def left(self) -> list[str]:
        """Command lines of the processes that carry the run's mark; those that are ending get a moment."""
        deadline = time.monotonic() + 5.0
        while (found := [command for _, command, _ in self._processes()]) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _processes(self) -> list[tuple[int, str, int]]:
        found: list[tuple[int, str, int]] = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError):
                    state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                    mine = f"{MARK}={self._mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
                    if mine and state not in "ZX":
                        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        found.append((int(folder.name), command, int(parent)))
        return found


def has_logged(folder: Path, stage: str, rows: int = 1) -> Callable[[], bool]:
    """Whether the run in a folder has logged so many rows of a stage."""
    path = folder / "metrics.jsonl"
    return lambda: path.exists() and path.read_text().count(f'"stage": "{stage}"') >= rows

"""Progress of a run: a bar per stage on a terminal, lines elsewhere; one line with the clock when a stage ends.

In a log file or a pipe a long stage says how far it is every few seconds, each line written out at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

QUIET_S = 10.0
"""A stage whose bar nobody sees says how far it is after so many seconds without a line."""


class StageProgress:
    """Shows the stages of a run; `enabled=False` (all processes but the first) shows nothing.

    Args:
        enabled: Whether to show anything.
        started: When the run began, in seconds since the epoch.
        console: Where to print; standard output by default.
    """

    def __init__(self, enabled: bool, started: float, console: Console | None = None) -> None:
        self._enabled, self._started = enabled, started
        self._console = console or Console()
        self._said_at = time.monotonic()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not enabled or not self._console.is_terminal,
        )

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has been seen for a while: there is no bar, and the last line is old."""
        return self._bars.disable and time.monotonic() - self._said_at >= QUIET_S

    def say(self, text: str) -> None:
        """Prints one line with the run's clock."""
        if self._enabled:
            self._said_at = time.monotonic()
            line = f"[dim]{time.time() - self._started:6.1f} s[/dim]  {text}"
            try:
                self._console.print(line, highlight=False, soft_wrap=True)
            except (OSError, SystemExit):  # the disk of the log is full, or its reader went away: the run goes on
                self._enabled = False

    @contextmanager
    def task(self, name: str) -> Iterator[TaskProgress]:
        """One stage; its end is said with the time that it took."""
        began = time.time()
        number = self._bars.add_task(name, total=None, note="")
        task = TaskProgress(self, self._bars, number, name)
        try:
            yield task
        finally:
            self._bars.remove_task(number)
        self.say(f"{name}: {task.last_words or 'done'} [dim]({time.time() - began:.1f} s)[/dim]")

    def __enter__(self) -> StageProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


class TaskProgress:
    """The bar of one stage."""

    def __init__(self, owner: StageProgress, bars: Progress, number: Any, name: str) -> None:
        self._owner, self._bars, self._number, self.name = owner, bars, number, name
        self._note = ""
        self._says_steps = False
        self.last_words = ""

    def update(self, done: int, total: int, note: str = "") -> None:
        """Moves the bar, or says a line where there is no bar and nothing was said for a while."""
        self._note = note or self._note
        self._bars.update(self._number, completed=done, total=total, note=self._note)
        if self._owner.is_quiet:
            self._owner.say(f"  {self.name}: {done} of {total}  {self._note}".rstrip())

    def say(self, text: str) -> None:
        """What the line at the end of the stage says; during a long stage, every text is printed."""
        if self._says_steps:
            self._owner.say(text)
        else:
            self.last_words = text

    def sft_step(self, done: int, total: int, row: Mapping[str, Any]) -> None:
        """One SFT step; its loss is shown when it was measured."""
        if "loss" in row:
            self.last_words = f"loss {row['loss']:.3f} after {done} steps"
        self.update(done, total, f"loss {row['loss']:.3f}" if "loss" in row else "")

    def grpo_step(self, done: int, total: int, row: Mapping[str, Any]) -> None:
        """One GRPO step; every tenth is printed as a line, and others where steps are slow and there is no bar."""
        note = f"success {row['success']:.3f}  KL {row['kl_seq']:.2f}  beta {row['beta']:.3f}"
        self.last_words = f"{done} steps, {note}"
        if done == 1 or done % 10 == 0 or self._owner.is_quiet:
            self._says_steps = True
            times = " ".join(
                f"{name.removeprefix('seconds_')} {row[name]:.2f}"
                for name in ("seconds_generation", "seconds_environment", "seconds_reference", "seconds_update")
                if name in row
            )
            self._owner.say(f"  step {done:>4}  {note}  turns {row['mean_turns']:.2f}  [dim]{times}[/dim]")
        self.update(done, total, note)

"""Progress of a run on the terminal: a bar per stage while it runs, one line with the clock when it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class StageProgress:
    """Shows the stages of a run; `enabled=False` (all processes but the first) shows nothing.

    On a terminal there are live bars; elsewhere (a log file, CI) only the lines.
    """

    def __init__(self, enabled: bool, started: float) -> None:
        self._enabled, self._started = enabled, started
        self._console = Console()
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

    def say(self, text: str) -> None:
        """Prints one line with the run's clock."""
        if self._enabled:
            self._console.print(
                f"[dim]{time.time() - self._started:6.1f} s[/dim]  {text}", highlight=False, soft_wrap=True
            )

    @contextmanager
    def task(self, name: str) -> Iterator[TaskProgress]:
        """One stage; its end is said with the time that it took."""
        began = time.time()
        number = self._bars.add_task(name, total=None, note="")
        task = TaskProgress(self, self._bars, number)
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

    def __init__(self, owner: StageProgress, bars: Progress, number: Any) -> None:
        self._owner, self._bars, self._number = owner, bars, number
        self._said_at = 0
        self.last_words = ""

    def update(self, done: int, total: int, note: str = "") -> None:
        """Moves the bar."""
        self._bars.update(self._number, completed=done, total=total, note=note)

    def say(self, text: str) -> None:
        """What the line at the end of the stage says; during a long stage, every text is printed."""
        if self._said_at:
            self._owner.say(text)
        else:
            self.last_words = text

    def sft_step(self, done: int, total: int, row: Mapping[str, Any]) -> None:
        """One SFT step; its loss is shown when it was measured."""
        if "loss" in row:
            self.last_words = f"loss {row['loss']:.3f} after {done} steps"
            self.update(done, total, f"loss {row['loss']:.3f}")
        else:
            self._bars.update(self._number, completed=done, total=total)

    def grpo_step(self, done: int, total: int, row: Mapping[str, Any]) -> None:
        """One GRPO step; every tenth is printed as a line."""
        note = f"success {row['success']:.3f}  KL {row['kl_seq']:.2f}  beta {row['beta']:.3f}"
        self.update(done, total, note)
        self.last_words = f"{done} steps, {note}"
        if done == 1 or done % 10 == 0:
            self._said_at = done
            times = " ".join(
                f"{name.removeprefix('seconds_')} {row[name]:.2f}"
                for name in ("seconds_generation", "seconds_environment", "seconds_reference", "seconds_update")
                if name in row
            )
            self._owner.say(f"  step {done:>4}  {note}  turns {row['mean_turns']:.2f}  [dim]{times}[/dim]")

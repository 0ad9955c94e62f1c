"""How far a command is that plays many episodes, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_S = 10.0
"""Seconds between two lines where there is no terminal."""

Tick = Callable[[int, int], None]
"""Called with (done, in all)."""


@contextmanager
def episode_progress(what: str, total: int) -> Iterator[Tick]:
    """Gives a function to call after each of `total` things, such as `"episodes"`."""
    if not sys.stderr.isatty():
        yield _lines(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _lines(what: str) -> Tick:
    said_at = time.monotonic()

    def tick(done: int, total: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= QUIET_S:
            said_at = time.monotonic()
            print(f"{done} of {total} {what}", file=sys.stderr, flush=True)

    return tick

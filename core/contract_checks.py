"""What contract kits share: what became of a check, how that is counted, and how long a check may take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, Protocol


class Outcome(StrEnum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """There was nothing to check: a capability is missing, or an earlier finding is in the way."""

    @property
    def mark(self) -> str:
        """Four characters for the lines of a report."""
        return _MARKS[self]


_MARKS = {Outcome.PASSED: "ok  ", Outcome.FAILED: "FAIL", Outcome.SKIPPED: "skip"}


class Result(Protocol):
    """What one check found, as far as it is counted."""

    @property
    def outcome(self) -> Outcome:
        """What became of the check."""
        ...

    @property
    def seconds(self) -> float:
        """How long it took."""
        ...


def counts(results: Iterable[Result]) -> str:
    """How many checks came out how, and how long all took: `39 passed, 0 failed, 1 skipped in 4.2 s`."""
    found = list(results)
    parts = [f"{sum(result.outcome is outcome for result in found)} {outcome}" for outcome in Outcome]
    return f"{', '.join(parts)} in {sum(result.seconds for result in found):.1f} s"


class StillRunning(Exception):
    """What was called has not come back in time."""


def in_time(perform: Callable[[], Any], timeout_s: float, name: str) -> None:
    """Calls a function in a thread of its own, and raises what it raises.

    Args:
        perform: What to do.
        timeout_s: How long it may take.
        name: Of the thread.

    Raises:
        StillRunning: It has not come back; the thread goes on, and does not keep the interpreter from ending.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            perform()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise StillRunning(f"it was still running after {timeout_s:g} s")
    if raised:
        raise raised[0]

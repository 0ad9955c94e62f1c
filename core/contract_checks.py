"""What contract kits share: what became of a check, and how that is counted."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Protocol


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

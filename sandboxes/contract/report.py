"""What the checks found, as data and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """The implementation says that it lacks the capability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What one check found."""

    number: int
    subject: str
    name: str
    outcome: Outcome
    finding: str
    """One line about what was not kept, or why there was nothing to check; empty when all is well."""
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the sandbox was seen to keep this promise."""
        return self.outcome is Outcome.PASSED


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a run of the checks found; as text it is a table."""

    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The results of the checks that failed."""
        return tuple(result for result in self.results if result.outcome is Outcome.FAILED)

    def __str__(self) -> str:
        """A line for each check, and one with the counts."""
        lines = [_line(result) for result in self.results]
        counts = [f"{sum(result.outcome is outcome for result in self.results)} {outcome}" for outcome in Outcome]
        seconds = sum(result.seconds for result in self.results)
        return "\n".join([*lines, f"{', '.join(counts)} in {seconds:.1f} s"])


def _line(result: CheckResult) -> str:
    mark = {Outcome.PASSED: "ok  ", Outcome.FAILED: "FAIL", Outcome.SKIPPED: "skip"}[result.outcome]
    line = f"{result.number:3d} {mark} {result.seconds:6.2f} s  {result.subject}: {result.name}"
    return f"{line}\n    {result.finding}" if result.finding else line

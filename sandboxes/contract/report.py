"""What the checks found, as data and as a table."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.contract_checks import Outcome, counts

__all__ = ["CheckReport", "CheckResult", "Outcome"]


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
        return "\n".join([*lines, counts(self.results)])


def _line(result: CheckResult) -> str:
    line = f"{result.number:3d} {result.outcome.mark} {result.seconds:6.2f} s  {result.subject}: {result.name}"
    return f"{line}\n    {result.finding}" if result.finding else line

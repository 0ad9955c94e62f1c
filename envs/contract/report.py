"""What the checks found, as data and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...core.contract_checks import Outcome, counts

__all__ = ["CheckReport", "CheckResult", "Outcome"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What one check found.

    Example: `CheckResult(number=10, subject="determinism", name="repeats episodes in another process",
    outcome=Outcome.FAILED, finding="...", fix="Do not draw from hash() ...", seconds=0.6)`.
    """

    number: int
    subject: str
    name: str
    outcome: Outcome
    finding: str
    """What was wrong, or why there was nothing to check; empty when all is well."""
    fix: str
    """What to write instead; empty when all is well."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a run of the checks found; as text it is a line per check, and two more per finding."""

    env_id: str
    results: tuple[CheckResult, ...]
    figures: Mapping[str, float]
    """What was measured on the way: `reset_ms`, `steps_per_s`, and mean rewards such as `oracle (compose)`."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.failures

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The results of the checks that found something."""
        return tuple(result for result in self.results if result.outcome is Outcome.FAILED)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        results = [asdict(result) for result in self.results]
        return {"ok": self.ok, "env_id": self.env_id, "figures": dict(self.figures), "results": results}

    def __str__(self) -> str:
        """A line for each check, what it found and what to write instead, figures, and counts."""
        lines = [_lines(result) for result in self.results]
        figures = [f"{name}: {value:.4g}" for name, value in self.figures.items()]
        return "\n".join([*lines, *figures, f"{self.env_id}: {counts(self.results)}"])


def _lines(result: CheckResult) -> str:
    lines = [f"{result.number:3d} {result.outcome.mark} {result.subject}: {result.name}"]
    if result.finding:
        lines.append(f"         {'found' if result.fix else 'why'}: {result.finding}")
    if result.fix:
        lines.append(f"         write: {result.fix}")
    return "\n".join(lines)

"""What the measurements of `benchmarks/sandbox.py` come to: medians, ratios and targets. Pure functions."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Figures = dict[str, Any]
_COUNTS = ("executions", "wrong")


def of_latencies(answer: Mapping[str, Any]) -> Figures:
    """One turn of a contender; only executions that printed the right answer count."""
    latencies: list[float] = answer["latencies_s"]
    return {
        "p50_ms": statistics.median(latencies) * 1e3 if latencies else None,
        "per_s": len(latencies) / answer["wall_s"],
        "executions": len(latencies),
        "wrong": answer["wrong"],
        "wrong_example": answer["example"],
    }


def over_rounds(turns: Sequence[Mapping[str, Any]]) -> Figures:
    """Medians over the rounds; counts are added up, and of texts the first that says something is kept."""
    return {name: _merged(name, [turn[name] for turn in turns if turn[name] is not None]) for name in turns[0]}


def _merged(name: str, values: Sequence[Any]) -> Any:
    if name in _COUNTS:
        return sum(values)
    if values and not isinstance(values[0], str):
        return statistics.median(values)
    return next(filter(None, values), None)


def fastest(figures: Mapping[str, Figures], names: Iterable[str]) -> str | None:
    """The name with the most executions per second for 8 callers; None if none of them was measured."""
    measured = [name for name in names if name in figures]
    return max(measured, key=lambda name: figures[name]["8 callers"]["per_s"], default=None)


def ratio(figures: Mapping[str, Figures], ours: str, peer: str | None) -> float | None:
    """How many times a peer's executions per second we have, with 8 callers; None where either is missing."""
    if ours not in figures or peer is None or peer not in figures:
        return None
    theirs = figures[peer]["8 callers"]["per_s"]
    return figures[ours]["8 callers"]["per_s"] / theirs if theirs else None


def judged(target: str, value: float | None, reason: str | None = None) -> dict[str, Any]:
    """A figure beside its target (`">= 30"`); one that could not be measured is not met, and says why.

    Example: `judged("<= 15", 3.1)` gives `{"target": "<= 15", "value": 3.1, "met": True}`.
    """
    sign, bound = target.split()
    compare = {">=": operator.ge, "<=": operator.le}[sign]
    met = value is not None and compare(value, float(bound))
    return {"target": target, "value": value, "met": met} | ({"reason": reason} if value is None else {})


def targets(figures: Mapping[str, Figures], skipped: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Every target whose own side was asked for, by name."""
    local_peers = [name for name, row in figures.items() if row["peer"] and row["where"] == "local"]
    peer = fastest(figures, local_peers)
    judgements: dict[str, dict[str, Any]] = {}

    def versus(name: str, target: str, ours: str, theirs: str | None) -> None:
        if ours in figures or ours in skipped:
            missing = skipped.get(ours) or skipped.get(theirs or "", "no peer was measured")
            judgements[name] = judged(target, ratio(figures, ours, theirs), missing)

    def alone(name: str, target: str, ours: str, figure: str) -> None:
        if ours in figures or ours in skipped:
            value = figures[ours]["alone"][figure] if ours in figures else None
            judgements[name] = judged(target, value, skipped.get(ours))

    versus("session exec: times the fastest peer's throughput", ">= 30", "palaestra session", peer)
    versus("fresh interpreter: times the fastest peer's throughput", ">= 1.5", "palaestra fresh", peer)
    versus(
        "Docker session: times the throughput of verifiers' Docker runtime",
        ">= 100",
        "palaestra docker session",
        "verifiers docker",
    )
    alone("opening a session: ms", "<= 15", "palaestra opening", "p50_ms")
    alone("64 forks: s", "<= 0.3", "palaestra forks", "seconds")
    alone("PSS per idle session: MiB", "<= 4", "palaestra idle memory", "mib_per_session")
    ours = [row for row in figures.values() if not row["peer"] and "alone" not in row]
    if ours:
        wrong = sum(row[key]["wrong"] for row in ours for key in ("1 callers", "8 callers"))
        judgements["wrong answers of Palaestra"] = judged("<= 0", wrong)
    return judgements

"""What a run showed, in one sentence and a few facts; says no more than the intervals allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .comparison import Comparison, compare
from .report_data import RunData, number

Tone = Literal["good", "flat", "bad", "unfinished"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The head of a report."""

    tone: Tone
    headline: str
    facts: tuple[tuple[str, str], ...]
    """(name, value) of the figures under the headline."""


def percent(share: float) -> str:
    """`0.873` as `87.3 %`."""
    return f"{100 * share:.1f} %"


def points(delta: float) -> str:
    """`0.433` as `+43.3 points`, with a real minus sign."""
    return f"{100 * delta:+.1f} points".replace("-", "−")


def duration(seconds: float) -> str:
    """`254.2` as `4 min 14 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h" if hours else "", f"{minutes} min" if hours or minutes else "", f"{rest} s"]
    return " ".join(part for part in parts if part)


def verdict(run: RunData) -> Verdict:
    """Judges the sampled held-out episodes, or the greedy ones where those are all there is."""
    tone, headline = _judge(run)
    return Verdict(tone, headline, tuple(_facts(run)))


def comparisons(run: RunData) -> dict[str, Comparison]:
    """Held-out success before and after, `"sampled"` and `"greedy"`."""
    return {
        "sampled": compare(run.episodes["sft_heldout"], run.episodes["policy_heldout"]),
        "greedy": compare(run.episodes["sft_heldout_greedy"], run.episodes["policy_heldout_greedy"]),
    }


def _judge(run: RunData) -> tuple[Tone, str]:
    for sampling, result in comparisons(run).items():
        if result.before and result.after:
            change = f"from {percent(result.before.share)} to {percent(result.after.share)} ({sampling})"
            match result.direction:
                case "up":
                    return "good", f"Held-out success rose {change}"
                case "down":
                    return "bad", f"Held-out success fell {change}"
                case _:
                    return "flat", f"No clear change of held-out success: {change}"
    steps = {stage: len(rows) for stage, rows in run.metrics.items()}
    if run.summary:
        return "unfinished", "The run has finished, but not with a held-out evaluation on both sides of GRPO"
    if steps.get("grpo"):
        return "unfinished", f"Not finished: GRPO has logged {steps['grpo']} steps"
    return "unfinished", "Not finished: no GRPO step has been logged yet"


def _facts(run: RunData) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    for sampling, result in comparisons(run).items():
        if result.before and result.after and result.delta is not None:
            value = f"{percent(result.before.share)} → {percent(result.after.share)}, {points(result.delta)}"
            facts.append((f"held-out success, {sampling}", value))
        elif one := result.before or result.after:
            facts.append((f"held-out success, {sampling}, {'before' if result.before else 'after'} GRPO",
                          percent(one.share)))  # fmt: skip
    if (hard := number(run.summary, "rl_success_hard")) is not None:
        facts.append(("after GRPO, hard levels", percent(hard)))
    if (kl := number(run.summary, "kl_seq")) is not None:
        facts.append(("KL to the SFT policy", f"{kl:.2f} nats per episode"))
    for key, name in (("seconds_total", "whole run"), ("seconds_sft", "SFT"), ("seconds_rl", "GRPO")):
        if (seconds := number(run.summary, key)) is not None:
            facts.append((name, duration(seconds)))
    lost = len(run.failures)
    facts.append(("failures of infrastructure", f"{lost} held-out episodes, not scored" if lost else "none"))
    return facts

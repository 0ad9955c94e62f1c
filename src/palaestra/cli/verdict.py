"""What a run showed, in one sentence and a few facts; says no more than the intervals allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .comparison import Comparison, compare
from .report_data import RunData, number

Tone = Literal["good", "flat", "bad", "unfinished"]


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure under the headline."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The head of a report."""

    tone: Tone
    headline: str
    facts: tuple[Fact, ...]


def percent(share: float) -> str:
    """`0.873` as `87.3 %`."""
    return f"{100 * share:.1f} %"


def signed(delta: float) -> str:
    """`0.433` as `+43.3`, with a real minus sign."""
    return f"{100 * delta:+.1f}".replace("-", "−")


def points(delta: float) -> str:
    """`0.433` as `+43.3 points`."""
    return f"{signed(delta)} points"


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


def _facts(run: RunData) -> list[Fact]:
    facts: list[Fact] = []
    for sampling, result in comparisons(run).items():
        name = f"success, {sampling}"
        if result.before and result.after and result.delta is not None:
            change = f"{percent(result.before.share)} → {percent(result.after.share)}"
            facts.append(Fact(name, change, points(result.delta)))
        elif one := result.before or result.after:
            facts.append(Fact(name, percent(one.share), f"{'before' if result.before else 'after'} GRPO"))
    if (hard := number(run.summary, "rl_success_hard")) is not None:
        before = number(run.summary, "sft_success_hard")
        change = percent(hard) if before is None else f"{percent(before)} → {percent(hard)}"
        facts.append(Fact("hard levels, sampled", change, "after GRPO" if before is None else points(hard - before)))
    if (kl := number(run.summary, "kl_seq")) is not None:
        facts.append(Fact("KL to the SFT policy", f"{kl:.2f} nats", "mean per sampled held-out episode"))
    if (seconds := number(run.summary, "seconds_total")) is not None:
        stages = [("SFT", "seconds_sft"), ("GRPO", "seconds_rl")]
        parts = [f"{name} {duration(s)}" for name, key in stages if (s := number(run.summary, key)) is not None]
        name = "time since the resume" if run.summary.get("resumed") else "time"
        facts.append(Fact(name, duration(seconds), ", ".join(parts)))
    lost = len(run.failures)
    facts.append(Fact("failures of infrastructure", str(lost), "held-out episodes, not scored"))
    return facts

"""The result of an evaluation as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plain_text import one_line

if TYPE_CHECKING:
    from ..agents.evaluation import EvalResult
    from ..agents.pass_rates import Rate


def first_failure(result: EvalResult) -> str:
    """The first failure of infrastructure, in words."""
    failure = next((episode.failure for episode in result.episodes if episode.failure), None) or {}
    return f"{failure.get('kind', '?')}: {failure.get('message', '?')}"


def print_result(title: str, result: EvalResult) -> None:
    """Prints the figures, and a table by family and level."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    figures = Table(title=Text(title), title_justify="left", show_header=False)
    figures.add_column()
    figures.add_column(justify="right")
    figures.add_row(
        "success", f"{result.success:.1%}  (95 % interval {result.interval_low:.1%} to {result.interval_high:.1%})"
    )
    for name, rates in (("pass@", result.pass_at_k), ("pass^", result.pass_hat_k)):
        for k, rate in rates.items():
            figures.add_row(f"{name}{k}", _rate(rate, result.tasks))
    figures.add_row("episodes scored", str(result.n))
    if result.n != result.tasks:
        figures.add_row("tasks", str(result.tasks))
    figures.add_row("mean turns", f"{result.mean_turns:.2f}")
    figures.add_row("invalid actions, share of turns", f"{result.parse_error_rate:.1%}")
    figures.add_row("failed episodes (infrastructure)", str(result.failures))
    if result.usage:
        read, written = result.usage["prompt_tokens"], result.usage["completion_tokens"]
        figures.add_row("requests, of them again", f"{result.usage['requests']}, {result.usage['retries']}")
        figures.add_row("tokens read, written", f"{read}, {written}")
    console.print(figures)
    table = Table(title="By family and level", title_justify="left")
    table.add_column("family/level")
    for heading in ("success", "95 % interval", "episodes"):
        table.add_column(heading, justify="right")
    for name, (success, count) in result.by_level.items():
        low, high = result.level_intervals[name]
        table.add_row(name, f"{success:.1%}", f"{low:.1%} to {high:.1%}", str(count))
    console.print(table)
    if result.failures:
        console.print(Text(f"first failure: {one_line(first_failure(result))}"))


def _rate(rate: Rate, tasks: int) -> str:
    if not rate.tasks:
        return "too few scored episodes"
    left_out = "" if rate.tasks == tasks else f", over {rate.tasks} tasks"
    return f"{rate.value:.1%}  (95 % interval {rate.low:.1%} to {rate.high:.1%}{left_out})"

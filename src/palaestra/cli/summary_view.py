"""What `palaestra train` shows at its end: a before/after table, and one task that training made right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from ..core.errors import RecordError
from ..core.trajectories import Episode
from .action_view import ActionPart, action_parts
from .comparison import Comparison, compare_by_level
from .episode_pairs import EpisodePair, pair_episodes, telling_pair
from .plain_text import visible
from .report_data import number, read_episodes
from .verdict import duration, percent, points

_PART_STYLES = {"words": "", "removed": "red", "added": "green"}
_PART_SIGNS = {"removed": "- ", "added": "+ "}


def print_summary(summary: Mapping[str, Any], run_folder: str | Path, console: Console | None = None) -> None:
    """Prints the figures of a run; what the run did not measure is left out.

    Args:
        summary: What `learners.pipeline.run` gave.
        run_folder: Where the episodes of its evaluations lie.
        console: Where to print; the terminal by default.
    """
    console = console or Console()
    before, after = (_episodes(Path(run_folder), name) for name in ("sft_heldout", "policy_heldout"))
    console.print(_figures(summary))
    console.print(Text(_notes(summary)))
    if before and after:
        console.print(_level_table(compare_by_level(before, after)))
        if pair := telling_pair(pair_episodes(before, after)):
            _print_pair(console, pair)


def _episodes(run_folder: Path, name: str) -> list[Episode]:
    """Episodes to show; a summary is no place to fail about a file that cannot be read."""
    try:
        return read_episodes(run_folder / "episodes" / f"{name}.jsonl")
    except RecordError:
        return []


def _figures(summary: Mapping[str, Any]) -> Table:
    table = Table(title=f"Held-out success, {summary.get('heldout_n', '?')} tasks", title_justify="left")
    table.add_column("")
    for heading in ("after SFT", "after GRPO", "change"):
        table.add_column(heading, justify="right")
    for name, suffix in (("sampled (T = 1)", ""), ("greedy", "_greedy"), ("hard levels, sampled", "_hard")):
        before, after = number(summary, f"sft_success{suffix}"), number(summary, f"rl_success{suffix}")
        if before is not None or after is not None:
            change = points(after - before) if before is not None and after is not None else ""
            table.add_row(name, *("" if x is None else percent(x) for x in (before, after)), change)
    return table


def _notes(summary: Mapping[str, Any]) -> str:
    """KL and times on one line; those of a resumed run are since the resume."""
    notes: list[str] = []
    if (kl := number(summary, "kl_seq")) is not None:
        notes.append(f"KL to the SFT policy: {kl:.2f} nats per episode")
    times = [
        ("since the resume" if summary.get("resumed") else "in all", "seconds_total"),
        ("SFT", "seconds_sft"),
        ("GRPO", "seconds_rl"),
    ]
    notes += [f"{name} {duration(s)}" for name, key in times if (s := number(summary, key)) is not None]
    return " · ".join(notes)


def _level_table(levels: Mapping[str, Comparison]) -> Table:
    table = Table(title="By family and level, sampled, with 95 % intervals", title_justify="left")
    table.add_column("family/level")
    for heading in ("tasks", "after SFT", "after GRPO", "change"):
        table.add_column(heading, justify="right")
    for name, result in levels.items():
        if not (result.before and result.after):
            continue
        cells = [
            f"{100 * side.share:.0f} % ({100 * side.interval[0]:.0f}-{100 * side.interval[1]:.0f})"
            for side in (result.before, result.after)
        ]
        colour = {"up": "green", "down": "red"}.get(result.direction, "")
        change = Text(points(result.delta or 0.0), style=colour)
        table.add_row(Text(visible(name)), str(result.after.n), *cells, change)
    return table


def _print_pair(console: Console, pair: EpisodePair) -> None:
    """Prints both attempts, side by side where the terminal is wide enough."""
    first = pair.after.trajectories[0].turns[0]
    task = next((message["content"] for message in reversed(first.messages) if message["role"] == "user"), "")
    console.print(Text(f"\nA held-out task that GRPO made right ({visible(pair.after.task_id)}):", style="bold"))
    console.print(Text(visible(task), style="italic"))
    panels = [
        _episode_panel("after SFT: wrong", pair.before, "red"),
        _episode_panel("after GRPO: right", pair.after, "green"),
    ]
    console.print(Columns(panels, equal=True, expand=True) if console.width >= 110 else Group(*panels))


def _episode_panel(title: str, episode: Episode, colour: str) -> Panel:
    lines: list[RenderableType] = []
    for turn in episode.trajectories[0].turns:
        for part in action_parts(turn.action):
            lines += _part_lines(part)
        if turn.observation:
            lines.append(Text(visible(turn.observation), style="dim"))
    lines.append(Text(f"reward {episode.reward:g} ({visible(episode.stop_reason)})", style=f"bold {colour}"))
    return Panel(Group(*lines), title=title, border_style=colour)


def _part_lines(part: ActionPart) -> list[RenderableType]:
    lines: list[RenderableType] = [Text(visible(part.label), style="bold blue")] if part.label else []
    if part.kind == "code":
        code = visible(part.text)
        lines.append(Syntax(code, "python", theme="ansi_light", background_color="default", word_wrap=True))
    elif part.text:
        lines.append(Text(_PART_SIGNS.get(part.kind, "") + visible(part.text), style=_PART_STYLES[part.kind]))
    return lines

"""Turns a run into the report's HTML: tables, trajectories and configuration for the template beside this file.

Everything that a policy or an environment wrote passes through `visible` and the template's autoescape, or through the
viewer's data; the page itself forbids requests, and all scripts but the viewer's own (its Content-Security-Policy).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Any

import jinja2
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from ..core.trajectories import Episode
from .action_view import ActionPart, action_parts
from .comparison import Comparison, Proportion, compare_by_level
from .episode_pairs import Outcome, choose_pairs, pair_episodes
from .plain_text import visible
from .report_charts import charts
from .report_data import RunData
from .token_texts import token_texts_of_run
from .verdict import comparisons, percent, signed, verdict
from .viewer_data import SOURCES, ViewerData, viewer_data

TEMPLATE = "report.html.j2"
VIEWER_SCRIPT, VIEWER_STYLE = "viewer.js", "viewer.css"
MAX_TEXT = 20_000
"""Characters of one text that are shown; a runaway output would make the page unreadable."""
_SECTIONS: dict[Outcome, tuple[str, str]] = {
    "learned": ("Learned", "wrong before GRPO, right after it"),
    "unsolved": ("Still unsolved", "wrong before and after"),
    "forgot": ("Forgotten", "right before GRPO, wrong after it"),
    "kept": ("Kept", "right before and after"),
}
_FORMATTER = HtmlFormatter(nowrap=True, style="default")
_DARK_FORMATTER = HtmlFormatter(nowrap=True, style="github-dark")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """One task with the episodes to show side by side."""

    task_id: str
    group: str
    prompt: Sequence[tuple[str, str]]
    """(role, text) of the messages that the policy read first."""
    sides: Sequence[tuple[str, Episode]]
    """(heading, episode), one or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Tasks with the same outcome."""

    title: str
    note: str
    total: int
    tasks: Sequence[TaskView]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One line of the before/after table: a name, and a comparison for each way of sampling."""

    name: str
    n: int
    cells: Sequence[Comparison]


def render(run: RunData, pairs: int = 16) -> str:
    """Gives the whole page, with up to `pairs` tasks to read."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=percent, signed=signed, interval=_interval, shown=shown, code=highlighted, parts=action_parts
    )
    viewer = viewer_data(run, token_texts_of_run(run.folder))
    return environment.from_string(_packaged(TEMPLATE)).render(
        title=str(run.recipe.get("name") or run.folder.resolve().name),
        folder=run.folder.resolve().name,
        verdict=verdict(run),
        missing=run.missing,
        charts=charts(run),
        table=_table(run),
        sections=_sections(run, pairs),
        failures=run.failures,
        training_failures=sum(run.column("grpo", "failures")[1]),
        configuration=list(flatten(run.recipe).items()),
        code_style=Markup(_FORMATTER.get_style_defs(".code")),
        dark_code_style=Markup(_DARK_FORMATTER.get_style_defs(".code")),
        **_viewer(viewer, run.folder.resolve().name),
        version=metadata.version("palaestra"),
    )


def _viewer(viewer: ViewerData, folder: str) -> dict[str, Any]:
    """The viewer's parts of the page; its policy lets this script run and no other that a text might smuggle in."""
    script = _packaged(VIEWER_SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "viewer": viewer,
        "viewer_sources": json.dumps(SOURCES),
        "viewer_json": Markup(viewer.to_json(folder)),
        "viewer_style": Markup(_packaged(VIEWER_STYLE)),
        "viewer_script": Markup(script),
        "script_source": Markup(f"; script-src 'sha256-{digest}'") if viewer.episodes else "",
    }


def _packaged(name: str) -> str:
    return (resources.files(__package__ or "palaestra.cli") / name).read_text(encoding="utf-8")


def shown(text: str) -> str:
    """Untrusted text, safe and of a bearable length."""
    safe = visible(text)
    return safe if len(safe) <= MAX_TEXT else f"{safe[:MAX_TEXT]}\n… {len(safe) - MAX_TEXT:,} more characters"


def highlighted(part: ActionPart) -> Markup:
    """Python code as highlighted HTML; Pygments escapes what it is given."""
    return Markup(highlight(shown(part.text), PythonLexer(stripnl=False, ensurenl=False), _FORMATTER))


def flatten(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A recipe as `{"grpo.steps": "100", ...}`."""
    flat: dict[str, str] = {}
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat


def _interval(proportion: Proportion) -> str:
    low, high = proportion.interval
    return f"{100 * low:.0f}–{100 * high:.0f} %"


def _table(run: RunData) -> dict[str, Any]:
    """Headings and rows of the before/after table; ways of sampling without episodes have no columns."""
    overall = {name: result for name, result in comparisons(run).items() if result.before or result.after}
    files = {"sampled": ("sft_heldout", "policy_heldout"), "greedy": ("sft_heldout_greedy", "policy_heldout_greedy")}
    by_level = {name: compare_by_level(*(run.episodes[file] for file in files[name])) for name in overall}
    names = list(dict.fromkeys(level for levels in by_level.values() for level in levels))
    nothing = Comparison(None, None)
    rows = [_row(name, [levels.get(name, nothing) for levels in by_level.values()]) for name in names]
    return {"samplings": list(overall), "rows": rows, "overall": _row("all", list(overall.values()))}


def _row(name: str, cells: Sequence[Comparison]) -> TableRow:
    sizes = [side.n for cell in cells for side in (cell.before, cell.after) if side]
    return TableRow(name=name, n=max(sizes, default=0), cells=cells)


def _sections(run: RunData, limit: int) -> list[Section]:
    before, after = run.episodes["sft_heldout"], run.episodes["policy_heldout"]
    if not before or not after:
        before, after = run.episodes["sft_heldout_greedy"] or before, run.episodes["policy_heldout_greedy"] or after
    pairs = pair_episodes(before, after)
    if not pairs:
        return _one_sided(before or after, "before GRPO" if before else "after GRPO", limit)
    return [
        Section(
            title=_SECTIONS[outcome][0],
            note=_SECTIONS[outcome][1],
            total=sum(pair.outcome == outcome for pair in pairs),
            tasks=[_task_view([("before GRPO", p.before), ("after GRPO", p.after)]) for p in chosen],
        )
        for outcome, chosen in choose_pairs(pairs, limit).items()
    ]


def _one_sided(episodes: Sequence[Episode], heading: str, limit: int) -> list[Section]:
    """Sections of a run that has only one evaluation yet."""
    sections: list[Section] = []
    for success, title in ((True, "Solved"), (False, "Not solved")):
        found = [episode for episode in episodes if not episode.failed and bool(episode.success) == success]
        chosen = [_task_view([(heading, episode)]) for episode in found[: max(1, limit // 2) if limit else 0]]
        if chosen:
            sections.append(Section(title=title, note=heading, total=len(found), tasks=chosen))
    return sections


def _task_view(sides: Sequence[tuple[str, Episode]]) -> TaskView:
    episode = sides[0][1]
    turns = episode.trajectories[0].turns
    messages = turns[0].messages if turns else ()
    return TaskView(
        task_id=episode.task_id,
        group=f"{episode.family}/{episode.level}",
        prompt=[(message["role"], message["content"]) for message in messages],
        sides=sides,
    )

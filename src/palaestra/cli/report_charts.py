"""The report's curves as inline SVG, drawn by matplotlib; each has a title and a description for screen readers.

Curves are drawn from the numbers as they were logged. Noisy ones are a faint line, with their running mean over up to
`SMOOTHING` steps as a strong one; few steps have a dot each.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from .report_data import RunData, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHING = 9
FEW_STEPS = 12
KL_BAND = (1.0, 5.0)
"""Nats per episode; where the KL of the shipped small recipes should end."""
BLUE, ORANGE, GREEN, PURPLE, INK, GRID = "#0b62a4", "#c2500a", "#16794c", "#7a3e9d", "#3a4350", "#e3e7ec"
_MEASURED_FONT = "DejaVu Sans"
"""Comes with matplotlib; text is laid out with its widths and shown in the reader's own, narrower font."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": [_MEASURED_FONT],
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa4b0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
_PHASES = (
    ("seconds_generation", "generation", BLUE),
    ("seconds_environment", "environment", ORANGE),
    ("seconds_reference", "reference", PURPLE),
    ("seconds_update", "update", GREEN),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One chart of the report: which metrics of which stage, and how the axis is labelled."""

    title: str
    y_label: str
    columns: tuple[tuple[str, str, str], ...]
    """(metric, label, colour) of each line."""
    stage: str = "grpo"
    limits: tuple[float | None, float | None] = (None, None)
    smooth: bool = True
    """Whether single steps are noise; others are drawn as they are, since a mean would misstate where they begin."""
    band: tuple[float, float] | None = None
    target: Callable[[RunData], float | None] = lambda run: None
    """A value to draw as a dashed line."""
    points: tuple[str, str, str] | None = None
    """(stage, metric, label) of a few values to draw as dots."""


CURVES = (
    Curve(title="Success in training", y_label="share of episodes", columns=(("success", "success", GREEN),),
          limits=(0, 1), points=("validation", "success", "validation split")),
    Curve(title="Reward", y_label="mean reward per episode", columns=(("reward_mean", "reward", BLUE),)),
    Curve(title="KL to the SFT policy, per episode", y_label="nats per episode", limits=(0, None),
          columns=(("kl_seq", "KL", PURPLE),), band=KL_BAND,
          target=lambda run: number(run.recipe.get("grpo", {}), "kl_target")),
    Curve(title="KL to the SFT policy, per token", y_label="nats per token", columns=(("kl_token", "KL", PURPLE),)),
    Curve(title="Entropy", y_label="nats per token", columns=(("entropy", "entropy", BLUE),), limits=(0, None)),
    Curve(title="KL weight β", y_label="β", columns=(("beta", "β", PURPLE),), limits=(0, None), smooth=False),
    Curve(title="Gradient norm", y_label="norm before clipping", columns=(("grad_norm", "gradient norm", ORANGE),),
          limits=(0, None)),
    Curve(title="Turns per episode", y_label="turns", columns=(("mean_turns", "turns", BLUE),), limits=(0, None)),
    Curve(title="Lost signal", y_label="share", limits=(0, None), columns=(
        ("zero_variance_share", "flat groups", BLUE), ("truncation_rate", "truncated", ORANGE),
        ("parse_errors", "invalid actions", PURPLE))),
    Curve(title="SFT loss", y_label="nats per token", stage="sft", columns=(("loss", "loss", ORANGE),),
          limits=(0, None), smooth=False),
)  # fmt: skip


def charts(run: RunData) -> list[Markup]:
    """Draws every chart that the run has numbers for."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        drawn = [_draw_curve(run, curve) for curve in CURVES]
        drawn.insert(-1, _draw_phases(run))
    return [_inline(svg, f"chart{i}", title, text) for i, (svg, title, text) in enumerate(filter(None, drawn))]


def _draw_curve(run: RunData, curve: Curve) -> tuple[str, str, str] | None:
    """Gives (SVG, title, description), or None when the run has no such numbers."""
    columns = [(label, colour, *run.column(curve.stage, name)) for name, label, colour in curve.columns]
    columns = [column for column in columns if column[2]]
    if not columns:
        return None
    figure, axes = _figure(curve)
    if curve.band:
        axes.axhspan(*curve.band, color=GREEN, alpha=0.1, lw=0, label=f"band {curve.band[0]:g} to {curve.band[1]:g}")
    if (target := curve.target(run)) is not None:
        axes.axhline(target, color=GREEN, lw=1, ls="--", label=f"target {target:g}")
    for label, colour, steps, values in columns:
        shown = values
        if curve.smooth and len(values) > FEW_STEPS:
            shown = running_mean(values, min(SMOOTHING, len(values) // 3))
            axes.plot(steps, values, color=colour, lw=0.9, alpha=0.3)
        axes.plot(steps, shown, color=colour, lw=2, label=label, marker="o" if len(steps) <= FEW_STEPS else None, ms=4)
    dots = run.column(*curve.points[:2]) if curve.points else ([], [])
    if curve.points and dots[0]:
        axes.plot(*dots, ls="", marker="o", ms=5, color=INK, label=curve.points[2])
    bottom, top = curve.limits
    axes.set_ylim(bottom, top)
    if bottom == 0:  # lines at 0 and at the top stay visible
        highest = axes.get_ylim()[1]
        axes.set_ylim(-0.03 * highest, 1.04 * highest if top is None else top)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        _legend(figure)
    text = " ".join(_description(label, steps, values) for label, _, steps, values in columns)
    return _svg(figure), curve.title, text


def _draw_phases(run: RunData) -> tuple[str, str, str] | None:
    found = [(label, colour, *run.column("grpo", name)) for name, label, colour in _PHASES]
    found = [column for column in found if column[2] and column[2] == found[0][2]]
    if not found:
        return None
    title = "Seconds per GRPO step, by phase"
    figure, axes = _figure(Curve(title=title, y_label="seconds", columns=()))
    steps = found[0][2]
    axes.stackplot(
        steps,
        [values for *_, values in found],
        labels=[label for label, *_ in found],
        colors=[colour for _, colour, *_ in found],
        alpha=0.75,
    )
    _legend(figure)
    means = ", ".join(f"{label} {sum(values) / len(values):.2f}" for label, _, _, values in found)
    return _svg(figure), title, f"Mean seconds: {means}."


def _figure(curve: Curve) -> tuple[Any, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.2, 2.6), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_title(curve.title, loc="left", fontsize=10.5, fontweight="bold")
    axes.set_xlabel("SFT step" if curve.stage == "sft" else "GRPO step")
    axes.set_ylabel(curve.y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, axes


def _legend(figure: Any) -> None:
    """Puts the legend under the axes, where it hides no data."""
    figure.legend(loc="outside lower center", ncols=4, handlelength=1.4, columnspacing=1.2)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean over up to `window` values around each one; fewer at both ends."""
    half = window // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _description(label: str, steps: Sequence[float], values: Sequence[float]) -> str:
    first, last = values[: max(1, len(values) // 10)], values[-max(1, len(values) // 10) :]
    return (
        f"{label.capitalize()}, steps {steps[0]:g} to {steps[-1]:g}: about {sum(first) / len(first):.3g} at the start, "
        f"{sum(last) / len(last):.3g} at the end, lowest {min(values):.3g}, highest {max(values):.3g}."
    )


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()


def _inline(svg: str, name: str, title: str, description: str) -> Markup:
    """Makes matplotlib's file fit to stand in a page: unique ids, no prolog, no style that leaks, sizes from CSS."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = body.replace(f"'{_MEASURED_FONT}'", "system-ui, sans-serif")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'url\(#|xlink:href="#', lambda match: f"{match[0].removeprefix('xlink:')}{name}-", body)
    view_box = re.search(r'viewBox="[^"]*"', body)
    labels = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    head = f'<svg {view_box[0] if view_box else ""} role="img" aria-labelledby="{name}-title {name}-desc">{labels}'
    return Markup(head + body[body.index(">") + 1 :])

"""`palaestra compare`: two evaluations of the same tasks, paired task by task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from .plain_text import one_line
from .text_files import write_text

if TYPE_CHECKING:
    from ..agents.paired_comparison import PairedComparison
    from ..core.trajectories import Episode


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two episodes files."""

    path: Path
    name: str
    """Whose episodes they are, where the file says so."""
    about: Mapping[str, Any]
    episodes: Sequence[Episode]


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Episodes of the one side: a file of `eval --save`.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Episodes of the other side, on the same tasks.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this JSON file.")] = None,
) -> None:
    """Say whether B is better than A on the same tasks, and how sure that is.

    Tasks are paired by their ids; those that only one side was scored on are left out and counted. Pairing takes out
    how hard each task is, so that smaller differences show than by looking at two intervals.

    *difference* is B's success minus A's, with the 95 % interval of Bonett and Price (2012). *p* is the chance of a
    difference at least as large if the sides were the same: with one episode per task McNemar's exact test, with
    several the exact test over all sign patterns of the tasks' differences.

    Examples:

    ```
    palaestra eval CodeSandbox-v0 --agent hasty -n 200 --save hasty.jsonl
    palaestra eval CodeSandbox-v0 --agent careful -n 200 --save careful.jsonl
    palaestra compare hasty.jsonl careful.jsonl
    palaestra compare runs/x/episodes/sft_heldout.jsonl runs/x/episodes/policy_heldout.jsonl
    ```

    **Output**: tables on the screen, and with `--json` the figures.
    """
    from ..agents.evaluation import task_counts
    from ..agents.paired_comparison import compare_paired

    sides = (_side(a), _side(b))
    _refuse_other_tasks(*sides)
    counts_a, counts_b = (task_counts(side.episodes) for side in sides)
    whole = compare_paired(counts_a, counts_b)
    if whole is None:
        raise ConfigError(f"{a} and {b} have no scored task in common")
    levels = {
        name: compared
        for name, tasks in _tasks_by_level(sides[0].episodes).items()
        if (compared := compare_paired({task: counts_a[task] for task in tasks if task in counts_a}, counts_b))
    }
    unpaired = (len(counts_a) - whole.tasks, len(counts_b) - whole.tasks)
    if json_file:
        write_text(json_file, json.dumps(_figures(sides, whole, levels, unpaired), indent=2) + "\n")
    _print(sides, whole, levels, unpaired)


def _side(path: Path) -> Side:
    from ..agents.store import KIND
    from ..core.records import read_about
    from .report_data import read_episodes

    about = read_about(path, KIND) or {}
    return Side(path, str(about.get("subject") or path.stem), about, read_episodes(path))


def _refuse_other_tasks(a: Side, b: Side) -> None:
    """Equal task ids of two different files, or of two environments, name different tasks."""
    for name, what in (("env_id", "environments"), ("tasks_sha256", "task files")):
        if a.about and b.about and a.about.get(name) != b.about.get(name):
            raise ConfigError(
                f"{a.path} and {b.path} are about different {what}: {name} is "
                f"{json.dumps(a.about.get(name))} and {json.dumps(b.about.get(name))}"
            )


def _tasks_by_level(episodes: Sequence[Episode]) -> dict[str, list[str]]:
    groups: dict[str, dict[str, None]] = {}
    for episode in episodes:
        groups.setdefault(f"{episode.family}/{episode.level}", {})[episode.task_id] = None
    return {name: list(tasks) for name, tasks in sorted(groups.items())}


def _figures(
    sides: tuple[Side, Side],
    whole: PairedComparison,
    levels: Mapping[str, PairedComparison],
    unpaired: tuple[int, int],
) -> dict[str, Any]:
    def figures(result: PairedComparison) -> dict[str, Any]:
        plain = asdict(result)
        interval = [plain.pop("low"), plain.pop("high")]
        return {**plain, "difference": result.difference, "interval_95": interval, "direction": result.direction}

    return {
        "a": {"file": str(sides[0].path), "subject": sides[0].name, "only_here": unpaired[0]},
        "b": {"file": str(sides[1].path), "subject": sides[1].name, "only_here": unpaired[1]},
        **figures(whole),
        "by_level": {name: figures(result) for name, result in levels.items()},
    }


def _print(
    sides: tuple[Side, Side],
    whole: PairedComparison,
    levels: Mapping[str, PairedComparison],
    unpaired: tuple[int, int],
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    figures = Table(title="The same tasks, one by one", title_justify="left", show_header=False)
    figures.add_column()
    figures.add_column(justify="right")
    for letter, side, share in zip("AB", sides, (whole.share_a, whole.share_b), strict=True):
        figures.add_row(Text(f"{letter}: {one_line(side.name)}"), f"{share:.1%}")
    figures.add_row("difference", f"{whole.difference:+.1%}  (95 % interval {whole.low:+.1%} to {whole.high:+.1%})")
    figures.add_row("p, two-sided", "< 0.0001" if whole.p_value < 1e-4 else f"{whole.p_value:.4f}")
    figures.add_row("tasks", str(whole.tasks))
    figures.add_row("solved more often by B, by A", f"{whole.better}, {whole.worse}")
    figures.add_row("left out: in A alone, in B alone", f"{unpaired[0]}, {unpaired[1]}")
    console.print(figures)
    table = Table(title="By family and level", title_justify="left")
    table.add_column("family/level")
    for heading in ("tasks", "A", "B", "B - A", "95 % interval"):
        table.add_column(heading, justify="right")
    for name, result in levels.items():
        difference, interval = f"{result.difference:+.1%}", f"{result.low:+.1%} to {result.high:+.1%}"
        table.add_row(name, str(result.tasks), f"{result.share_a:.1%}", f"{result.share_b:.1%}", difference, interval)
    console.print(table)
    print({"up": "B is better", "down": "A is better", "flat": "no difference shows"}[whole.direction])

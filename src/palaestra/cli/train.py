"""`palaestra train`: runs a recipe and shows what it changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..learners.config import Recipe


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A packaged recipe (quickstart, repair, qwen_lora) or a TOML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Any key of the recipe: grpo.steps=10 seed=1. --dry-run shows all."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the recipe's run folder from its last checkpoint.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe as TOML and stop.")] = False,
) -> None:
    """Train a policy by a recipe: demonstrations, SFT, then GRPO; evaluated before and after.

    Examples:

    ```
    palaestra train quickstart                     # two CPU cores, minutes
    palaestra train quickstart grpo.steps=10 seed=1 run=runs/short
    palaestra train quickstart model=FOLDER        # start from your own model
    palaestra train quickstart --dry-run           # every key and its value
    palaestra train quickstart --dry-run > mine.toml        # a recipe to edit
    palaestra train runs/quickstart/recipe.toml --resume    # after a stop
    ```

    **Output**: the folder named by `run=` with `summary.json`, `metrics.jsonl` and `tb/` (TensorBoard), `sft/` and
    `policy/` (transformers folders), `episodes/` and `report.html`. A folder that already holds a run is moved aside.

    **Ctrl-C** stops after the step under way, with a checkpoint that `--resume` continues from; a second one stops at
    once. A killed run loses what came after its last checkpoint (`grpo.checkpoint_every`, `sft.checkpoint_every`).

    **Exit status**: 0 done, 2 wrong input or a failure (one line says what to do), 130 stopped.
    """
    from ..learners.config import load_recipe, recipe_to_data

    resolved = load_recipe(recipe, overrides or [])
    if dry_run:
        import tomli_w

        print(tomli_w.dumps(recipe_to_data(resolved)).strip())
        return

    from ..learners.pipeline import run
    from .options import environment_id
    from .summary_view import print_summary

    environment_id(resolved.env.id)
    summary = run(resolved, resume)
    print_summary(summary, Path(resolved.run))
    if resolved.report:
        _write_report(resolved)


def _write_report(recipe: Recipe) -> None:
    """Writes the run's report; a missing plotting library is a note, not a failure of a finished run."""
    from .report import write_report

    folder = Path(recipe.run)
    try:
        path = write_report(folder, folder / "report.html")
    except ModuleNotFoundError as error:
        typer.echo(f"no report ({error.name} is not installed): pip install 'palaestra[report]', then "
                   f"palaestra report {folder}", err=True)  # fmt: skip
        return
    print(f"report: {path}")

"""`palaestra eval`: the success of a model or a scripted agent on held-out tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError, EnvironmentFailure, did_you_mean
from . import options
from .episode_progress import episode_progress
from .plain_text import one_line
from .run_settings import RECIPE_FILE, run_settings
from .text_files import write_text

if TYPE_CHECKING:
    from ..agents.evaluation import EvalOptions, EvalResult


def evaluate(
    env_id: Annotated[str, typer.Argument(metavar="ENV_ID", help="CodeSandbox-v0, or module:Id-v0 of your own.")],
    model: Annotated[str, typer.Option(metavar="FOLDER_OR_HUB_ID", help="Any transformers causal LM.")] = "",
    agent: Annotated[
        str,
        typer.Option(
            help="A scripted agent: careful, hasty or sloppy (experts), mixed, oracle (sees the answer), or one that "
            "must fail: null-empty, null-text, null-constant, null-identity, null-visible, null-test-reader. "
            "An environment of your own has the agents that it gives; a wrong name lists them."
        ),
    ] = "",
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Tasks, one episode each.")] = 400,
    split: Annotated[str, typer.Option(help="heldout, validation or train.")] = "heldout",
    seed: Annotated[int, typer.Option(help="Which tasks, and how actions are sampled.")] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token (temperature 0).")] = False,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature. (default: 1)")] = None,
    families: Annotated[str, typer.Option(help="Task families, such as compose,repair.")] = "",
    levels: Annotated[str, typer.Option(help="Levels, such as 1,2,2,3.")] = "",
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="A keyword of the environment; repeatable.")
    ] = None,
    max_turn_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of one action. (default: 512)")] = None,
    max_context_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one episode. (default: 4096)")
    ] = None,
    num_envs: Annotated[int, typer.Option(min=1, help="Episodes that run side by side.")] = 128,
    save: Annotated[Path | None, typer.Option(help="Write the episodes to this JSON-lines file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this JSON file.")] = None,
) -> None:
    """Measure success on held-out tasks, with a 95 % interval.

    A model of a run folder is evaluated as it was trained: families, levels, prompt style and limits come from the
    run's recipe, unless an option says otherwise. Failures of infrastructure are counted apart and never scored.

    Examples:

    ```
    palaestra eval CodeSandbox-v0 --model runs/quickstart/policy --greedy
    palaestra eval CodeSandbox-v0 --agent careful -n 200 --levels 5
    palaestra eval CodeSandbox-v0 --model Qwen/Qwen3-0.6B --save episodes.jsonl
    ```

    **Output**: tables on the screen; with `--save` the episodes, with `--json` the figures.
    """
    from ..agents.evaluation import EvalOptions, evaluate_model, evaluate_scripted
    from ..agents.store import save_episodes
    from ..core.tasks import SPLITS

    if bool(model) == bool(agent):
        raise ConfigError("give exactly one of --model and --agent")
    if greedy and temperature is not None:
        raise ConfigError("--greedy is temperature 0: give --greedy or --temperature, not both")
    if split not in SPLITS:
        raise ConfigError(f"--split={split}{did_you_mean(split, SPLITS)}")
    if model:
        _refuse_a_run_folder(model)
    settings = run_settings(model, options.environment_id(env_id))
    limits = {"max_turn_tokens": max_turn_tokens, "max_context_tokens": max_context_tokens}
    chosen = EvalOptions(
        n=n,
        seed=seed,
        split=split,
        families=options.names(families) or settings.families,
        levels=options.levels(levels) or settings.levels,
        temperature=0.0 if greedy else 1.0 if temperature is None else temperature,
        num_envs=num_envs,
        env_kwargs={**settings.env_kwargs, **options.keywords(env or [], "--env")},
        **{**settings.limits, **{name: value for name, value in limits.items() if value is not None}},
    )
    if settings.source:
        print(f"settings of the environment: {settings.source} (options override them)")
    run, subject = (evaluate_model, model) if model else (evaluate_scripted, agent)
    with episode_progress("episodes", n) as tick:
        result = run(subject, env_id, chosen, tick)
    if save:
        save_episodes(save, result.episodes)
    if json_file:
        write_text(json_file, json.dumps(_figures(subject, env_id, chosen, result), indent=2) + "\n")
    if not result.n:
        raise EnvironmentFailure("infrastructure", f"all {result.failures} episodes failed: {_first_failure(result)}")
    sampling = "scripted" if agent else "greedy" if greedy else f"sampled at T = {chosen.temperature:g}"
    _print_result(f"{subject} in {env_id}, {split} split, {sampling}", result)


def _refuse_a_run_folder(model: str) -> None:
    """Says which folder of a run holds its model, to those who name the run."""
    folder = Path(model)
    found = [folder / name for name in ("policy", "sft") if (folder / name).is_dir()]
    if (folder / RECIPE_FILE).is_file() and not (folder / "config.json").exists():
        hint = f"its model is {found[0]}" if found else "it has no model yet; continue it with palaestra train --resume"
        raise ConfigError(f"--model={model} is the folder of a run: {hint}")


def _figures(subject: str, env_id: str, chosen: EvalOptions, result: EvalResult) -> dict[str, Any]:
    return {
        "subject": subject,
        "env_id": env_id,
        "split": chosen.split,
        "seed": chosen.seed,
        "temperature": chosen.temperature,
        **result.to_json(),
    }


def _first_failure(result: EvalResult) -> str:
    failure = next((episode.failure for episode in result.episodes if episode.failure), None) or {}
    return f"{failure.get('kind', '?')}: {failure.get('message', '?')}"


def _print_result(title: str, result: EvalResult) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..agents.evaluation import wilson_interval

    console = Console()
    figures = Table(title=Text(title), title_justify="left", show_header=False)
    figures.add_column()
    figures.add_column(justify="right")
    figures.add_row(
        "success", f"{result.success:.1%}  (95 % interval {result.interval_low:.1%} to {result.interval_high:.1%})"
    )
    figures.add_row("episodes scored", str(result.n))
    figures.add_row("mean turns", f"{result.mean_turns:.2f}")
    figures.add_row("invalid actions, share of turns", f"{result.parse_error_rate:.1%}")
    figures.add_row("failed episodes (infrastructure)", str(result.failures))
    console.print(figures)
    table = Table(title="By family and level", title_justify="left")
    table.add_column("family/level")
    for heading in ("success", "95 % interval", "episodes"):
        table.add_column(heading, justify="right")
    for name, (success, count) in result.by_level.items():
        low, high = wilson_interval(round(success * count), count)
        table.add_row(name, f"{success:.1%}", f"{low:.1%} to {high:.1%}", str(count))
    console.print(table)
    if result.failures:
        console.print(Text(f"first failure: {one_line(_first_failure(result))}"))

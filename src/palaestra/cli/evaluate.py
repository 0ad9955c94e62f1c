"""`palaestra eval`: the success of a model or a scripted agent on held-out tasks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError, EnvironmentFailure, did_you_mean
from . import options
from .episode_progress import episode_progress
from .evaluation_subject import Subject
from .evaluation_view import first_failure, print_result
from .run_settings import run_settings
from .text_files import write_text

if TYPE_CHECKING:
    from ..agents.evaluation import EvalOptions, EvalResult

EPISODES_AT_ONCE = 128
REQUESTS_AT_ONCE = 16
"""With a server, which may belong to others too."""


def evaluate(
    env_id: Annotated[str, typer.Argument(metavar="ENV_ID", help="CodeSandbox-v0, or module:Id-v0 of your own.")],
    model: Annotated[
        str,
        typer.Option(metavar="FOLDER_OR_HUB_ID", help="Any transformers causal LM; with --base-url the server's name."),
    ] = "",
    base_url: Annotated[
        str, typer.Option(metavar="URL", help="An OpenAI-compatible server, such as http://127.0.0.1:8000/v1.")
    ] = "",
    tool_calls: Annotated[
        str, typer.Option(metavar="FORM", help="With --base-url: text, native (the server's own form) or auto.")
    ] = "text",
    agent: Annotated[
        str,
        typer.Option(
            help="A scripted agent: careful, hasty or sloppy (experts), mixed, oracle (sees the answer), or one that "
            "must fail: null-empty, null-text, null-constant, null-identity, null-visible, null-test-reader. "
            "An environment of your own has the agents that it gives; a wrong name lists them."
        ),
    ] = "",
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Tasks; a task file is never repeated.")] = 400,
    samples: Annotated[int, typer.Option(min=1, help="Episodes per task.")] = 1,
    k: Annotated[
        str, typer.Option("--k", help="pass@k and pass^k for these k, such as 1,10. (default: the number of samples)")
    ] = "",
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
    num_envs: Annotated[
        int | None,
        typer.Option(min=1, help="Episodes side by side, and so requests. (default: 128, with --base-url 16)"),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the episodes to this JSON-lines file, each as soon as it ends.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue what --save has written: run only the episodes that lack.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this JSON file.")] = None,
) -> None:
    """Measure success on held-out tasks, with 95 % intervals.

    A model of a run folder is evaluated as it was trained: families, levels, prompt style and limits come from the
    run's recipe, unless an option says otherwise. Failures of infrastructure are counted apart and never scored.

    Examples:

    ```
    palaestra eval CodeSandbox-v0 --model runs/quickstart/policy --greedy
    palaestra eval CodeSandbox-v0 --agent careful -n 200 --levels 5
    palaestra eval CodeSandbox-v0 --model Qwen/Qwen3-0.6B --save episodes.jsonl
    palaestra eval CodeSandbox-v0 --model Qwen/Qwen3-0.6B --samples 10 --k 1,10
    palaestra eval CodeSandbox-v0 --model FOLDER --env tasks=my_tasks.jsonl
    palaestra eval CodeSandbox-v0 --base-url http://127.0.0.1:8000/v1 --model NAME
    ```

    **A server** gets chat completions as text: the prompt teaches the tools, and the model's text is its action. With
    `--tool-calls native` the tools' schemas are sent along, and calls come and go in the server's own form; `auto` does
    so unless the server refuses tools. The variable OPENAI_API_KEY is sent as its key. What may pass is tried again
    with growing pauses; an episode whose server keeps failing counts as a failure, which `--resume` tries again.

    **With several samples per task**, *pass@k* is the chance that at least one of k attempts at a task succeeds,
    *pass^k* that all of them do; both are estimated without bias (arXiv 2107.03374, 2406.12045). Attempts at one task
    are alike, so the intervals count tasks, not episodes: they say what other tasks of the kind would give.

    **A killed run** goes on with the same options and `--resume`: episodes in the file are not run again, except those
    that infrastructure ended. `-n` and `--samples` may be larger than before.

    **Output**: tables on the screen; with `--save` the episodes (for `palaestra compare`), with `--json` the figures,
    and the SHA-256 of the task file where there is one.
    """
    from ..agents.evaluation import EvalOptions
    from ..core.tasks import SPLITS

    subject = Subject(model=model, agent=agent, base_url=base_url, tool_calls=tool_calls)
    if greedy and temperature is not None:
        raise ConfigError("--greedy is temperature 0: give --greedy or --temperature, not both")
    if split not in SPLITS:
        raise ConfigError(f"--split={split}{did_you_mean(split, SPLITS)}")
    if resume and save is None:
        raise ConfigError("--resume continues an episodes file: name it with --save")
    settings = run_settings(subject.folder, options.environment_id(env_id))
    limits = {"max_turn_tokens": max_turn_tokens, "max_context_tokens": max_context_tokens}
    chosen = EvalOptions(
        n=n,
        samples=samples,
        seed=seed,
        split=split,
        families=options.names(families) or settings.families,
        levels=options.levels(levels) or settings.levels,
        temperature=0.0 if greedy else 1.0 if temperature is None else temperature,
        num_envs=num_envs or (REQUESTS_AT_ONCE if base_url else EPISODES_AT_ONCE),
        env_kwargs={**settings.env_kwargs, **options.keywords(env or [], "--env")},
        **{**settings.limits, **{name: value for name, value in limits.items() if value is not None}},
    )
    ks = _attempts_counted(k, samples)
    if settings.source:
        print(f"settings of the environment: {settings.source} (options override them)")
    about = _about(subject, env_id, chosen)
    result = _run(subject, env_id, chosen, ks, about, save, resume)
    if json_file:
        write_text(json_file, json.dumps(_figures(about, result), indent=2) + "\n")
    if not result.n:
        raise EnvironmentFailure("infrastructure", f"all {result.failures} episodes failed: {first_failure(result)}")
    sampling = "scripted" if agent else "greedy" if greedy else f"sampled at T = {chosen.temperature:g}"
    print_result(f"{subject.name} in {env_id}, {split} split, {sampling}", result)


def _run(
    subject: Subject,
    env_id: str,
    chosen: EvalOptions,
    ks: tuple[int, ...],
    about: Mapping[str, Any],
    save: Path | None,
    resume: bool,
) -> EvalResult:
    """Runs the episodes that `save` does not hold yet; Ctrl-C says how to go on."""
    from ..agents.evaluation_journal import FileJournal, Journal

    with FileJournal(save, about, resume) if save else Journal() as journal:
        if journal.done:
            print(f"{len(journal.done)} episodes are in {save}; running the others")
        try:
            with episode_progress("episodes", chosen.n * chosen.samples) as tick:
                result = subject.evaluation()(subject.name, env_id, chosen, tick, ks=ks, journal=journal)
        except KeyboardInterrupt:
            if save:
                typer.echo(f"{len(journal.done)} episodes are in {save}; --resume runs the others", err=True)
            raise
        journal.finish(result.episodes)
    return result


def _attempts_counted(text: str, samples: int) -> tuple[int, ...]:
    """The values of k, in order; without any, the number of samples where there are several."""
    ks = sorted(set(options.whole_numbers(text, "--k", "1,10"))) or ([samples] if samples > 1 else [])
    for k in ks:
        if not 1 <= k <= samples:
            raise ConfigError(f"--k={k}: must be in 1..{samples}; --samples={k} or more would allow it")
    return tuple(ks)


def _about(subject: Subject, env_id: str, chosen: EvalOptions) -> dict[str, Any]:
    """What decides an evaluation's episodes, as JSON data; a task file counts by its content, wherever it lies."""
    server = {"tool_calls": subject.tool_calls} if subject.base_url else {}
    return {
        "subject": subject.name,
        "base_url": subject.base_url or None,
        "env_id": env_id,
        "split": chosen.split,
        "seed": chosen.seed,
        "temperature": chosen.temperature,
        "n": chosen.n,
        "samples": chosen.samples,
        "families": list(chosen.families),
        "levels": list(chosen.levels),
        "max_turn_tokens": chosen.max_turn_tokens,
        "max_context_tokens": chosen.max_context_tokens,
        "env": {name: value for name, value in chosen.env_kwargs.items() if name != "tasks"},
        "tasks": os.path.abspath(tasks) if isinstance(tasks := chosen.env_kwargs.get("tasks"), str) else None,
        "tasks_sha256": chosen.tasks_sha256(),
        **server,
    }


def _figures(settings: Mapping[str, Any], result: EvalResult) -> dict[str, Any]:
    names = ("subject", "base_url", "env_id", "split", "seed", "temperature", "samples", "tasks_sha256")
    return {**{name: settings[name] for name in names}, **result.to_json()}

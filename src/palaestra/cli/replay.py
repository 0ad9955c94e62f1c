"""`palaestra replay`: plays recorded episodes again and shows where they go another way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import ConfigError, EnvironmentFailure
from . import options
from .episode_progress import episode_progress
from .plain_text import one_line, visible

if TYPE_CHECKING:
    from ..agents.replay import Replay
    from .replay_source import FoundEpisodes, Numbered

DIFFERENT = 1
"""Exit status when an episode went another way."""


def replay(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="A run folder, or a file of `eval`, `demos` or `play`.")
    ],
    episode: Annotated[
        int | None, typer.Option("--episode", min=1, metavar="N", help="The N-th episode of the file, counted from 1.")
    ] = None,
    task_id: Annotated[str, typer.Option("--task-id", help="All episodes of this task.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every episode of the file.")] = False,
    file: Annotated[
        str, typer.Option(help="Which episodes of a run folder, such as sft_heldout. (default: policy_heldout)")
    ] = "",
    env_id: Annotated[
        str, typer.Option("--env-id", metavar="ENV_ID", help="The environment, where the file does not name it.")
    ] = "",
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="A keyword laid over the recorded ones.")
    ] = None,
) -> None:
    """Play recorded episodes again, action by action, and show the first difference.

    The environment is made as it was (its id and keywords stand in the file, or in the run's recipe), reset with the
    recorded task and seed, and given the recorded actions. All that it answers is compared exactly: messages,
    observations, rewards, parse errors, and how the episode ended. A difference says that something else decides
    episodes than seed and actions: a clock, a changed task file, another version of a package.

    Failures of infrastructure are no differences and are counted apart: those that were recorded (their turns are
    compared up to there), and those that come now.

    Examples:

    ```
    palaestra replay runs/quickstart --episode 12
    palaestra replay runs/quickstart --file sft_heldout --all
    palaestra replay demos.jsonl --all
    palaestra replay old.jsonl --env-id CodeSandbox-v0 --env prompt_style=compact --episode 1
    ```

    **Output**: one episode: its turns up to the first difference, recorded against now; several: a count, and which
    differ.

    **Exit status**: 0 all are equal, 1 one differs, 2 wrong input, or infrastructure failed now and nothing differs.
    """
    from ..agents.replay import replay as play_again
    from ..envs.registration import make_env
    from .replay_source import find_episodes
    from .replay_view import print_many, print_one

    if sum((episode is not None, bool(task_id), everything)) != 1:
        raise ConfigError("give exactly one of --episode N, --task-id TASK and --all")
    found = find_episodes(source, file)
    chosen = _chosen(found, episode, task_id)
    origin = found.made_in(env_id, options.keywords(env or [], "--env"))
    results: list[tuple[Numbered, Replay]] = []
    with (
        make_env(options.environment_id(origin.env_id), **origin.keywords, on_failure="raise") as environment,
        episode_progress("episodes", len(chosen)) as tick,
    ):
        for done, one in enumerate(chosen, 1):
            results.append((one, play_again(environment, one.episode)))
            tick(done, len(chosen))
    if len(results) == 1 and not everything:
        print_one(*results[0])
    else:
        print_many(found.path, results)
    _end(Counter(result.status for _, result in results), results)


def _chosen(found: FoundEpisodes, number: int | None, task_id: str) -> Sequence[Numbered]:
    if number is not None:
        if number > len(found.episodes):
            raise ConfigError(f"--episode={number}: {found.path} has {len(found.episodes)} episodes")
        return [found.episodes[number - 1]]
    chosen = [one for one in found.episodes if not task_id or one.episode.task_id == task_id]
    if not chosen:
        raise ConfigError(f"{found.path} has no episode{f' of task {visible(task_id)!r}' if task_id else ''}")
    return chosen


def _end(counts: Counter[str], results: Sequence[tuple[Numbered, Replay]]) -> None:
    if counts["different"]:
        raise typer.Exit(DIFFERENT)
    if counts["failed now"]:
        first = next(result.failure_now for _, result in results if result.failure_now)
        raise EnvironmentFailure("infrastructure", f"{counts['failed now']} episodes failed now: {one_line(first)}")

"""`palaestra demos`: synthetic trajectories from scripted experts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import StorageError
from . import options
from .episode_progress import episode_progress

if TYPE_CHECKING:
    from ..agents.episode_origin import EpisodeOrigin
    from ..core.trajectories import Episode


class DemoFormat(StrEnum):
    """What a line of the output file holds."""

    episodes = "episodes"
    chat = "chat"


def demos(
    env_id: Annotated[str, typer.Argument(metavar="ENV_ID", help="CodeSandbox-v0, or module:Id-v0 of your own.")],
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many demonstrations to write.")] = 1000,
    output: Annotated[Path, typer.Option("-o", "--output", help="The JSON-lines file to write.")] = Path("demos.jsonl"),
    seed: Annotated[int, typer.Option(help="Equal seeds give equal files.")] = 0,
    families: Annotated[str, typer.Option(help="Task families, such as compose,repair. (default: the id's own)")] = "",
    levels: Annotated[
        str, typer.Option(help="Levels, such as 1,2,2,3; one listed twice is drawn twice as often. (default: all)")
    ] = "",
    experts: Annotated[
        str,
        typer.Option(
            help="Share of each scripted expert. (default: careful=0.17,hasty=0.68,sloppy=0.15, or equal shares of the "
            "experts that your environment gives)"
        ),
    ] = "",
    success_only: Annotated[
        bool, typer.Option("--success-only", help="Keep only those that passed the hidden tests.")
    ] = False,
    file_format: Annotated[
        DemoFormat,
        typer.Option("--format", help='episodes: full records; chat: {"messages": [...]} rows for any SFT trainer.'),
    ] = DemoFormat.episodes,
    processes: Annotated[int, typer.Option(min=1, help="Processes that play side by side.")] = 2,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="A keyword of the environment; repeatable.")
    ] = None,
) -> None:
    """Write synthetic trajectories: scripted experts play, seeing only what an agent sees.

    Experts differ on purpose. *careful* runs its program and repairs it until the visible tests pass, *hasty* submits
    its first guess, *sloppy* repairs badly; a mix teaches a model what can be said, and leaves reinforcement learning
    something to improve. *reviewer*, who is not in the mix unless named, is careful from the second action on; the
    first is somebody else's, and `palaestra train` does not learn it. Tasks come from the train split, never from the
    held-out one.

    Examples:

    ```
    palaestra demos CodeSandbox-v0 -n 10000 -o demos.jsonl
    palaestra demos CodeSandbox-v0 --families compose --levels 1,2,2,3
    palaestra demos CodeSandbox-v0 --format chat --success-only -o sft.jsonl
    ```

    **Output**: the file named by `-o`, one demonstration a line, and a table per expert on the screen.
    """
    from ..agents.demonstrations import generate_demos
    from ..agents.episode_origin import EpisodeOrigin

    env_id = options.environment_id(env_id)
    mix = options.shares(experts, "--experts") if experts else None
    env_kwargs: dict[str, Any] = {"split": "train", **options.keywords(env or [], "--env")}
    if families:
        env_kwargs["families"] = list(options.names(families))
    if levels:
        env_kwargs["levels"] = list(options.levels(levels))
    episodes = generate_demos(
        env_id, n, seed, mix=mix, env_kwargs=env_kwargs, processes=processes, success_only=success_only
    )
    started = time.perf_counter()
    first = next(episodes)  # what is wrong with the options shows here, before a file is replaced
    tallies: dict[str, ExpertTally] = {}
    origin = EpisodeOrigin(env_id=env_id, keywords=env_kwargs)
    written = _write(output, file_format, _watched(chain([first], episodes), n, tallies), origin)
    seconds = time.perf_counter() - started
    _print_tallies(tallies)
    print(f"{written} demonstrations in {output} ({written / seconds:.0f} per second)")


@dataclass(slots=True)
class ExpertTally:
    """Counts over the demonstrations of one expert."""

    count: int = 0
    successes: int = 0
    turns: int = 0

    def add(self, episode: Episode) -> None:
        """Counts one demonstration."""
        self.count += 1
        self.successes += bool(episode.success)
        self.turns += len(episode.trajectories[0].turns)


def chat_row(episode: Episode) -> dict[str, Any]:
    """The demonstration as `{"messages": [{"role", "content"}, ...]}`, from the first prompt to the last action."""
    messages: list[dict[str, str]] = []
    for turn in episode.trajectories[0].turns:
        messages += [{"role": message["role"], "content": message["content"]} for message in turn.messages]
        messages.append({"role": "assistant", "content": turn.action})
    return {"messages": messages}


def _watched(episodes: Iterable[Episode], n: int, tallies: dict[str, ExpertTally]) -> Iterator[Episode]:
    """Passes episodes on while it counts them and shows how far it is."""
    with episode_progress("demonstrations", n) as tick:
        for done, episode in enumerate(episodes, 1):
            tallies.setdefault(str(episode.info.get("expert", "?")), ExpertTally()).add(episode)
            yield episode
            tick(done, n)


def _write(output: Path, file_format: DemoFormat, episodes: Iterable[Episode], origin: EpisodeOrigin) -> int:
    from ..agents.store import save_episodes

    if file_format is DemoFormat.episodes:
        return save_episodes(output, episodes, origin)
    return _write_chat(output, episodes)


def _write_chat(output: Path, episodes: Iterable[Episode]) -> int:
    """Writes rows without a header line: other people's loaders read this file."""
    count = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("w", encoding="utf-8") as file:
            for episode in episodes:
                file.write(json.dumps(chat_row(episode), ensure_ascii=False) + "\n")
                count += 1
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}") from error
    return count


def _print_tallies(tallies: dict[str, ExpertTally]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Demonstrations")
    table.add_column("expert")
    for heading in ("demos", "success", "mean turns"):
        table.add_column(heading, justify="right")
    for name, tally in sorted(tallies.items()):
        table.add_row(
            name,
            str(tally.count),
            f"{tally.successes / tally.count:.1%}",
            f"{tally.turns / tally.count:.1f}",
        )
    Console().print(table)

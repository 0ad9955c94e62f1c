"""`palaestra play`: act by hand in the terminal, or watch an agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError, EnvironmentFailure, did_you_mean
from . import options
from .errors import INTERRUPTED
from .run_settings import run_settings

if TYPE_CHECKING:
    from ..agents.episode_origin import EpisodeOrigin
    from ..agents.single_episode import MakeAgent
    from ..core.agents import Agent
    from ..core.trajectories import Episode
    from .play_view import PlayView

MAX_SEED = 2**31


def play(
    env_id: Annotated[str, typer.Argument(metavar="ENV_ID", help="CodeSandbox-v0, or module:Id-v0 of your own.")],
    task_id: Annotated[str, typer.Option("--task-id", help="The task, such as compose:heldout:2:17.")] = "",
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED - 1, help="Decides the task. (default: another one each time)")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or heldout.")] = "train",
    level: Annotated[str, typer.Option("--level", "--levels", help="Levels to draw from, such as 2 or 1,2.")] = "",
    family: Annotated[str, typer.Option("--family", "--families", help="Task families, such as repair.")] = "",
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="A keyword of the environment; repeatable.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Add the episode to this JSON-lines file, for `replay` and demonstrations.")
    ] = None,
    agent: Annotated[str, typer.Option(help="Watch a scripted agent, such as careful; a wrong name lists them.")] = "",
    model: Annotated[
        str, typer.Option(metavar="FOLDER_OR_HUB_ID", help="Watch a transformers causal LM, at temperature 1.")
    ] = "",
) -> None:
    """Act by hand in the terminal: see the task and the tools, write actions, read what comes back.

    **Actions** are what a model would write. One line is enough where it says everything (`submit`, `price apple`);
    others go on over several lines and end at an empty line or at a line with a dot alone. For programs with empty
    lines in them begin with `run <<`: then only the dot ends. `<tool_call>{...}</tool_call>` and fenced code work, too.

    **Commands**: `help`, `tools`, `task` (shows it again) and `quit`; with a colon in front where a tool has that name.

    Actions may come through a pipe; its end is the end of the last action, and of the episode.

    Examples:

    ```
    palaestra play CodeSandbox-v0
    palaestra play CodeSandbox-v0 --family repair --level 3 --seed 7 --save mine.jsonl
    palaestra play CodeSandbox-v0 --agent careful
    palaestra play CodeSandbox-v0 --model runs/quickstart/policy --split heldout
    printf 'run\\nprint(1)\\n.\\nsubmit\\n' | palaestra play CodeSandbox-v0 --task-id compose:heldout:1:7
    palaestra replay mine.jsonl --all
    ```

    **Output**: the transcript; with `--save` the episode, also one that was left.

    **Exit status**: 0 the episode ended or was left, 2 wrong input or a failure of infrastructure, 130 Ctrl-C.
    """
    from ..agents.single_episode import run_episode
    from ..envs.base import ToolEnv
    from ..envs.registration import make_env
    from .play_view import PlayView

    if agent and model:
        raise ConfigError("give at most one of --agent and --model")
    env_id = options.environment_id(env_id)
    family = family or task_id.rpartition(":")[0].partition(":")[0]  # of compose:train:2:17, say
    origin = _origin(env_id, model, split, family, level, env or [])
    saver = _open(save, origin) if save else None  # what is wrong with the file shows before somebody plays
    with make_env(env_id, **origin.keywords, on_failure="raise") as environment:
        plain = environment.unwrapped
        if not isinstance(plain, ToolEnv):
            raise ConfigError(f"{env_id} is a {type(plain).__name__}, not a palaestra.envs.base.ToolEnv")
        seed = _drawn_seed() if seed is None else seed
        task = plain.task_set.by_id(task_id) if task_id else plain.task_set.task(seed)
        view = PlayView(plain, seed)
        player = _player(agent, model, environment, view)
        name = agent or model or "player"
        episode = run_episode(environment, player, task.task_id, seed, name=name, info={"expert": name})
    view.end(episode)
    if saver is not None:
        saver(episode)
        view.say(f"saved: {save}")
    if episode.failure:
        raise EnvironmentFailure(str(episode.failure["kind"]), str(episode.failure["message"]))
    if episode.stop_reason == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _origin(env_id: str, model: str, split: str, family: str, level: str, env: list[str]) -> EpisodeOrigin:
    """The environment to make; a model of a run folder plays in the one that it was trained in."""
    from ..agents.episode_origin import EpisodeOrigin
    from ..core.tasks import SPLITS

    if split not in SPLITS:
        raise ConfigError(f"--split={split}{did_you_mean(split, SPLITS)}")
    settings = run_settings(model, env_id)
    mix = {"families": options.names(family) or settings.families, "levels": options.levels(level) or settings.levels}
    chosen = {name: list(values) for name, values in mix.items() if values}
    keywords = {"split": split, **chosen, **settings.env_kwargs, **options.keywords(env, "--env")}
    return EpisodeOrigin(env_id=env_id, keywords=keywords)


def _drawn_seed() -> int:
    import secrets

    return secrets.randbelow(MAX_SEED)


def _player(agent: str, model: str, environment: Any, view: PlayView) -> MakeAgent:
    """Makes the agent of an episode from the info of its reset: a person, or one who is watched."""
    from ..agents.scripted import scripted_agent

    if not agent and not model:
        return lambda info: view.person()
    if agent:
        return lambda info: view.watched(scripted_agent(agent, info["family"], environment))
    policy = _load(model)
    return lambda info: view.watched(policy)


def _load(model: str) -> Agent:
    from ..agents.llm import LLMPolicy

    return LLMPolicy.load(model)


def _open(path: Path, origin: EpisodeOrigin) -> Callable[[Episode], None]:
    """Gives a function that adds an episode to a file.

    Raises:
        ConfigError: The file holds episodes of another environment.
        RecordError: It is damaged, or holds something else.
    """
    from ..agents.store import KIND
    from ..core.records import RecordWriter, episode_to_record, read_about

    about = origin.about()
    before: Mapping[str, Any] | None = read_about(path, KIND) if path.is_file() and path.stat().st_size else about
    if before != about:
        raise ConfigError(f"--save={path} holds episodes of other settings; choose another file")

    def add(episode: Episode) -> None:
        with RecordWriter(path, KIND, append=True, about=about) as writer:
            writer.write(episode_to_record(episode))

    return add

"""What somebody sees who plays or watches an episode in the terminal; plain text where there is no terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ..agents.single_episode import StopsHere
from ..core.errors import ConfigError
from ..envs.tools import usage
from .action_input import COMMANDS, ActionInput
from .plain_text import visible

if TYPE_CHECKING:
    from ..core.agents import Agent
    from ..core.trajectories import Episode
    from ..envs.base import ToolEnv

HELP = """Write what a model would write: the tool's name, then its arguments.
  one line      submit            price apple
  several       the tool's name, then one argument a line; an empty line or a dot alone ends
  with gaps     run <<            then only a line with a dot alone ends
  also          <tool_call>{"name": ..., "arguments": {...}}</tool_call>, and fenced code
Commands: help, tools, task, quit (:help and so on, where a tool has that name)"""


class PlayView:
    """Shows an episode, and asks a person for actions.

    Args:
        env: The environment.
        seed: Of the episode, which decides its task.
    """

    def __init__(self, env: ToolEnv, seed: int) -> None:
        self._env, self._seed = env, seed
        self._console = Console(highlight=False, soft_wrap=True)
        self.is_interactive = sys.stdin.isatty()
        """Whether a person is asked; what comes through a pipe is shown as it is read."""
        self._observation = ""
        if self.is_interactive:
            with contextlib.suppress(ImportError):  # gives input() a history, where the platform has it
                import readline  # noqa: F401

    def person(self) -> Agent:
        """The agent that is whoever sits at the terminal."""
        return _Person(self, ActionInput(self._ask, self._env.tools))

    def watched(self, agent: Agent) -> Agent:
        """An agent whose actions are shown."""
        return _Watched(self, agent)

    def begin(self, observation: str) -> None:
        """Shows the task, the tools and the budget."""
        self._observation = observation
        task = self._env.task
        self.say(f"{task.task_id}, seed {self._seed}", "bold")
        self.say(observation)
        if self._env.options.prompt_style == "compact":
            self.tools()
        self.say(f"{self._env.turns_left} turns", "dim")

    def act(self, action: str) -> None:
        """Shows an action that somebody else took."""
        self.say(f"> {action}" if "\n" not in action else f">\n{action}", "blue")

    def answer(self, observation: str) -> None:
        """Shows what the environment answered."""
        self.say(observation, "dim" if self._console.is_terminal else "")

    def end(self, episode: Episode) -> None:
        """Shows how it ended, and what came back last."""
        turns = episode.trajectories[0].turns
        if episode.terminated and turns:
            self.answer(turns[-1].observation)
        if episode.failure:
            self.say(f"infrastructure failed after {len(turns)} turns; the episode is not scored", "bold yellow")
            return
        verdict = "success" if episode.success else "no success"
        colour = "green" if episode.success else "yellow"
        said = f"{verdict}, reward {episode.reward:g} ({episode.stop_reason}), {len(turns)} turns"
        self.say(said, f"bold {colour}")

    def tools(self) -> None:
        """Shows the tools."""
        for schema in self._env.tools:
            self.say(f"- {usage(schema)}")

    def command(self, command: str) -> None:
        """Does what a command says.

        Raises:
            StopsHere: It says `quit`.
        """
        if command == ":quit":
            raise StopsHere("quit")
        if command == ":tools":
            self.tools()
        else:
            self.say(HELP if command == ":help" else self._observation)

    def prompt(self) -> str:
        """What stands before the first line of an action."""
        total = self._env.options.max_turns
        return f"turn {total - self._env.turns_left + 1} of {total}> "

    def say(self, text: str, style: str = "") -> None:
        """Prints text of any origin."""
        self._console.print(Text(visible(text), style=style))

    def _ask(self, prompt: str) -> str:
        try:
            if self.is_interactive:
                return input(prompt)
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise ConfigError(f"what was written is not UTF-8: {error.reason}") from error
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


class _Person:
    """Reads actions; leaves the episode where there are no more."""

    def __init__(self, view: PlayView, actions: ActionInput) -> None:
        self._view, self._actions = view, actions

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Shows the task."""
        self._view.begin(observation)
        self._view.say(f"commands: {', '.join(COMMANDS)}", "dim")
        self._first = True

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Shows what came back, and asks."""
        if not self._first:
            self._view.answer(observation)
        self._first = False
        try:
            while (text := self._actions.read(self._view.prompt())).startswith(":"):
                if text[1:] not in COMMANDS:
                    return text
                self._view.command(text)
        except EOFError:
            raise StopsHere("quit") from None
        except KeyboardInterrupt:
            raise StopsHere("interrupted") from None
        if not self._view.is_interactive:
            self._view.act(text)
        return text


class _Watched:
    """Passes on what an agent does, and shows it."""

    def __init__(self, view: PlayView, agent: Agent) -> None:
        self._view, self._agent = view, agent

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Shows the task."""
        self._view.begin(observation)
        self._agent.reset(observation, info, seed)
        self._first = True

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Shows what came back, and what the agent does next."""
        if not self._first:
            self._view.answer(observation)
        self._first = False
        action = self._agent.act(observation, info)
        self._view.act(action)
        return action

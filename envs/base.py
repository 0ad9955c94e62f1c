"""`ToolEnv`: state, typed tools and a grader make a Gymnasium environment for language-model agents.

An action is the model's raw text, an observation is what is new since then. A subclass gives tools (methods marked
with `tool`), `_start` and `_grade`; this class parses, checks, counts turns, ends episodes, and keeps failures of
infrastructure apart from rewards. It knows no tokens: collectors do.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

import gymnasium as gym

from ..core import messages as chat
from ..core.errors import ConfigError, EnvironmentFailure, SandboxDied, did_you_mean
from ..core.messages import Message
from ..core.spaces import Unicode
from ..core.tasks import Split, Task, TaskFamily
from ..rewards.base import Grade
from ..rewards.shaping import Shaping
from .actions import Call, ParseError, ToolSchema, parse_action
from .options import EnvOptions, task_set_of
from .scripts import Scripted
from .tools import tools_of, usage

OnFailure = Literal["raise", "info"]
PromptStyle = Literal["full", "compact"]
Info = dict[str, Any]
Result = TypeVar("Result")
NO_GRADE = Grade(reward=0.0, success=False, components={})
FAILURES = (SandboxDied, EnvironmentFailure)
"""What tools raise when infrastructure failed, and nothing else does."""


@dataclass(slots=True)
class Telemetry:
    """Wall-clock seconds; never part of observations or infos, which are deterministic."""

    resets: int = 0
    steps: int = 0
    seconds: float = 0.0
    retries: int = 0
    """Steps that were tried again after a failure of infrastructure."""


@dataclass(slots=True)
class _EpisodeState:
    task: Task
    turns: int = 0
    grade: Grade | None = None
    ended: bool = False
    log: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    potential: float = 0.0
    """How far the episode was after its last step, where progress is rewarded."""
    shaped: float = 0.0
    """The rewards for progress so far."""


class ToolEnv(Scripted, gym.Env[str, str]):
    """Base of all environments; see the module's docstring.

    Args:
        options: The keywords that all environments share.
        families: All task families of this environment, by name; the first is the default.
        load_tasks: Reads a task file (`options.tasks`).
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (declared so by Gymnasium)
    can_fork: ClassVar[bool] = False
    """Whether live episodes can be copied; see `fork`."""
    has_potential: ClassVar[bool] = False
    """Whether `_potential` says how far an episode is, so that `shaping` can reward progress."""
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keeps the arguments, so that the environment can be made again; see `__reduce__`."""
        env = super().__new__(cls)
        env._arguments = args, kwargs
        return env

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy (by `copy` or `pickle`) is made anew from the same arguments; a live episode stays behind."""
        return _made_again, (type(self), *self._arguments), {"spec": self.spec}

    def __init__(
        self,
        options: EnvOptions,
        families: Mapping[str, TaskFamily],
        load_tasks: Callable[[Path], list[Task]] | None = None,
    ) -> None:
        if options.render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode={options.render_mode!r}: must be None or 'ansi'")
        if options.shaping is not None and not self.has_potential:
            raise ConfigError(f"shaping: {type(self).__name__} does not measure progress")
        self._shaping = None if options.shaping is None else Shaping.from_mapping(options.shaping)
        self.options = options
        self.render_mode = options.render_mode
        self.observation_space = Unicode()
        self.action_space = Unicode()
        self.telemetry = Telemetry()
        self.task_set = task_set_of(options, cast(Split, options.split), families, load_tasks)
        self._families, self._load_tasks = families, load_tasks
        self._schemas = tools_of(type(self))
        self._state: _EpisodeState | None = None

    # ------------------------------------------------------------------------------- what a subclass gives
    def _start(self, task: Task) -> None:
        """Prepares the state for a task; must not touch slow infrastructure."""
        raise NotImplementedError

    def _grade(self) -> Grade:
        """Grades what stands when the turns run out."""
        return NO_GRADE

    def _potential(self) -> float:
        """How far the episode is, from 0 to 1, where `has_potential` says that it can be told; never by the agent."""
        raise NotImplementedError

    def _fork_into(self, copies: Sequence[Any]) -> None:
        """Gives copies of this environment its own state, where `can_fork` says that it can."""
        raise NotImplementedError

    def _recover(self) -> None:
        """Rebuilds state after a failure of infrastructure, so that the step can be tried once more."""

    def _anchor(self, observation: str) -> str | None:
        """Names the state that the agent acts in next: equal names, equal states; never a part of the task's secret.

        Learners compare turns of one task that began in an equal state (GiGPO). None: what was observed last stands for
        the state.
        """
        return None

    def _instructions(self, task: Task) -> str:
        """What the `full` prompt says besides the tools and the turn budget."""
        return ""

    def _submit(self, grade: Grade) -> None:
        """Called by a tool: the episode ends with this grade."""
        self._current.grade = grade

    # ------------------------------------------------------------------------------------------- Gymnasium
    @property
    def tools(self) -> list[ToolSchema]:
        """The tools' JSON schemas, as chat templates take them; a fresh copy."""
        return copy.deepcopy(list(self._schemas.values()))

    @property
    def task(self) -> Task:
        """The task of the current episode, its secret part included; agents must not see it."""
        return self._current.task

    @property
    def has_episode(self) -> bool:
        """Whether `reset` was called: before, there is no task."""
        return self._state is not None

    @property
    def families(self) -> Mapping[str, TaskFamily]:
        """All task families of this environment, by name."""
        return self._families

    @property
    def turns_left(self) -> int:
        """How many actions the agent may still take."""
        return self.options.max_turns - self._current.turns

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        """Starts an episode.

        Args:
            seed: Decides the task; without one, tasks follow from the last seed.
            options: `{"task_id": ...}` picks a task, `{"split": ...}` another split for this episode.

        Raises:
            EnvironmentFailure: Infrastructure failed, and `on_failure` is `"raise"`.
        """
        super().reset(seed=seed)
        began = time.perf_counter()
        task = self._choose(seed, options or {})
        self._state = _EpisodeState(task=task)
        try:
            self._retried(lambda: self._start(task))
            if self._shaping is not None:
                self._state.potential = self._retried(self._potential)
        except FAILURES as error:
            return "", self._failed("", error)
        observation = task.prompt
        first = [chat.user(task.prompt)]
        if self.options.prompt_style == "full":
            first = [chat.system(self._system_text()), chat.user(self._user_text(task))]
            observation = "\n\n".join(message["content"] for message in first)
        self.telemetry.resets += 1
        self.telemetry.seconds += time.perf_counter() - began
        return observation, self._info(first) | {"tools": self.tools}

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        """Takes one action.

        Raises:
            EnvironmentFailure: Infrastructure failed, and `on_failure` is `"raise"`.
        """
        state = self._current
        if state.ended:
            raise gym.error.ResetNeeded("the episode has ended: call reset() before step()")
        if not isinstance(action, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"an action is the model's text (str), not {type(action).__name__}")
        began = time.perf_counter()
        state.turns += 1
        try:
            observation, parse_error = self._perform(action)
            terminated = state.grade is not None or state.turns >= self.options.max_turns
            if terminated and state.grade is None:
                grade, reason = self._retried(self._grade), "turn_limit"
            else:
                grade, reason = state.grade, "submitted" if terminated else None
            reward = self._shaped_reward(float(grade.reward) if grade else 0.0, terminated)
        except FAILURES as error:
            return "", math.nan, False, True, self._failed(action, error)
        state.ended = terminated
        state.log.append((action, observation))
        self.telemetry.steps += 1
        self.telemetry.seconds += time.perf_counter() - began
        info = self._info([chat.tool(observation)], parse_error=parse_error, grade=grade, reason=reason)
        if terminated and self._shaping is not None:
            info["reward_components"]["shaping"] = state.shaped
        return observation, reward, terminated, False, info

    def fork(self, n: int) -> list[Self]:
        """Gives `n` independent environments in the middle of this one's episode.

        The agent's state, the turns taken and the random state are copies: what is done in one changes no other. This
        one goes on, too.

        For trees of turns and for groups that branch from the middle of an episode; they are closed one by one.

        Raises:
            ConfigError: This environment cannot be forked, or `n` is no number of copies.
            ResetNeeded: There is no episode, or it has ended.
            EnvironmentFailure: Infrastructure failed.
        """
        if not self.can_fork:
            raise ConfigError(f"{type(self).__name__} cannot be forked")
        if type(n) is not int or n < 1:
            raise ConfigError(f"n={n!r}: must be a whole number of copies")
        state = self._current
        if state.ended:
            raise gym.error.ResetNeeded("the episode has ended: call reset() before fork()")
        copies = [self._copied(state) for _ in range(n)]
        try:
            self._retried(lambda: self._fork_into(copies))
        except SandboxDied as error:
            raise EnvironmentFailure("sandbox_died", str(error)) from error
        return copies

    def _copied(self, state: _EpisodeState) -> Self:
        args, kwargs = self._arguments
        made = type(self)(*args, **kwargs)
        made.spec = self.spec
        made._state = replace(state, log=list(state.log))
        made._np_random, made._np_random_seed = copy.deepcopy(self._np_random), self._np_random_seed
        return made

    def render(self) -> str | None:  # type: ignore[override]
        """The transcript so far, when `render_mode="ansi"`."""
        if self.render_mode != "ansi" or self._state is None:
            return None
        turns = [f"\x1b[1m>>> {action}\x1b[0m\n{observation}" for action, observation in self._state.log]
        return "\n".join([self._state.task.prompt, *turns])

    # -------------------------------------------------------------------------------------------- internals
    @property
    def _current(self) -> _EpisodeState:
        if self._state is None:
            raise gym.error.ResetNeeded("call reset() first")
        return self._state

    def _shaped_reward(self, outcome: float, ended: bool) -> float:
        """The reward of a step: its outcome, and what it is worth as progress where that is rewarded."""
        shaping, state = self._shaping, self._current
        if shaping is None:
            return outcome
        potential = 0.0 if ended and shaping.terminal == "zero" else self._retried(self._potential)
        progress = shaping.reward(state.potential, potential)
        state.potential, state.shaped = potential, state.shaped + progress
        return shaping.outcome * outcome + progress

    def _choose(self, seed: int | None, options: Mapping[str, Any]) -> Task:
        for name in options:
            if name not in ("task_id", "split"):
                raise ConfigError(f"reset option {name!r}{did_you_mean(name, ('task_id', 'split'))}")
        tasks = self.task_set
        if "task_id" in options:
            return tasks.by_id(options["task_id"])
        if "split" in options:
            tasks = task_set_of(self.options, options["split"], self._families, self._load_tasks)
        number = seed if seed is not None else int(self.np_random.integers(0, 2**31))
        return tasks.task(number)

    def _perform(self, action: str) -> tuple[str, str | None]:
        """Runs an action's calls in order and gives what they answered, and what was malformed.

        The first malformed call ends the action, and so does a submission: what follows them is not run.
        """
        texts: list[str] = []
        try:
            for call in self._parse(action):
                method = cast(Callable[..., str], getattr(self, call.name))
                texts.append(self._retried(lambda method=method, call=call: method(**call.arguments)))
                if self._current.grade is not None:
                    break
        except ParseError as error:
            return "\n".join([*texts, str(error)]), str(error).partition("\n")[0]
        return "\n".join(texts), None

    def _parse(self, action: str) -> list[Call]:
        if len(action) > self.options.max_chars:
            raise ParseError(f"error: the action has {len(action)} characters; {self.options.max_chars} are allowed")
        return parse_action(action, list(self._schemas.values()), self.options.parser)

    def _retried(self, act: Callable[[], Result]) -> Result:
        """Acts, and once more when infrastructure fails: a tool changes its own state only after what may fail."""
        try:
            return act()
        except FAILURES as error:
            if isinstance(error, EnvironmentFailure) and not error.retryable:
                raise
            self.telemetry.retries += 1
            self._recover()
            return act()

    def _failed(self, action: str, error: SandboxDied | EnvironmentFailure) -> Info:
        """Ends the episode after a failure of infrastructure: raises it, or gives the info that tells of it."""
        failure = EnvironmentFailure("sandbox_died", str(error)) if isinstance(error, SandboxDied) else error
        state = self._current
        state.ended = True
        if self.options.on_failure == "raise":
            raise failure from error
        state.log.append((action, str(failure)))
        info = self._info([], reason="failed")
        info["failure"] = {"kind": failure.kind, "message": failure.message, "retryable": failure.retryable}
        return info

    def _info(
        self,
        messages: list[Message],
        parse_error: str | None = None,
        grade: Grade | None = None,
        reason: str | None = None,
    ) -> Info:
        task = self._current.task
        return {
            "task_id": task.task_id,
            "family": task.family,
            "level": task.level,
            "success": None if grade is None else bool(grade.success),
            "reward_components": {} if grade is None else dict(grade.components),
            "stop_reason": reason,
            "parse_error": parse_error,
            "failure": None,
            "messages": messages,
            "anchor": self._anchor("\n\n".join(message["content"] for message in messages)),
        }

    def _system_text(self) -> str:
        lines = [f"- {usage(schema)}" for schema in self._schemas.values()]
        return "\n".join(
            [
                f"You have {self.options.max_turns} turns. In each turn call a tool:",
                *lines,
                "Write the tool's name on the first line and its arguments below, one a line "
                '(or <tool_call>{"name": ..., "arguments": {...}}</tool_call>).',
            ]
        )

    def _user_text(self, task: Task) -> str:
        extra = self._instructions(task)
        return f"{task.prompt}\n\n{extra}" if extra else task.prompt


def _made_again(kind: type[ToolEnv], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ToolEnv:
    return kind(*args, **kwargs)

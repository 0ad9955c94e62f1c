"""What checks work with: environments made anew, episodes as data, and how a check says what is wrong."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...core.seeding import derive_seed
from ...core.tasks import Task
from ..base import ToolEnv
from ..registration import make_env
from ..scripts import Cast, sample_call

SEED = 3
"""Of the episodes that scripts are played in: what an expert did there makes sense there alone."""
SHOWN = 120
"""Characters of a value that a finding shows."""


class Broken(Exception):
    """A promise is not kept.

    Args:
        problem: What was seen.
        fix: What to write instead, where it is not what the check always advises.
    """

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(problem)
        self.problem, self.fix = problem, fix


class Skip(Exception):
    """There is nothing to check; the text says why."""


@dataclass(frozen=True, slots=True)
class Check:
    """One numbered check."""

    name: str
    perform: Callable[[Bench], None]
    advice: str
    """What to write where the promise is not kept."""


def check(advice: str) -> Callable[[Callable[[Bench], None]], Check]:
    """Makes a function a check, named as it is named."""

    def made(perform: Callable[[Bench], None]) -> Check:
        return Check(perform.__name__.strip("_").replace("_", " "), perform, advice)

    return made


def expect(kept: bool, problem: str, fix: str = "") -> None:
    """Says that a promise is broken, unless it is kept."""
    if not kept:
        raise Broken(problem, fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One answer of an environment; the first one answers `reset`."""

    action: str | None
    observation: Any
    reward: Any = 0.0
    terminated: Any = False
    truncated: Any = False
    info: Any

    @property
    def ended(self) -> bool:
        """Whether the episode ended here."""
        return bool(self.terminated or self.truncated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """How an agent's episode went."""

    task_id: str
    reward: float
    success: bool | None
    turns: int
    ended: bool


@dataclass(slots=True)
class Bench:
    """One environment under examination."""

    env_id: str
    kwargs: Mapping[str, Any]
    cast: Cast
    tasks: int
    """Tasks per family that the oracle and the null agents play."""
    timeout_s: float = 60.0
    """How long one check may take."""
    figures: dict[str, float] = field(default_factory=dict[str, float])
    _scripts: list[list[str]] = field(default_factory=list[list[str]])
    _played: dict[tuple[str, str], list[Played]] = field(default_factory=dict[tuple[str, str], list[Played]])

    def afresh(self) -> Bench:
        """Another bench for the same environment, which remembers the figures alone."""
        return replace(self, figures=dict(self.figures), _scripts=[], _played={})

    @contextlib.contextmanager
    def make(self, **changes: Any) -> Generator[Any, None, None]:
        """An environment with these keywords laid over the user's own; closed at the end."""
        env = make_env(self.env_id, **{**self.kwargs, **changes})
        try:
            yield env
        finally:
            env.close()

    def episode(self, actions: Sequence[str], seed: int = SEED, **changes: Any) -> list[Step]:
        """Plays actions in a new environment, up to the end of the episode."""
        with self.make(**changes) as env:
            return play(env, actions, seed)

    def scripts(self) -> list[list[str]]:
        """Sequences of actions: calls of all tools in a row, of each one twice, and what agents did with `SEED`."""
        if not self._scripts:
            with self.make() as env:
                calls = [sample_call(schema) for schema in plain(env).tools]
            made = [["nonsense", *calls], *([call, "nonsense", call] for call in calls)]
            self._scripts = [*made, *(actions for actions in self._recorded() if actions)]
        return self._scripts

    def _recorded(self) -> Iterator[list[str]]:
        """What the oracle and the first expert do; nothing where they fail, which is another check's finding."""
        with self.make() as env:
            _, info = env.reset(seed=SEED)
            names = [name for name in self.cast.names(env, info["family"]) if not name.startswith("null-")]
            for name in dict.fromkeys([*names[:1], *(name for name in names if name == "oracle")]):
                actions: list[str] = []
                with contextlib.suppress(Exception):
                    self._play(env, name, SEED, actions)
                yield actions

    def families(self) -> list[str]:
        """The families under examination: those that were asked for, or all; one empty name for a task file."""
        with self.make() as env:
            unwrapped = plain(env)
            if unwrapped.task_set.fixed:
                return [""]
            return list(unwrapped.options.families) or list(unwrapped.families)

    def agents(self, family: str) -> tuple[str, ...]:
        """Names of the agents that can play a family."""
        with self.family(family) as env:
            env.reset(seed=0)
            return tuple(self.cast.names(env, family))

    def family(self, name: str, **changes: Any) -> Any:
        """An environment that draws from one family."""
        return self.make(**changes, **({"families": [name]} if name else {}))

    def played(self, agent: str, family: str, tasks: int = 0) -> list[Played]:
        """Episodes of an agent, of all splits; played once and remembered."""
        key = agent, family
        if key not in self._played:
            self._played[key] = list(self._play_all(agent, family, tasks or self.tasks))
            rewards = [one.reward for one in self._played[key]]
            self.figures[f"{agent} ({family or 'tasks'})"] = sum(rewards) / len(rewards)
        return self._played[key]

    def all_played(self) -> list[Played]:
        """Every episode that agents have played so far."""
        return [one for played in self._played.values() for one in played]

    def _play_all(self, agent: str, family: str, tasks: int) -> Iterator[Played]:
        for split in ("train", "heldout"):
            with self.family(family, split=split, on_failure="raise") as env:
                for number in range((tasks + 1) // 2):
                    yield self._play(env, agent, derive_seed("check", split, number) % 2**31)

    def _play(self, env: Any, agent: str, seed: int, done: list[str] | None = None) -> Played:
        """One episode of an agent; its actions are added to `done`."""
        actions = [] if done is None else done
        observation, info = env.reset(seed=seed)
        player = self.cast.make(agent, info["family"], env)
        player.reset(observation, info, seed)
        total, turns, ended = 0.0, 0, False
        while not ended and turns <= plain(env).options.max_turns:
            actions.append(player.act(observation, info))
            observation, reward, terminated, truncated, info = env.step(actions[-1])
            total, turns, ended = total + reward, turns + 1, bool(terminated or truncated)
        return Played(task_id=info["task_id"], reward=total, success=info["success"], turns=turns, ended=ended)


def plain(env: Any) -> ToolEnv:
    """The environment without its wrappers."""
    return env.unwrapped


def play(env: Any, actions: Sequence[str], seed: int) -> list[Step]:
    """Resets and plays actions, up to the end of the episode."""
    return [begin(env, seed), *act(env, actions)]


def begin(env: Any, seed: int) -> Step:
    """Resets."""
    observation, info = env.reset(seed=seed)
    return Step(action=None, observation=observation, info=info)


def act(env: Any, actions: Sequence[str]) -> list[Step]:
    """Plays actions, up to the end of the episode."""
    steps: list[Step] = []
    for action in actions:
        steps.append(Step(action=action, **dict(zip(_ANSWER, env.step(action), strict=True))))
        if steps[-1].ended:
            break
    return steps


_ANSWER = ("observation", "reward", "terminated", "truncated", "info")


def canonical(value: Any) -> str:
    """A value as text that is equal for equal values, in every process."""
    return json.dumps(value, sort_keys=True, default=lambda thing: f"<{type(thing).__name__}>")


def content(task: Task) -> str:
    """What a task is about, whatever its name."""
    return canonical([task.prompt, task.public, task.secret])


def as_data(steps: Sequence[Step]) -> list[dict[str, str]]:
    """Episodes as texts, to be compared."""
    return [{"action": repr(step.action), **{n: canonical(getattr(step, n)) for n in _ANSWER}} for step in steps]


def difference(first: Sequence[Mapping[str, str]], again: Sequence[Mapping[str, str]]) -> str:
    """Where two episodes part, as a readable line; empty where they do not."""
    for one, other in zip(first, again, strict=False):
        for name in _ANSWER:
            if one[name] != other[name]:
                where = "reset" if one["action"] == "None" else f"step({shown(one['action'])})"
                return f"{name} of {where}: {_around(one[name], other[name])}"
    return "" if len(first) == len(again) else f"one has {len(first) - 1} steps, the other {len(again) - 1}"


def shown(text: object) -> str:
    """A value on a short line."""
    line = " ".join(str(text).split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."


def _around(one: str, other: str) -> str:
    """Both texts from shortly before the place where they part."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, at - 20)
    before = "..." if start else ""
    return f"{before}{shown(one[start : at + 40])} / {before}{shown(other[start : at + 40])}"

"""Who plays an environment by script, given by the environment itself: experts, an oracle, null agents.

Experts see observations only and make demonstrations (`palaestra demos`, the stage SFT of `palaestra train`). The
oracle sees the answer: it certifies that tasks can be solved and that the grader agrees. Null agents cannot know the
answer: what they score is a fault of the task or of the grader. `palaestra check` plays them all, `palaestra eval
--agent NAME` any one of them.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.agents import Agent
from ..core.errors import ConfigError, did_you_mean
from ..core.seeding import derive_seed
from .actions import ToolSchema, format_tool_call

Script = Generator[str, str, None]
"""Yields actions, and is sent what was observed after each."""
Expert = Callable[[str, random.Random], Script]
"""Called with the first observation and a source of randomness of its own."""
NULL_TEXTS = {"null-empty": "", "null-text": "The answer is 42."}
_SAMPLES: dict[str, Any] = {
    "string": "x = 1",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": [],
    "object": {},
}


class Scripted:
    """The part of a `ToolEnv` that says who can play it; all of it is optional."""

    experts: ClassVar[Mapping[str, Expert]] = {}
    """Experts by name. They see observations only.

    Example::

        def guesser(observation: str, rng: random.Random) -> Script:
            answer = yield "ask"
            yield f"say {answer}"
    """
    takes_over_at: ClassVar[Mapping[str, int]] = {}
    """Turn from which on an expert's actions are its own, for experts that show how somebody else's start is mended.
    Learners imitate nothing before it."""
    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """Least and greatest sum of an episode's rewards."""

    def oracle_actions(self) -> Iterable[str]:
        """Actions that solve the present task; `self.task.secret` may be used."""
        raise NotImplementedError

    def null_actions(self) -> Mapping[str, Sequence[str]]:
        """Agents that cannot know the answer, by name, as their actions (the last one is repeated).

        Give cheap tricks that your grader has to withstand. Empty text, prose and calls of each tool with made-up
        arguments are tried in any case.
        """
        return {}


class ScriptedAgent:
    """Plays a script; when that is over, it says its last action again.

    Args:
        start: Gives the script of an episode from its first observation and a seed.
    """

    def __init__(self, start: Callable[[str, int], Script]) -> None:
        self._start = start

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Begins the script."""
        self._script = self._start(observation, seed)
        self._begun, self._action = False, ""

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Gives the script's next action."""
        with contextlib.suppress(StopIteration):
            self._action = self._script.send(observation) if self._begun else next(self._script)
        self._begun = True
        return self._action


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Who is there to play: names of agents in an environment, and how to make one for the episode it is in."""

    names: Callable[[Any, str], Sequence[str]]
    """(environment, family) -> names: `oracle`, null agents (`null-...`), and experts."""
    make: Callable[[str, str, Any], Agent]
    """(name, family, environment) -> agent."""


def has_oracle(env: Scripted) -> bool:
    """Whether an environment can solve its own tasks."""
    return type(env).oracle_actions is not Scripted.oracle_actions


def agent_names(env: Any, family: str = "") -> tuple[str, ...]:
    """Names of the agents that an environment gives itself, and of the null agents that all have."""
    plain = env.unwrapped
    oracle = ("oracle",) if has_oracle(plain) else ()
    own = tuple(f"null-{name}" for name in plain.null_actions()) if plain.has_episode else ()
    calls = tuple(f"null-calls-{schema['function']['name']}" for schema in plain.tools)
    return (*plain.experts, *oracle, *NULL_TEXTS, *own, *calls)


def make_agent(name: str, family: str, env: Any) -> Agent:
    """Makes an agent by its name, for the episode that the environment is in.

    Raises:
        ConfigError: The environment has no agent of that name.
    """
    plain = env.unwrapped
    if name in plain.experts:
        expert = plain.experts[name]
        return ScriptedAgent(lambda seen, seed: expert(seen, random.Random(derive_seed(seed, "expert", name))))
    if name == "oracle" and has_oracle(plain):
        return ScriptedAgent(lambda seen, seed: _script(plain.oracle_actions()))
    nulls = null_scripts(plain)
    if name in nulls:
        return ScriptedAgent(lambda seen, seed: _script(nulls[name]))
    raise ConfigError(f"agent {name!r}{did_you_mean(name, agent_names(env))}")


OWN_CAST = Cast(names=agent_names, make=make_agent)


def null_scripts(env: Any) -> dict[str, Sequence[str]]:
    """The actions of all null agents of an environment, by name."""
    texts = {name: (text,) for name, text in NULL_TEXTS.items()}
    own = {f"null-{name}": actions for name, actions in env.null_actions().items()}
    calls = {f"null-calls-{schema['function']['name']}": (sample_call(schema),) for schema in env.tools}
    return {**texts, **own, **calls}


def sample_call(schema: ToolSchema) -> str:
    """A well-formed call of a tool, with made-up arguments that fit its schema."""
    function = schema["function"]
    parameters = function["parameters"]["properties"]
    return format_tool_call(function["name"], {name: _SAMPLES[parameters[name]["type"]] for name in parameters})


def _script(actions: Iterable[str]) -> Script:
    remaining = iter(actions)  # not `yield from`, which would send observations to what may be a list
    while (action := next(remaining, None)) is not None:
        yield action

"""Scripted agents by name: experts that make demonstrations, the oracle, null agents."""

from __future__ import annotations

from typing import Any

from ...core.errors import ConfigError, did_you_mean
from ...envs import scripts
from ...envs.base import ToolEnv
from ...envs.code_sandbox import CodeSandboxEnv
from ..base import Agent
from .bounds import Oracle, null_agents
from .experts import TAKES_OVER_AT, CodeExpert, Habits, MixedExpert
from .tracing import TraceExpert

EXPERTS = ("careful", "hasty", "sloppy", "reviewer")
DEFAULT_MIX = {"careful": 0.17, "hasty": 0.68, "sloppy": 0.15}
"""Shares of the experts in demonstrations, and in the agent `mixed`."""
KINDS: dict[str, type[CodeExpert] | type[TraceExpert]] = {
    "compose": CodeExpert,
    "repair": CodeExpert,
    "trace": TraceExpert,
}
"""The kind of expert that knows a task family."""
NULL_AGENTS = ("null-empty", "null-text", "null-constant", "null-identity", "null-visible", "null-test-reader")
NULL_AGENTS_FOR_INPUTS = (*NULL_AGENTS, "null-random")
"""Where the answer is an input."""
NAMES = (*EXPERTS, "mixed", "oracle", *NULL_AGENTS_FOR_INPUTS)


def scripted_agent(name: str, family: str, env: Any) -> Agent:
    """Makes an agent for the episode that `env` is in.

    Args:
        name: One of `NAMES`.
        family: The task's family.
        env: The environment; only the oracle and the null agents look at its task, experts do not.

    Raises:
        ConfigError: The name is unknown, or no expert knows the family.

    An environment that gives its own agents (`palaestra.envs.scripts`) is asked for them instead.
    """
    if has_own_agents(env):
        return scripts.make_agent(name, family, env)
    if name not in NAMES:
        raise ConfigError(f"agent {name!r}{did_you_mean(name, NAMES)}")
    if name == "oracle":
        return Oracle(env.unwrapped.task)
    if name in NULL_AGENTS_FOR_INPUTS:
        known = null_agents(env.unwrapped.task)
        if name not in known:
            raise ConfigError(f"no agent {name!r} for family {family!r}; it has {', '.join(known)}")
        return known[name]
    if family not in KINDS:
        raise ConfigError(f"no expert {name!r} for family {family!r}; experts know {', '.join(KINDS)}")
    max_turns = env.unwrapped.options.max_turns
    if name == "mixed":
        return MixedExpert(DEFAULT_MIX, max_turns, KINDS[family])
    return KINDS[family](Habits(quality=name, max_turns=max_turns))  # type: ignore[arg-type]


def null_agent_names(family: str) -> tuple[str, ...]:
    """The null agents of a family."""
    return NULL_AGENTS_FOR_INPUTS if family == "trace" else NULL_AGENTS


def has_own_agents(env: Any) -> bool:
    """Whether an environment is played by agents of its own, not by Palaestra's."""
    plain = getattr(env, "unwrapped", None)
    if not isinstance(plain, ToolEnv):
        return False
    return bool(plain.experts) or scripts.has_oracle(plain) or not isinstance(plain, CodeSandboxEnv)


def agent_names(env: Any, family: str) -> tuple[str, ...]:
    """The names of all agents that can play a family in an environment."""
    if has_own_agents(env):
        return scripts.agent_names(env, family)
    plain = env.unwrapped
    answered = not plain.has_episode or plain.task.secret.get("reference")  # a user's task may come without a solution
    experts = (*EXPERTS, "mixed") if family in KINDS else ()
    return (*experts, *(("oracle",) if answered else ()), *null_agent_names(family))


def expert_names(env: Any) -> tuple[str, ...]:
    """The experts who can make demonstrations in an environment."""
    return tuple(env.unwrapped.experts) if has_own_agents(env) else EXPERTS


def takes_over_at(env: Any, expert: str) -> int | None:
    """Turn from which on an expert's actions are its own; None for one whose actions all are."""
    known = env.unwrapped.takes_over_at if has_own_agents(env) else TAKES_OVER_AT
    return known.get(expert)


def default_mix(env: Any) -> dict[str, float]:
    """Shares of the experts where none are asked for: an environment's own experts come equally often.

    Raises:
        ConfigError: The environment has no expert.
    """
    if not has_own_agents(env):
        return dict(DEFAULT_MIX)
    names = expert_names(env)
    if not names:
        kind = type(env.unwrapped).__name__
        raise ConfigError(
            f"{kind} has no experts: give it some, {kind}.experts = {{'name': a function that yields actions}}"
        )
    return dict.fromkeys(names, 1.0)


CAST = scripts.Cast(names=agent_names, make=scripted_agent)
"""Everybody who can play; for `palaestra.envs.self_check`."""

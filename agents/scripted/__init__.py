"""Scripted agents by name: experts that make demonstrations, the oracle, null agents."""

from __future__ import annotations

from typing import Any

from ...core.errors import ConfigError, did_you_mean
from ..base import Agent
from .bounds import Oracle, null_agents
from .experts import CodeExpert, Habits, MixedExpert
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
    """
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

"""When infrastructure fails there is no verdict: the episode is raised or masked, never rewarded."""

from __future__ import annotations

import math
from typing import Any, cast

import gymnasium as gym

from ...core.errors import EnvironmentFailure, SandboxDied
from ..scripts import sample_call
from .bench import Bench, Broken, check, expect, plain

_LET_THROUGH = "Let SandboxDied and EnvironmentFailure through (no broad except in tools, no except around step)."


@check(_LET_THROUGH)
def _raises_failures(bench: Bench) -> None:
    for action in _failing_actions(bench):
        with bench.make(on_failure="raise") as env:
            env.reset(seed=8)
            _break_tools(env)
            try:
                _, reward, *_ = env.step(action)
            except EnvironmentFailure:
                continue
            raise Broken(f"on_failure='raise' did not raise EnvironmentFailure; the step was rewarded with {reward}")


@check(
    f"{_LET_THROUGH} With on_failure='info', pass on what ToolEnv.step gives: reward NaN, truncated, info['failure']."
)
def _masks_failures(bench: Bench) -> None:
    for action in _failing_actions(bench):
        with bench.make(on_failure="info") as env:
            env.reset(seed=8)
            _break_tools(env)
            _, reward, terminated, truncated, info = env.step(action)
            expect(math.isnan(reward), f"a failure was rewarded with {reward}")
            expect(truncated and not terminated, "a failure must truncate, not terminate")
            expect(info["success"] is None, f"a failure has no success, yet it is {info['success']}")
            told: Any = info["failure"]
            complete = isinstance(told, dict) and {"kind", "message", "retryable"} <= set(cast(dict[str, Any], told))
            expect(complete, f"info['failure'] is {told!r}: it needs kind, message and retryable")
            try:
                env.step(action)
            except gym.error.ResetNeeded:
                continue
            raise Broken("the episode goes on after a failure")


@check(f"{_LET_THROUGH} A reset whose _start fails gives an episode that is over, with info['failure'].")
def _survives_a_failing_start(bench: Bench) -> None:
    with bench.make(on_failure="info") as env:
        unwrapped = plain(env)
        setattr(unwrapped, "_start", _fail)  # noqa: B010 (the instance's, in front of the class's)
        _, info = env.reset(seed=8)
        expect(bool(info.get("failure")), "reset() hid that _start failed")
        delattr(unwrapped, "_start")
        _, info = env.reset(seed=8)
        expect(info["failure"] is None, "a failure is still told of after the next reset()")
        env.step("nonsense")


CHECKS = (_raises_failures, _masks_failures, _survives_a_failing_start)


def _fail(*_: Any, **__: Any) -> str:
    raise SandboxDied("pulled the plug")


def _failing_actions(bench: Bench) -> list[str]:
    with bench.make() as env:
        return [sample_call(schema) for schema in plain(env).tools]


def _break_tools(env: Any) -> None:
    for schema in plain(env).tools:
        setattr(env.unwrapped, schema["function"]["name"], _fail)

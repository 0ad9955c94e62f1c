"""The contract of language-model environments as checks that any of them can be put through.

    from palaestra.envs.self_check import self_check
    for result in self_check("my_package:Mine-v0"):
        print(result.name, result.problem or "ok")

It checks what every `ToolEnv` promises: spaces, determinism, ends, failures, infos. It does not check that tasks can be
solved or that graders are fair; oracles and null agents do that.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.utils.env_checker import check_env

from ..core.errors import EnvironmentFailure, SandboxDied
from .actions import ToolSchema, format_tool_call
from .registration import make_env

INFO_KEYS = frozenset(
    ("task_id", "family", "level", "success", "reward_components", "stop_reason", "parse_error", "failure", "messages")
)
NASTY_TEXTS = (
    "",
    " ",
    "\n\n",
    "hello",
    "\x00\ud800",
    "<tool_call>",
    "<tool_call>{}</tool_call>",
    "```",
    "a" * 5000,
    "[]",
)
SECRET_LENGTH = 12
"""Characters from which on a secret is looked for in what the agent sees."""
_SAMPLES: dict[str, Any] = {
    "string": "x = 1",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": [],
    "object": {},
}
Maker = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What one check found. `problem` is empty when the environment keeps that part of the contract."""

    name: str
    problem: str


def self_check(env_id: str, **kwargs: Any) -> list[CheckResult]:
    """Puts an environment through all checks.

    Args:
        env_id: Any id that `make_env` takes.
        kwargs: Its keywords.
    """

    def make(**changes: Any) -> Any:
        return make_env(env_id, **{**kwargs, **changes})

    results: list[CheckResult] = []
    for check in CHECKS:
        problem = ""
        try:
            check(make)
        except Exception as error:  # whatever an environment does wrong is a finding
            problem = f"{type(error).__name__}: {error}"
        results.append(CheckResult(name=check.__name__.strip("_").replace("_", " "), problem=problem))
    return results


def _passes_gymnasiums_own_checker(make: Maker) -> None:
    with make() as env, warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


def _has_text_spaces(make: Maker) -> None:
    with make() as env:
        for space in (env.observation_space, env.action_space):
            _expect("a b\n\tü" in space, f"{space} does not take ordinary text")
            _expect(space == copy.deepcopy(space), f"{space} is not equal to its copy")
        observation, _ = env.reset(seed=0)
        _expect(observation in env.observation_space, "the first observation is not in the observation space")


def _repeats_resets_of_one_seed(make: Maker) -> None:
    with make() as env, make() as other:
        first = env.reset(seed=7)
        for _ in range(5):
            _expect(env.reset(seed=7) == first, "reset(seed=7) gave something else the next time")
        _expect(other.reset(seed=7) == first, "reset(seed=7) gave something else in another instance")


def _repeats_episodes_of_one_seed(make: Maker) -> None:
    def episode() -> list[Any]:
        with make() as env:
            seen: list[Any] = [env.reset(seed=3)]
            for action in (*_valid_actions(env.unwrapped.tools), "nonsense"):
                seen.append(env.step(action))
                if seen[-1][2] or seen[-1][3]:
                    break
            return seen

    _expect(episode() == episode(), "the same actions after reset(seed=3) gave something else")


def _finds_tasks_by_id(make: Maker) -> None:
    with make() as env:
        observation, info = env.reset(seed=5)
        again, _ = env.reset(seed=6, options={"task_id": info["task_id"]})
        _expect(again == observation, f"options task_id={info['task_id']!r} gave another task")


def _tells_what_it_promises_in_infos(make: Maker) -> None:
    with make() as env:
        observation, info = env.reset(seed=1)
        _check_info(info, observation)
        _expect(isinstance(info.get("tools"), list) and info["tools"], 'the first info has no "tools"')
        _expect(info["success"] is None, "success is decided before the episode ends")
        info.clear()
        observation, _, terminated, truncated, info = env.step("nonsense")
        _check_info(info, observation)
        _expect("tools" not in info, '"tools" belong to the first info alone')
        _expect((info["success"] is None) == (not (terminated or truncated)), "success is not None until the end")


def _takes_any_text_as_an_action(make: Maker) -> None:
    with make() as env:
        for text in NASTY_TEXTS:
            env.reset(seed=2)
            observation, reward, terminated, truncated, info = env.step(text)
            _expect(isinstance(observation, str), f"the answer to {text!r} is no text")
            _expect(type(terminated) is bool and type(truncated) is bool, "terminated and truncated must be bool")
            _expect(isinstance(reward, float) and math.isfinite(reward), f"the reward of {text!r} is {reward!r}")
            _expect(info["parse_error"] is None or info["parse_error"] in observation, "parse errors must be readable")


def _ends_when_turns_run_out(make: Maker) -> None:
    with make(max_turns=2) as env:
        env.reset(seed=4)
        _expect(not env.step("nonsense")[2], "it ended before its turns ran out")
        _, reward, terminated, truncated, info = env.step("nonsense")
        _expect(terminated and not truncated, "running out of turns must terminate, not truncate")
        _expect(info["stop_reason"] == "turn_limit", f"stop_reason is {info['stop_reason']!r}, not 'turn_limit'")
        _expect(reward == 0.0 and info["success"] is False, "nothing was handed in, yet it was rewarded")
        try:
            env.step("nonsense")
        except gym.error.ResetNeeded:
            return
        raise AssertionError("step after the end must raise ResetNeeded")


def _never_rewards_a_failure_of_infrastructure(make: Maker) -> None:
    def fail(**_: Any) -> str:
        raise SandboxDied("pulled the plug")

    for on_failure in ("raise", "info"):
        with make(on_failure=on_failure) as env:
            env.reset(seed=8)
            tool = env.unwrapped.tools[0]
            setattr(env.unwrapped, tool["function"]["name"], fail)
            action = _valid_actions([tool])[0]
            if on_failure == "raise":
                try:
                    env.step(action)
                except EnvironmentFailure:
                    continue
                raise AssertionError("on_failure='raise' did not raise EnvironmentFailure")
            _, reward, terminated, truncated, info = env.step(action)
            _expect(math.isnan(reward), f"a failure was rewarded with {reward}")
            _expect(truncated and not terminated, "a failure must truncate, not terminate")
            _expect(info["success"] is None, "a failure has no success")
            _expect(set(info["failure"]) == {"kind", "message", "retryable"}, f"failure is {info['failure']!r}")


def _keeps_secrets(make: Maker) -> None:
    with make() as env:
        for seed in range(5):
            observation, info = env.reset(seed=seed)
            in_info = json.dumps(info)
            for value in env.unwrapped.task.secret.values():
                text = value if isinstance(value, str) else json.dumps(value)
                if len(text) >= SECRET_LENGTH:  # a shorter one, such as a number, may well occur by chance
                    leaks = text in observation or json.dumps(text)[1:-1] in in_info
                    _expect(not leaks, f"task {info['task_id']} shows a part of its secret")


def _closes_twice(make: Maker) -> None:
    env = make()
    env.reset(seed=0)
    env.close()
    env.close()


CHECKS: tuple[Callable[[Maker], None], ...] = (
    _passes_gymnasiums_own_checker,
    _has_text_spaces,
    _repeats_resets_of_one_seed,
    _repeats_episodes_of_one_seed,
    _finds_tasks_by_id,
    _tells_what_it_promises_in_infos,
    _takes_any_text_as_an_action,
    _ends_when_turns_run_out,
    _never_rewards_a_failure_of_infrastructure,
    _keeps_secrets,
    _closes_twice,
)


def _expect(kept: bool, problem: str) -> None:
    if not kept:
        raise AssertionError(problem)


def _check_info(info: dict[str, Any], observation: str) -> None:
    missing = INFO_KEYS - set(info)
    _expect(not missing, f"info lacks {sorted(missing)}")
    pickle.dumps(info)
    json.dumps(info)
    told = "\n\n".join(message["content"] for message in info["messages"])
    _expect(told == observation, 'info["messages"] does not say what the observation says')


def _valid_actions(tools: list[ToolSchema]) -> list[str]:
    """One well-formed call of each tool, with arguments that fit its schema."""
    calls: list[str] = []
    for schema in tools:
        function = schema["function"]
        parameters = function["parameters"]["properties"]
        arguments = {name: _SAMPLES[parameters[name]["type"]] for name in parameters}
        calls.append(format_tool_call(function["name"], arguments))
    return calls

"""An environment is made by its id, takes the keywords that all share, and can be made again elsewhere."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from typing import Any

from gymnasium.utils.env_checker import check_env

from ...core.errors import ConfigError
from ..base import ToolEnv
from .bench import Bench, Broken, check, expect, plain

_SHARED: tuple[dict[str, Any], ...] = (
    {"split": "heldout"},
    {"families": []},
    {"levels": []},
    {"max_turns": 3},
    {"prompt_style": "compact"},
    {"on_failure": "info"},
    {"render_mode": None},
)
_WRONG: tuple[dict[str, Any], ...] = (
    {"max_turns": 0},
    {"split": "held-out"},
    {"families": ["no-such-family"]},
    {"levels": [987654321]},
    {"no_such_keyword": 1},
)


@check("class Mine(palaestra.envs.ToolEnv), and gymnasium.register(id='Mine-v0', entry_point=Mine) in its module.")
def _is_a_tool_env_that_its_id_makes(bench: Bench) -> None:
    with bench.make() as env:
        made: object = env.unwrapped
        expect(isinstance(made, ToolEnv), f"{bench.env_id} makes a {type(made).__name__}, which is no ToolEnv")


@check("def __init__(self, **keywords): super().__init__(EnvOptions(**keywords), families)")
def _takes_the_keywords_that_all_environments_share(bench: Bench) -> None:
    for keywords in _SHARED:
        try:
            with bench.make(**keywords) as env:
                name, value = next(iter(keywords.items()))
                held = getattr(plain(env).options, name)
                expect(held == value, f"{name}={value!r} was given, yet options.{name} is {held!r}")
        except ConfigError as error:
            raise Broken(f"{_written(keywords)} is refused: {error}") from error


@check(
    "Check keywords in __init__ and raise ConfigError('name=value: what is right'); EnvOptions checks the shared ones."
)
def _refuses_wrong_keywords_in_one_line(bench: Bench) -> None:
    for keywords in _WRONG:
        if "tasks" in bench.kwargs and ("families" in keywords or "levels" in keywords):
            continue
        try:
            with bench.make(**keywords):
                raise Broken(f"{_written(keywords)} is accepted")
        except (ConfigError, ValueError) as error:
            expect("\n" not in str(error), f"{_written(keywords)}: the error is longer than a line")


@check(
    "Take the environment's state from its keywords alone; keep no open files, locks or lambdas among the arguments."
)
def _can_be_copied_and_pickled(bench: Bench) -> None:
    with bench.make() as env:
        env.reset(seed=5)
        for how, made in (("copy.deepcopy", copy.deepcopy), ("pickle", _through_pickle)):
            try:
                again = made(env.unwrapped)
            except Exception as error:
                raise Broken(f"{how}: {type(error).__name__}: {error}") from error
            try:
                expect(again.reset(seed=5)[0] == env.reset(seed=5)[0], f"{how} gave an environment with other tasks")
            finally:
                again.close()


@check("Keep Unicode as both spaces and override reset and step only to add to what ToolEnv's give.")
def _passes_gymnasiums_own_checker(bench: Bench) -> None:
    with bench.make() as env, warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            check_env(env.unwrapped, skip_render_check=True)
        except Exception as error:
            said = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
            raise Broken(f"{type(error).__name__}: {said}") from error


@check("Leave observation_space and action_space as ToolEnv sets them (palaestra.core.spaces.Unicode).")
def _has_text_spaces(bench: Bench) -> None:
    with bench.make() as env:
        for name in ("observation_space", "action_space"):
            space = getattr(env, name)
            expect("a b\n\tü" in space, f"{name}={space} does not take ordinary text")
            expect(space == copy.deepcopy(space), f"{name}={space} is not equal to its copy")
        observation, _ = env.reset(seed=0)
        expect(observation in env.observation_space, "the first observation is not in the observation space")


@check(
    "Give each tool a docstring whose first line says what it does, and an 'Args:' section with a line per argument."
)
def _documents_its_tools(bench: Bench) -> None:
    with bench.make() as env:
        tools = plain(env).tools
        expect(bool(tools), "there is no tool", "Mark a method with @tool (palaestra.envs.tool).")
        for schema in tools:
            function = schema["function"]
            for name, parameter in function["parameters"]["properties"].items():
                expect(bool(parameter["description"]), f"tool {function['name']}: argument {name} is not described")


@check("Make close() idempotent: set what it closed to None.")
def _closes_twice(bench: Bench) -> None:
    with bench.make() as env:
        env.reset(seed=0)
        env.close()
        env.close()


CHECKS = (
    _is_a_tool_env_that_its_id_makes,
    _takes_the_keywords_that_all_environments_share,
    _refuses_wrong_keywords_in_one_line,
    _can_be_copied_and_pickled,
    _passes_gymnasiums_own_checker,
    _has_text_spaces,
    _documents_its_tools,
    _closes_twice,
)


def _through_pickle(env: Any) -> Any:
    return pickle.loads(pickle.dumps(env))


def _written(keywords: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in keywords.items())

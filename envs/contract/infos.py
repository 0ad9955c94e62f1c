"""Infos say what they promise, as plain data, and belong to the caller."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from typing import Any, cast

from .bench import SEED, Bench, Broken, Step, act, begin, canonical, check, expect, plain, shown

INFO_KEYS = frozenset(
    ("task_id", "family", "level", "success", "reward_components", "stop_reason", "parse_error", "failure", "messages")
)
_PLAIN = (str, int, float, bool, type(None))


@check("Extend what ToolEnv.reset and step give ({**info, 'more': ...}); do not replace it.")
def _tells_what_it_promises_in_infos(bench: Bench) -> None:
    for actions in bench.scripts():
        steps = bench.episode(actions)
        for step in steps:
            missing = INFO_KEYS - set(step.info)
            expect(not missing, f"info of {_where(step)} lacks {', '.join(sorted(missing))}")
        first, *others = steps
        expect(bool(first.info.get("tools")), 'the first info has no "tools"')
        expect(all("tools" not in step.info for step in others), '"tools" belong to the first info alone')


@check("Decide success with the grade alone: self._submit(Grade(reward=..., success=...)), or in _grade().")
def _decides_success_at_the_end(bench: Bench) -> None:
    for actions in bench.scripts():
        for step in bench.episode(actions):
            success = step.info["success"]
            if step.ended:
                expect(type(success) is bool, f"success is {success!r} at the end, after {_where(step)}")
                expect(isinstance(step.info["stop_reason"], str), f"no stop_reason at the end, after {_where(step)}")
            else:
                expect(success is None, f"success is {success!r} before the end, after {_where(step)}")


@check(
    "Say what is new by returning it from the tool; ToolEnv puts it into the observation and info['messages'] alike."
)
def _says_the_same_in_messages_as_in_observations(bench: Bench) -> None:
    for actions in bench.scripts():
        for step in bench.episode(actions):
            told = "\n\n".join(message["content"] for message in step.info["messages"])
            same = told == step.observation
            expect(same, f"{_where(step)}: messages say {shown(told)!r}, the observation {shown(step.observation)!r}")


@check("Put only str, int, float, bool, None, lists and dicts with text keys into info: float(x), array.tolist(), ...")
def _gives_infos_that_can_be_stored(bench: Bench) -> None:
    for actions in bench.scripts():
        for step in bench.episode(actions):
            for name, value in step.info.items():
                odd = _odd(value)
                expect(odd is None, f"info[{name!r}] of {_where(step)} holds a {odd}")
            try:
                pickle.dumps(step.info)
                json.dumps(step.info)
            except Exception as error:
                raise Broken(f"info of {_where(step)}: {type(error).__name__}: {error}") from error


@check("Give a new dict each time, with copies of what the environment goes on using (copy.deepcopy).")
def _gives_infos_away(bench: Bench) -> None:
    actions = bench.scripts()[0]
    expected = canonical([step.info for step in bench.episode(actions)])
    with bench.make() as env:
        tools = canonical(plain(env).tools)
        steps = [begin(env, SEED)]
        infos = [copy.deepcopy(steps[0].info)]
        _spoil(steps[0].info)
        for action in actions:
            steps += act(env, [action])
            infos.append(copy.deepcopy(steps[-1].info))
            _spoil(steps[-1].info)
            if steps[-1].ended:
                break
        expect(canonical(infos) == expected, "an info that the caller changed came back changed in a later one")
        expect(canonical(plain(env).tools) == tools, "changing info['tools'] changed the environment's tools")


CHECKS = (
    _tells_what_it_promises_in_infos,
    _decides_success_at_the_end,
    _says_the_same_in_messages_as_in_observations,
    _gives_infos_that_can_be_stored,
    _gives_infos_away,
)


def _where(step: Step) -> str:
    return "reset" if step.action is None else f"step({shown(repr(step.action))})"


def _odd(value: Any) -> str | None:
    """The name of the first type in a value that is not plain data."""
    if isinstance(value, dict):
        items = cast(dict[Any, Any], value)
        odd = next((f"key of type {type(name).__name__}" for name in items if type(name) is not str), None)
        return odd or next((found for one in items.values() if (found := _odd(one))), None)
    if isinstance(value, list | tuple):
        many = cast(Sequence[Any], value)
        return next((found for one in many if (found := _odd(one))), None)
    return None if type(value) in _PLAIN else type(value).__name__


def _spoil(value: Any) -> None:
    """Empties a value, and what is in it."""
    if isinstance(value, dict | list):
        many = cast(Any, value)
        for inner in many.values() if isinstance(value, dict) else many:
            _spoil(inner)
        many.clear()

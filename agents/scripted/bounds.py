"""Agents that bound a score: the oracle from above, null agents from below.

The oracle sees the hidden answer; it certifies grader and task and is never exported as data. Null agents cannot know
the answer, so whatever they score is a fault of the task or of the grader.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from ...core.seeding import derive_seed
from ...core.tasks import Task
from ...envs.input_answers import wants_input


class Oracle:
    """Submits the reference solution."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Nothing to prepare."""

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Submits."""
        return f"submit\n{self._task.secret['reference']}"


class FixedAnswer:
    """Submits the same text, whatever the task says."""

    def __init__(self, text: str) -> None:
        self._text = text

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Nothing to prepare."""

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Submits."""
        return self._text


class VisibleAnswers:
    """Submits a table of the visible answers."""

    def __init__(self, task: Task) -> None:
        self._tests = task.public["tests"]

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Nothing to prepare."""

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Submits."""
        table = {json.dumps(case["args"]): case["expected"] for case in self._tests if "args" in case}
        return f"submit\nimport json\ndef f(*args):\n    return {table!r}.get(json.dumps(list(args)))"


class RandomInput:
    """Submits a few random digits."""

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Draws them."""
        rng = random.Random(derive_seed(seed, "random input"))
        self._value = [rng.randint(0, 9) for _ in range(rng.randint(1, 6))]

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Submits."""
        return f"submit\n{json.dumps(self._value)}"


TEST_READER = """submit
import gc, json, os, sys
def f(*args):
    seen = []
    frame = sys._getframe()
    while frame:
        seen += [frame.f_locals, frame.f_globals, *frame.f_locals.values()]
        frame = frame.f_back
    for folder in ("/workspace", "/tmp", "."):
        for root, _, names in os.walk(folder):
            for name in names:
                try:
                    seen.append(json.load(open(os.path.join(root, name))))
                except Exception:
                    pass
    for thing in [*seen, *gc.get_objects()]:
        for case in thing if isinstance(thing, list) else [thing]:
            if isinstance(case, dict) and "expected" in case and case.get("args") == list(args):
                return case["expected"]
    return None"""
"""A submission that looks for the hidden tests in its own process and in the files that it can reach."""


def null_agents(task: Task) -> dict[str, Any]:
    """All null agents for a task, by name."""
    if wants_input(task):
        return _null_inputs(task)
    return {
        "null-empty": FixedAnswer("submit"),
        "null-text": FixedAnswer("The answer is 42."),
        "null-constant": FixedAnswer("submit\ndef f(x):\n    return 0"),
        "null-identity": FixedAnswer("submit\ndef f(x):\n    return x"),
        "null-visible": VisibleAnswers(task),
        "null-test-reader": FixedAnswer(TEST_READER),
    }


def _null_inputs(task: Task) -> dict[str, Any]:
    """Agents that hand in an input without having run or read the function."""
    wanted = task.public["wanted"]
    numbers = wanted if isinstance(wanted, list) else [wanted]
    return {
        "null-empty": FixedAnswer("submit"),
        "null-text": FixedAnswer("The answer is 42."),
        "null-constant": FixedAnswer("submit\n[0]"),
        "null-identity": FixedAnswer(f"submit\n{json.dumps(numbers)}"),
        "null-visible": FixedAnswer(f"submit\n{json.dumps(numbers[:1] * 6)}"),
        "null-random": RandomInput(),
        "null-test-reader": FixedAnswer(TEST_READER),
    }

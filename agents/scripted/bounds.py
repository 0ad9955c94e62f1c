"""Agents that bound a score: the oracle from above, null agents from below.

The oracle sees the hidden answer; it certifies grader and task and is never exported as data. Null agents cannot know
the answer, so whatever they score is a fault of the task or of the grader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...core.tasks import Task


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
        table = {json.dumps(case["args"]): case["expected"] for case in self._tests}
        return f"submit\nimport json\ndef f(*args):\n    return {table!r}.get(json.dumps(list(args)))"


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
    return {
        "null-empty": FixedAnswer("submit"),
        "null-text": FixedAnswer("The answer is 42."),
        "null-constant": FixedAnswer("submit\ndef f(x):\n    return 0"),
        "null-identity": FixedAnswer("submit\ndef f(x):\n    return x"),
        "null-visible": VisibleAnswers(task),
        "null-test-reader": FixedAnswer(TEST_READER),
    }

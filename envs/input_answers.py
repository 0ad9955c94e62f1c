"""Tasks whose answer is an input: the agent looks for one for which the task's function gives a wanted value.

Such a task says `"answer": "input"` in its public part, with the function (`prelude`, which the session knows) and the
value (`wanted`). The agent's text is read as data, here; only the task's own function runs when it is graded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from ..core.tasks import Task

NO_INPUT = "error: submit an input, a list of whole numbers such as [1,2,3]"
INSTRUCTIONS = (
    "f is known in your session; a letter in its code stands for a number that only calls of f can tell. Run an input, "
    "such as [1,2,3], to see what f gives for it, or code that calls f. Submit the input that you have found."
)


def wants_input(task: Task) -> bool:
    """Whether the answer to a task is an input."""
    return task.public.get("answer") == "input"


def read_input(text: str) -> list[int] | None:
    """The list of whole numbers that a text is, or None."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or any(type(item) is not int for item in cast(list[Any], value)):
        return None
    return cast(list[int], value)


def case_of(public: Mapping[str, Any], value: list[int]) -> dict[str, Any]:
    """The test that an input is the right answer."""
    return {"args": [value], "expected": public["wanted"]}

"""Calling a function of untrusted code many times with plain data: the inside of data-test grading.

The request holds the source and the inputs, never an expected value; the answer holds what came back as tagged plain
JSON (see `values`). Both cross in one frame each.
"""

from __future__ import annotations

import json
import linecache
import sys
import types
from collections.abc import Iterable, Sequence
from typing import Any

from . import values

FILE_NAME = "solution.py"


def request(sources: Sequence[str], entry_point: str, calls: Iterable[Sequence[Any]], stop: bool = False) -> bytes:
    """Gives the request for `answer_all`; `stop` ends at the first exception."""
    texts = [values.dumps(list(arguments)) for arguments in calls]
    return json.dumps({"sources": list(sources), "entry_point": entry_point, "calls": texts, "stop": stop}).encode()


def answer_all(asked: bytes) -> bytes:
    """Loads sources, calls their function with every argument list, and gives the answers.

    Args:
        asked: What `request` gives.

    Returns:
        JSON `{"load_error": text or null, "answers": [...]}`; an answer is `{"v": tagged JSON}` or `{"e": text}`.
    """
    wanted = json.loads(asked)
    module, load_error = load(wanted["sources"])
    function = module.get(wanted["entry_point"])
    if load_error is None and not callable(function):
        load_error = f"NameError: the solution defines no function {wanted['entry_point']!r}"
    answers: list[dict[str, Any]] = []
    if load_error is None:
        for text in wanted["calls"]:
            answer = _answer(function, text)
            answers.append(answer)
            if "e" in answer and wanted["stop"]:
                break
    return json.dumps({"load_error": load_error, "answers": answers}).encode()


def load(sources: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Executes sources in one new module and gives its namespace, and what went wrong."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    for source in sources:
        linecache.cache[FILE_NAME] = (len(source), None, source.splitlines(keepends=True), FILE_NAME)
        try:
            exec(compile(source, FILE_NAME, "exec"), module.__dict__)
        except BaseException as error:
            return module.__dict__, describe(error)
    return module.__dict__, None


def _answer(function: Any, arguments: str) -> dict[str, Any]:
    try:
        return {"v": values.encode(function(*values.loads(arguments)))}
    except BaseException as error:
        return {"e": describe(error)}


def describe(error: BaseException) -> str:
    """One line about an exception of untrusted code."""
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return type(error).__name__[:300]


def read_answers(body: bytes) -> tuple[str | None, list[tuple[Any, str | None]]]:
    """On the trusted side: gives the load error and the answers as (plain value, error).

    Raises:
        ValueError: The body is not what an honest session sends.
    """
    try:
        said: Any = json.loads(body)
        load_error = said["load_error"]
        answers = [
            (None, str(answer["e"])[:300]) if "e" in answer else (values.decode(answer["v"]), None)
            for answer in said["answers"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise ValueError("the session's answers cannot be read") from error
    return None if load_error is None else str(load_error)[:300], answers

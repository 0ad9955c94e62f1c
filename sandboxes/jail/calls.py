"""Calling a function of untrusted code many times with plain data: the inside of data-test grading.

The request holds the source and the inputs, never an expected value; the answer holds what came back as tagged plain
JSON (see `values`). Both cross in one frame each. A session that is kept can be asked again: without sources, a request
goes on with the function that was loaded before.
"""

from __future__ import annotations

import linecache
import sys
import time
import types

from . import values, wire

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


FILE_NAME = "solution.py"
MAX_ANSWER = 1 << 24
"""Bytes of all answers of one request."""
MAX_SECONDS = 1e9
"""What a call may claim to have taken."""
_MAX_ERROR = 300
_MAX_CONTAINERS = 2 * values.MAX_ITEMS


def request(
    sources: Sequence[str], entry_point: str | None, calls: Iterable[Sequence[Any]], stop: bool = False
) -> bytes:
    """Gives the request for `answer_all`; `stop` ends at the first exception, no entry point only loads."""
    texts = wire.dumps([values.encode(list(arguments)) for arguments in calls])
    asked = {"sources": list(sources), "entry_point": entry_point, "stop": stop, "tagged": "{" in texts}
    return f"[{wire.dumps(asked)},{texts}]".encode()


def answer_all(question: bytes) -> bytes:
    """Loads sources, calls their function with every argument list, and gives the answers.

    Args:
        question: What `request` gives.

    Returns:
        JSON `[load error or null, answers]`; an answer is `[0, tagged value, seconds]` or `[1, error, seconds]`.
    """
    asked, calls = wire.loads(question.decode())
    module, load_error = load(asked["sources"]) if asked["sources"] else (loaded(), None)
    function: Any = module.get(asked["entry_point"])
    if load_error is None and asked["entry_point"] is not None and not _is_function(function):
        load_error = f"NameError: the solution defines no function {asked['entry_point']!r}"
    answers: list[tuple[int, Any, float]] = []
    if load_error is None:
        for arguments in calls:
            started = time.perf_counter()
            try:
                result = function(*(values.decode(arguments) if asked["tagged"] else arguments))
                answers.append((0, values.encode(result), time.perf_counter() - started))
            except BaseException as error:
                answers.append((1, describe(error), time.perf_counter() - started))
                if asked["stop"]:
                    break
    body = wire.dumps([load_error, answers]).encode()
    if len(body) > MAX_ANSWER:
        answers = [(1, f"ValueTooLarge: the answers take more than {MAX_ANSWER >> 20} MiB", 0.0)] * len(answers)
        body = wire.dumps([load_error, answers]).encode()
    return body


def _is_function(value: object) -> bool:
    return callable(value)


def load(sources: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Executes sources one after the other in a new module and gives its namespace, and what went wrong."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    for source in sources:
        linecache.cache[FILE_NAME] = (len(source), None, source.splitlines(keepends=True), FILE_NAME)
        try:
            exec(compile(source, FILE_NAME, "exec", dont_inherit=True), module.__dict__)
        except BaseException as error:
            return module.__dict__, describe(error)
    return module.__dict__, None


def loaded() -> dict[str, Any]:
    """Gives the namespace of the module that `load` made last."""
    return sys.modules["solution"].__dict__


def describe(error: BaseException) -> str:
    """One line about an exception of untrusted code."""
    try:
        return f"{type(error).__name__}: {error}"[:_MAX_ERROR]
    except BaseException:
        return type(error).__name__[:_MAX_ERROR]


def read_answers(body: bytes) -> tuple[str | None, list[tuple[Any, str | None, float]]]:
    """On the trusted side: gives the load error and the answers as (plain value, error, seconds).

    Raises:
        ValueError: The body is not what an honest session sends.
    """
    tagged = b"{" in body
    answers: list[tuple[Any, str | None, float]] = []
    try:
        if body.count(b"[") > _MAX_CONTAINERS:  # an empty list takes three bytes here and 64 in memory
            raise ValueError("too many containers")
        load_error, given = wire.loads(body.decode())
        for failed, content, seconds in given:
            seconds = min(max(0.0, float(seconds)), MAX_SECONDS)
            if failed:
                answers.append((None, wire.one_line(str(content), _MAX_ERROR), seconds))
            else:
                answers.append((values.decode(content) if tagged else content, None, seconds))
        return None if load_error is None else wire.one_line(str(load_error), _MAX_ERROR), answers
    except values.DECODING_ERRORS as error:
        raise ValueError("the session's answers cannot be read") from error

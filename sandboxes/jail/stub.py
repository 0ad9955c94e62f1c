"""Tests as source text, run against a stub: both ends of the channel between a tests' session and a solution's session.

The tests' session runs trusted source only: the task's prelude and its tests. To them the function under test is a
stub whose calls travel as tagged plain JSON to the solution's session and come back as exact built-in types. So neither
side can reach into the other: no `__eq__`, frame, exit or monkeypatch of the solution touches a verdict, and no
expected value enters the solution's process. What does not cross: functions as arguments, and the solution's classes
in `isinstance`.
"""

from __future__ import annotations

import _ast
import builtins
import os
import sys
import types

from . import calls, values, wire

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

CHANNEL_FD = 4
_MAX_ERROR = 300


# --- the solution's end


def answer_stub(question: bytes) -> NoReturn:
    """Loads the solution and answers the stub's calls until the tests' session hangs up."""
    namespace, load_error = calls.load(wire.loads(question.decode())["sources"])
    handles: list[Any] = []
    _send({"load_error": load_error})
    while True:
        try:
            head, body = wire.read_frame(CHANNEL_FD)
        except (EOFError, OSError):
            os._exit(0)
        try:
            reply = _perform(head, body, namespace, handles)
        except BaseException as error:
            reply = {"e": type(error).__name__, "m": calls.describe(error)}
        _send(reply)


def _perform(head: dict[str, Any], body: bytes, namespace: dict[str, Any], handles: list[Any]) -> dict[str, Any]:
    target: Any = namespace[head["name"]] if head["of"] < 0 else handles[head["of"]]
    arguments, keywords = values.loads(body.decode())
    operation = head["op"]
    if operation == "call":
        result = target(*arguments, **keywords)
    elif operation == "attribute":
        result = getattr(target, arguments[0])
    else:
        result = _OPERATIONS[operation](target, *arguments)
    encoded: Any = values.encode(result)
    if values.is_opaque(encoded):
        handles.append(result)
        return {"h": len(handles) - 1, "t": type(result).__name__}
    changed = [values.encode(item) if type(item) in (list, dict, set) else None for item in arguments]
    return {"v": encoded, "a": changed}


def _item(target: Any, key: Any) -> Any:
    return target[key]


def _contains(target: Any, item: Any) -> bool:
    return item in target


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "length": len,
    "items": list,
    "item": _item,
    "text": str,
    "contains": _contains,
}


# --- the tests' end


class Remote:
    """A function or object of the solution, seen from the tests."""

    __slots__ = ("_name", "_of")

    def __init__(self, of: int, name: str) -> None:
        self._of = of
        self._name = name

    def _ask(self, operation: str, arguments: list[Any], keywords: dict[str, Any] | None = None) -> Any:
        question = values.dumps([arguments, keywords or {}])
        reply = _exchange({"op": operation, "of": self._of, "name": self._name}, question.encode())
        if "e" in reply:
            raise _exception(str(reply["e"]), str(reply.get("m", ""))[:_MAX_ERROR])
        for mine, theirs in zip(arguments, reply.get("a", ()), strict=False):
            _follow(mine, theirs)
        return Remote(int(reply["h"]), str(reply.get("t"))) if "h" in reply else values.decode(reply["v"])

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Calls it in the solution's session."""
        return self._ask("call", list(arguments), keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("attribute", [name])

    def __len__(self) -> int:
        return self._ask("length", [])

    def __iter__(self) -> Any:
        return iter(self._ask("items", []))

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", [key])

    def __contains__(self, item: Any) -> bool:
        return self._ask("contains", [item])

    def __str__(self) -> str:
        return self._ask("text", [])

    def __repr__(self) -> str:
        return f"<{self._name} of the solution>"


def run_tests(question: bytes) -> bytes:
    """Runs tests against the stub.

    Args:
        question: JSON `{"prelude", "tests", "entry_point", "stop"}`.

    Returns:
        JSON `{"load_error": text or null, "total", "failures": [{"index", "test", "error"}]}`. A test is a top-level
        assert, a `test_...` function, or `check(candidate)`; a failure outside of those has index -1.
    """
    asked = wire.loads(question.decode())
    load_error = _load_error()
    if load_error is not None:
        return wire.dumps({"load_error": load_error[:_MAX_ERROR], "total": 0, "failures": []}).encode()
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    candidate = Remote(-1, asked["entry_point"])
    return wire.dumps({"load_error": None, **_examine(asked, candidate, module.__dict__)}).encode()


def _load_error() -> str | None:
    """Waits until the solution is loaded, and gives what went wrong."""
    try:
        error: object = _receive().get("load_error")
    except (EOFError, OSError, ValueError):
        return "the solution's process ended while it was loaded"
    return None if error is None else str(error)


def _examine(asked: dict[str, Any], candidate: Any, namespace: dict[str, Any]) -> dict[str, Any]:
    """Runs the prelude and the tests in a namespace and gives `total` and `failures`; see `run_tests`."""
    exec(compile(asked["prelude"], "prelude.py", "exec", dont_inherit=True), namespace)
    namespace[asked["entry_point"]] = namespace["candidate"] = candidate
    failures: list[dict[str, Any]] = []
    total = 0
    for name, is_test, run in _steps(asked["tests"], namespace, candidate):
        try:
            run()
        except BaseException as error:
            failures.append({"index": total if is_test else -1, "test": name, "error": calls.describe(error)})
            if asked["stop"] or not is_test:
                total += is_test
                break
        total += is_test
    return {"total": total, "failures": failures}


def _steps(tests: str, namespace: dict[str, Any], candidate: Any) -> Any:
    """Gives (source line, whether it is a test, what runs it), statement by statement."""
    lines = tests.splitlines()
    tree: Any = compile(tests, "tests.py", "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
    for node in tree.body:
        code: types.CodeType = compile(_ast.Module([node], []), "tests.py", "exec", dont_inherit=True)
        yield _line(lines, node.lineno), type(node) is _ast.Assert, _runner(code, namespace)
    for name, function in list(namespace.items()):
        if name.startswith("test_") and callable(function):
            yield name, True, function
    if callable(namespace.get("check")):
        check = namespace["check"]
        yield "check(candidate)", True, lambda: check(candidate)


def _line(lines: list[str], number: int) -> str:
    return lines[number - 1].strip()[:_MAX_ERROR]


def _runner(code: types.CodeType, namespace: dict[str, Any]) -> Callable[[], None]:
    return lambda: exec(code, namespace)


def _follow(mine: Any, theirs: Any) -> None:
    """Repeats in our argument what the solution did to its copy."""
    if theirs is None:
        return
    changed: Any = values.decode(theirs)
    if type(mine) is not type(changed):
        return
    if hasattr(mine, "extend"):
        mine[:] = changed
    elif hasattr(mine, "update"):
        mine.clear()
        mine.update(changed)


def _exception(kind: str, text: str) -> Exception:
    known = getattr(builtins, kind, None)
    ends_a_loop = kind in ("StopIteration", "StopAsyncIteration")  # and so skips the comparisons of `all(map(...))`
    if isinstance(known, type) and issubclass(known, Exception) and not ends_a_loop:
        try:
            return known(text.partition(": ")[2] or text)
        except TypeError:  # its arguments are of another kind (UnicodeDecodeError)
            pass
    return RuntimeError(text)


def _exchange(head: dict[str, Any], body: bytes) -> dict[str, Any]:
    try:
        wire.write_all(CHANNEL_FD, wire.pack(head, body))
        return _receive()
    except (EOFError, OSError) as error:
        raise RuntimeError("the solution's process has ended") from error


def _send(reply: dict[str, Any]) -> None:
    """Sends a reply as a body, which may be longer than a head."""
    wire.write_all(CHANNEL_FD, wire.pack({}, wire.dumps(reply).encode()))


def _receive() -> dict[str, Any]:
    _, body = wire.read_frame(CHANNEL_FD)
    reply: Any = wire.loads(body.decode())
    if not hasattr(reply, "items"):
        raise ValueError("the solution's process sent no reply")
    return reply

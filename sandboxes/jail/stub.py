"""The stub that stands for a solution in its tests: both ends of the channel between their two sessions.

The tests' session runs trusted source only: the task's prelude and its tests. To them the function under test is a
stub whose calls travel as tagged plain JSON to the solution's session and come back as exact built-in types. So neither
side can reach into the other: no `__eq__`, frame, exit or monkeypatch of the solution touches a verdict, and no
expected value enters the solution's process. What does not cross: functions and other objects of the tests as
arguments, and the solution's classes in `isinstance`.
"""

from __future__ import annotations

import builtins
import os

from . import calls, values, wire

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

CHANNEL_FD = 4
MAX_ERROR = 300
_MAX_BASES = 20


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
            kinds = [kind.__name__ for kind in type(error).__mro__[:_MAX_BASES]]
            reply = {"e": kinds, "m": calls.describe(error)}
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


class Link:
    """The tests' end of the channel to the solution.

    Args:
        namespace: The tests' own names: an exception of the solution is raised as the class that they know by its name.
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self._is_loaded = False
        self.ended = False
        """Whether the solution's process was found to have ended."""
        self.refused = ""
        """What the tests passed to the solution that cannot cross, if anything."""

    def load_error(self) -> str | None:
        """Waits until the solution is loaded, and gives what went wrong."""
        if self._is_loaded:
            return None
        self._is_loaded = True
        try:
            error: object = _receive().get("load_error")
        except (EOFError, OSError, ValueError, MemoryError):
            return "the solution's process ended while it was loaded"
        return None if error is None else str(error)[:MAX_ERROR]

    def ask(self, head: dict[str, Any], arguments: list[Any], keywords: dict[str, Any]) -> dict[str, Any]:
        """Has the solution's session do something and gives its reply, or raises the exception that it raised."""
        question = values.dumps([arguments, keywords])
        if values.OPAQUE_TEXT in question:
            self._refuse([*arguments, *keywords.values()])
        try:
            wire.write_all(CHANNEL_FD, wire.pack(head, question.encode()))
            reply = _receive()
        except (EOFError, OSError) as error:
            self.ended = True
            raise RuntimeError("the solution's process has ended") from error
        if "e" in reply:
            raise self._exception(reply["e"], str(reply.get("m", ""))[:MAX_ERROR])
        return reply

    def _refuse(self, arguments: list[Any]) -> NoReturn:
        """Tells an object of the solution, which it gave where a plain value was wanted, from one of the tests."""
        if not _holds_theirs(arguments):
            self.refused = self.refused or ", ".join(type(item).__name__ for item in arguments)
        raise TypeError("an argument cannot cross to the solution's session")

    def _exception(self, kinds: Sequence[object], text: str) -> Exception:
        """Gives the nearest exception that the tests know. One that ends a loop would skip what `all(map(...))` has
        yet to compare.
        """
        names = [str(kind) for kind in kinds]
        if "StopIteration" in names or "StopAsyncIteration" in names:
            return RuntimeError(text)
        for index, name in enumerate(names):
            known = self._namespace.get(name, getattr(builtins, name, None))
            if isinstance(known, type) and issubclass(known, Exception):
                try:
                    return known.__new__(known, text.partition(": ")[2] if index == 0 else text)
                except Exception:  # it cannot be made from a text
                    continue
        return RuntimeError(text)


class Remote:
    """A function or object of the solution, seen from the tests."""

    __slots__ = ("_link", "_name", "_of")

    def __init__(self, link: Link, of: int, name: str) -> None:
        self._link = link
        self._of = of
        self._name = name

    def _ask(self, operation: str, arguments: list[Any], keywords: dict[str, Any] | None = None) -> Any:
        head = {"op": operation, "of": self._of, "name": self._name}
        reply = self._link.ask(head, arguments, keywords or {})
        for mine, theirs in zip(arguments, reply.get("a", ()), strict=False):
            _follow(mine, theirs)
        if "h" in reply:
            return Remote(self._link, int(reply["h"]), str(reply.get("t")))
        return values.decode(reply["v"])

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


def _holds_theirs(value: Any) -> bool:
    if hasattr(value, "items") and not isinstance(value, Remote):
        value = [*value, *value.values()]
    if type(value) in (list, tuple, set, frozenset):
        return any(map(_holds_theirs, value))
    return isinstance(value, (Remote, values.Opaque))


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


def _send(reply: dict[str, Any]) -> None:
    """Sends a reply as a body, which may be longer than a head."""
    wire.write_all(CHANNEL_FD, wire.pack({}, wire.dumps(reply).encode()))


def _receive() -> dict[str, Any]:
    _, body = wire.read_frame(CHANNEL_FD)
    reply: Any = wire.loads(body.decode())
    if not hasattr(reply, "items"):
        raise ValueError("the solution's process sent no reply")
    return reply

"""Running tests that are source text, statement by statement.

A test is a top-level statement that holds an assert, a function `test_...`, or `check(candidate)`. Other statements
prepare them: one that fails ends the examination. Usually this runs in a session that never saw the solution (see
`stub`); with `same_session` in the very process that loaded it.
"""

from __future__ import annotations

import _ast
import sys
import time
import types

from . import calls, stub, wire

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Step = tuple[str, bool, Callable[[], Any]]
    """First line, whether it is a test, and what runs it."""


_running: list[Examination] = []
"""The one that goes on with the next request."""


def answer(question: bytes) -> bytes:
    """Begins an examination, or goes on with it.

    Args:
        question: JSON. To begin: `{"tests", "prelude", "entry_point", "skip" (tests that are decided already), "stop"
            (at the first failure), "same_session", "token" (which every answer repeats)}`. To go on: `{"most"}`, how
            many tests to run now, null for all; the first time it waits for the solution to be loaded.

    Returns:
        JSON `{"token", "load_error": text or null, "results": [{"test", "status", "error", "seconds"}], "broken":
        [statement, error] or null, "total", "is_over", "refused"}`; `total` is final when it is over.
    """
    asked = wire.loads(question.decode())
    if "tests" not in asked:
        return wire.dumps(_running[0].go_on(asked["most"])).encode()
    if asked["same_session"]:
        namespace = calls.loaded()
        candidate: Any = namespace.get(asked["entry_point"])
        _running[:] = [Examination(asked, namespace, candidate, None)]
    else:
        module = types.ModuleType("tests")
        sys.modules["tests"] = module
        exec(compile(asked["prelude"], "prelude.py", "exec", dont_inherit=True), module.__dict__)
        link = stub.Link(module.__dict__)
        candidate = stub.Remote(link, -1, asked["entry_point"])
        _running[:] = [Examination(asked, module.__dict__, candidate, link)]
    return wire.dumps(_running[0].report()).encode()


class Examination:
    """Tests on their way.

    Args:
        asked: The first request; see `answer`.
        namespace: Where the tests run.
        candidate: The function under test, or what stands for it.
        link: The channel to the solution, if it is elsewhere.
    """

    def __init__(
        self, asked: dict[str, Any], namespace: dict[str, Any], candidate: Any, link: stub.Link | None
    ) -> None:
        self._stops = bool(asked["stop"])
        self._skip = int(asked["skip"])
        self._token = asked["token"]
        self._namespace = namespace
        self._candidate = candidate
        self._link = link
        namespace["candidate"] = candidate
        if asked["entry_point"] is not None:
            namespace[asked["entry_point"]] = candidate
        self._known = set(namespace)
        self._lines = asked["tests"].splitlines()
        tree: Any = compile(asked["tests"], "tests.py", "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
        self._statements: list[Any] = tree.body
        self._codes = [_compiled(node) for node in tree.body]
        self._steps = self._make_steps()
        self._index = 0

    def report(self, **said: Any) -> dict[str, Any]:
        """Gives an answer; see `answer`."""
        defaults: dict[str, Any] = {"load_error": None, "results": [], "broken": None, "is_over": False}
        refused = self._link.refused if self._link is not None else ""
        return {"token": self._token, "total": self._count_tests(), "refused": refused, **defaults, **said}

    def go_on(self, most: int | None) -> dict[str, Any]:
        """Runs the next tests and gives an answer about them."""
        load_error = self._link.load_error() if self._link is not None else None
        if load_error is not None:
            return self.report(load_error=load_error, is_over=True)
        results: list[dict[str, Any]] = []
        broken: list[str] | None = None
        is_over = False
        while not is_over and (most is None or len(results) < most):
            step = next(self._steps, None)
            if step is None:
                is_over = True
                break
            line, is_test, run = step
            if is_test:
                self._index += 1
                if self._index <= self._skip:
                    continue
            result = self._try(line, run)
            if is_test:
                results.append(result)
                if result["status"] == "interrupted":
                    break
                is_over = self._stops and result["status"] != "passed"
            elif result["status"] != "passed":
                broken = [line, result["error"] or result["status"]]
                is_over = True
        return self.report(results=results, broken=broken, is_over=is_over)

    def _try(self, line: str, run: Callable[[], Any]) -> dict[str, Any]:
        status, message = "passed", ""
        started = time.perf_counter()
        try:
            run()
        except AssertionError as error:
            status, message = "failed", calls.describe(error)
        except KeyboardInterrupt as error:  # a solution's arrives as another exception
            status, message = "interrupted", calls.describe(error)
        except BaseException as error:
            status, message = "error", calls.describe(error)
        seconds = time.perf_counter() - started
        if self._link is not None and self._link.ended:  # whatever the test made of that
            status, message = "killed", "the solution's process has ended"
        return {"test": line, "status": status, "error": message, "seconds": seconds}

    def _make_steps(self) -> Iterator[Step]:
        for node, code in zip(self._statements, self._codes, strict=True):
            yield self._lines[node.lineno - 1].strip()[: stub.MAX_ERROR], _asserts(node), _runner(code, self._namespace)
        for name in self._function_names():
            if name == "check":
                yield "check(candidate)", True, lambda: _call(self._namespace["check"], self._candidate)
            else:
                yield name, True, lambda name=name: _call(self._namespace[name])

    def _function_names(self) -> list[str]:
        """The tests' own functions that are tests, whether or not their definition has run; `check` comes last."""
        names = {node.name: None for node in self._statements if type(node) in _DEFINITIONS}
        for name, value in list(self._namespace.items()):
            if name not in self._known and callable(value):
                names[name] = None
        tests = [name for name in names if name.startswith("test_")]
        return [*tests, "check"] if "check" in names else tests

    def _count_tests(self) -> int:
        return sum(map(_asserts, self._statements)) + len(self._function_names())


_DEFINITIONS = (_ast.FunctionDef, _ast.AsyncFunctionDef)
_type: Callable[[object], Any] = type
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def _asserts(node: Any) -> bool:
    """Whether a statement holds an assert that runs with it."""
    kind: Any = _type(node)
    if kind is _ast.Assert:
        return True
    if kind in _DEFINITIONS or kind is _ast.ClassDef or (kind is _ast.If and _asks_for_name(node.test)):
        return False
    return any(_asserts(child) for name in _BLOCKS for child in getattr(node, name, ()))


def _asks_for_name(test: Any) -> bool:
    """Whether this is the condition of `if __name__ == "__main__"`, which does not hold here."""
    return type(test) is _ast.Compare and getattr(test.left, "id", "") == "__name__"


def _compiled(node: Any) -> types.CodeType:
    return compile(_ast.Module([node], []), "tests.py", "exec", dont_inherit=True)


def _runner(code: types.CodeType, namespace: dict[str, Any]) -> Callable[[], None]:
    return lambda: exec(code, namespace)


def _call(function: Callable[..., Any], *arguments: Any) -> None:
    result = function(*arguments)
    if type(result) in (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType):
        raise TypeError("a test must be a plain function: its body has not run")

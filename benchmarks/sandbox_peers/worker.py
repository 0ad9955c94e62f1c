"""Runs one contender of `benchmarks/sandbox.py` in its own environment and times it in there: no pipe is timed.

    python -P worker.py ADAPTER.py SETTINGS        SETTINGS: `program`, `expected` and what the adapter wants, as JSON

Every line on standard input is an order, every line on standard output the answer to one, both JSON objects:

    {"callers": 8, "seconds": 2}    opens what is missing to 8 callers and lets them run the program side by side
    {"measure": "forks", ...}       calls the adapter's function of that name

An adapter is a module with `caller(settings)`, a context manager that gives a function which runs the program once and
gives what it printed. Where it is an asynchronous one, callers are tasks of one event loop; else they are threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

Settings = dict[str, Any]


class Tally:
    """Latencies of the executions that printed what they should; the others are counted."""

    def __init__(self, expected: str) -> None:
        self.expected = expected
        self.latencies_s: list[float] = []
        self.wrong = 0
        self.example = ""

    def add(self, output: object, seconds: float) -> None:
        """Takes one execution: what it printed, or the exception it ended with."""
        if output == self.expected:
            self.latencies_s.append(seconds)
        else:
            self.wrong += 1
            self.example = self.example or repr(output)[:300]

    def answer(self, wall_s: float) -> dict[str, Any]:
        """All of it as plain data."""
        return {"latencies_s": self.latencies_s, "wrong": self.wrong, "example": self.example, "wall_s": wall_s}


class ThreadedCallers:
    """Callers that are threads."""

    def __init__(self, adapter: ModuleType, settings: Settings) -> None:
        self._adapter, self._settings = adapter, settings
        self._stack = contextlib.ExitStack()
        self._operations: list[Callable[[], object]] = []

    def run(self, callers: int, seconds: float) -> dict[str, Any]:
        """Lets `callers` threads run the program over and over; what began in time is waited for."""
        while len(self._operations) < callers:
            self._operations.append(self._stack.enter_context(self._adapter.caller(self._settings)))
            self._operations[-1]()  # imports, caches and first pages are paid before the clock runs
        tally = Tally(self._settings["expected"])
        begin = time.perf_counter()

        def loop(operation: Callable[[], object]) -> None:
            while (start := time.perf_counter()) < begin + seconds:
                try:
                    output = operation()
                except Exception as error:
                    output = error
                tally.add(output, time.perf_counter() - start)

        threads = [threading.Thread(target=loop, args=(operation,)) for operation in self._operations[:callers]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return tally.answer(time.perf_counter() - begin)

    def close(self) -> None:
        """Ends what the adapter opened."""
        self._stack.close()


class AsynchronousCallers:
    """Callers that are tasks of one event loop."""

    def __init__(self, adapter: ModuleType, settings: Settings) -> None:
        self._adapter, self._settings = adapter, settings
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        self._operations: list[Callable[[], Any]] = []

    def run(self, callers: int, seconds: float) -> dict[str, Any]:
        """As with threads."""
        return self._runner.run(self._run(callers, seconds))

    async def _run(self, callers: int, seconds: float) -> dict[str, Any]:
        while len(self._operations) < callers:
            self._operations.append(await self._stack.enter_async_context(self._adapter.caller(self._settings)))
            await self._operations[-1]()
        tally = Tally(self._settings["expected"])
        begin = time.perf_counter()

        async def loop(operation: Callable[[], Any]) -> None:
            while (start := time.perf_counter()) < begin + seconds:
                try:
                    output = await operation()
                except Exception as error:
                    output = error
                tally.add(output, time.perf_counter() - start)

        await asyncio.gather(*map(loop, self._operations[:callers]))
        return tally.answer(time.perf_counter() - begin)

    def close(self) -> None:
        """As with threads."""
        self._runner.run(self._stack.aclose())
        self._runner.close()


def load(path: str) -> ModuleType:
    """The adapter as a module; its folder does not come into `sys.path`, where its name could hide the peer's."""
    spec = importlib.util.spec_from_file_location("adapter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no answer

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    settings: Settings = json.loads(sys.argv[2])
    callers: ThreadedCallers | AsynchronousCallers | None = None
    try:
        adapter = load(sys.argv[1])
        asynchronous = inspect.isasyncgenfunction(inspect.unwrap(adapter.caller))
        callers = (AsynchronousCallers if asynchronous else ThreadedCallers)(adapter, settings)
        for line in sys.stdin:
            order = json.loads(line)
            measure = order.pop("measure", None)
            say(callers.run(**order) if measure is None else getattr(adapter, measure)(settings, **order))
    except Exception as error:
        traceback.print_exc()
        say({"failed": f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]})
    finally:
        if callers is not None:
            callers.close()


if __name__ == "__main__":
    main()

"""Palaestra's sandboxes, local and in Docker, and what only they do: forks, and many idle sessions.

`fresh`: a session of its own for every execution (open, execute, close); else one that is kept per caller.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from palaestra.sandboxes import ExecResult, Limits, Sandbox, open_sandbox, shutdown

LIMITS = Limits(timeout_s=10)


def opened(settings: dict[str, Any]) -> Sandbox:
    image = {"image": settings["image"]} if settings["backend"] == "docker" else {}
    return open_sandbox(settings["backend"], limits=LIMITS, **image)


@contextmanager
def caller(settings: dict[str, Any]) -> Iterator[Callable[[], str]]:
    """Gives a function that runs the program once."""
    program = settings["program"]
    if settings["fresh"]:

        def run() -> str:
            with opened(settings) as sandbox:
                return said(sandbox.exec(program))

        yield run
        return
    with opened(settings) as sandbox:
        yield lambda: said(sandbox.exec(program))


def said(result: ExecResult) -> str:
    return result.stdout + result.stderr + result.message


def opening(settings: dict[str, Any], seconds: float) -> dict[str, float]:
    """From `open_sandbox` to a session's first answer; the very first one of a process starts the jail, too."""
    shutdown()
    latencies_ms: list[float] = []
    end = time.perf_counter() + seconds
    while len(latencies_ms) < 4 or time.perf_counter() < end:
        start = time.perf_counter()
        with opened(settings) as sandbox:
            answer(sandbox, settings["program"], settings)
            latencies_ms.append((time.perf_counter() - start) * 1e3)
    return {"p50_ms": statistics.median(latencies_ms[1:]), "first_ms": latencies_ms[0]}


def forks(settings: dict[str, Any], count: int) -> dict[str, float]:
    """Copies of a live session, until the last of them has answered with what it inherited."""
    with opened(settings) as sandbox, ExitStack() as stack:
        answer(sandbox, settings["program"], settings)
        start = time.perf_counter()
        copies = [stack.enter_context(copy) for copy in sandbox.fork(count)]
        forked = time.perf_counter()
        for copy in copies:
            answer(copy, f"print({settings['function']}({settings['argument']}))", settings)
        answered = time.perf_counter()
    return {"seconds": answered - start, "fork_call_s": forked - start}


def idle_memory(settings: dict[str, Any], count: int) -> dict[str, float]:
    """Proportional memory (PSS) of the processes below this one, per session that waits for its next execution."""
    with opened(settings) as sandbox:
        answer(sandbox, settings["program"], settings)
    time.sleep(0.5)  # the session's processes end
    before_mib = descendants_pss_mib(os.getpid())
    with ExitStack() as stack:
        for _ in range(count):
            answer(stack.enter_context(opened(settings)), settings["program"], settings)
        time.sleep(0.5)
        after_mib = descendants_pss_mib(os.getpid())
    return {"mib_per_session": (after_mib - before_mib) / count, "mib_without_sessions": before_mib}


def answer(sandbox: Sandbox, program: str, settings: dict[str, Any]) -> None:
    result = sandbox.exec(program)
    if result.stdout != settings["expected"]:
        raise RuntimeError(f"a wrong answer: {result}")


def descendants_pss_mib(root: int) -> float:
    """Memory of all processes below `root`, what several share divided among them."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(name)] = int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except OSError:  # ended meanwhile
            continue
    tree = [root]
    for pid in tree:
        tree += [child for child, parent in parents.items() if parent == pid]
    return sum(map(pss_kib, tree[1:])) / 1024


def pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)

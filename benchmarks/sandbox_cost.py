"""What the local sandbox costs: latency (p50, ms) and CPU time (ms, all processes together) per operation.

Usage: python benchmarks/sandbox_cost.py [--json FILE] [--seconds 3]
CPU time is read from the kernel's accounting of this process and of everything below it, so that it hardly depends on
what else the machine does; latency does depend on that.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from palaestra.rewards import grade_code
from palaestra.sandboxes import Limits, open_sandbox, shutdown

PROGRAM = "def f(x):\n    y = [v for v in x if v > 2]\n    return max(y)\nprint(f([1, 2, 3, 4]))\n"
SOLUTION = "def f(x):\n    y = sorted(set(x))[1:]\n    return sum(v * v for v in y)\n"
TESTS = [{"args": [[i, 2, 3, 4, 2]], "expected": sum(v * v for v in sorted({i, 2, 3, 4})[1:])} for i in range(8)]
LIMITS = Limits(timeout_s=4)
TARGETS_CPU_MS = {"fresh session": 2.0, "warm exec": 0.35, "grading": 2.5}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def descendants_cpu_s(root: int) -> float:
    """CPU time of all living processes below `root`, with what their ended children used."""
    table: dict[int, tuple[int, float]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            table[int(name)] = int(fields[1]), sum(map(int, fields[11:15])) / _TICKS_PER_S
    tree = [root]
    for pid in tree:
        tree += [child for child, (parent, _) in table.items() if parent == pid]
    return sum(table[pid][1] for pid in tree[1:] if pid in table)


def own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def warm_exec() -> Callable[[], None]:
    sandbox = open_sandbox(limits=LIMITS)

    def operation() -> None:
        assert sandbox.exec(PROGRAM).stdout == "4\n"

    return operation


def fresh_session() -> Callable[[], None]:
    def operation() -> None:
        with open_sandbox(limits=LIMITS) as sandbox:
            assert sandbox.exec(PROGRAM).stdout == "4\n"

    return operation


def grading() -> Callable[[], None]:
    def operation() -> None:
        assert grade_code(SOLUTION, TESTS, entry_point="f", limits=LIMITS).passed

    return operation


def measure(make: Callable[[], Callable[[], None]], callers: int, seconds: float) -> dict[str, float]:
    """Runs an operation over and over in `callers` threads."""
    operations = [make() for _ in range(callers)]
    for operation in operations:
        operation()
    latencies: list[float] = []
    stop = time.perf_counter() + seconds

    def loop(operation: Callable[[], None]) -> None:
        while (start := time.perf_counter()) < stop:
            operation()
            latencies.append(time.perf_counter() - start)

    threads = [threading.Thread(target=loop, args=(operation,)) for operation in operations]
    cpu, start = own_cpu_s() + descendants_cpu_s(os.getpid()), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - start
    time.sleep(0.1)  # the last sessions end
    cpu = own_cpu_s() + descendants_cpu_s(os.getpid()) - cpu
    count = len(latencies)
    return {
        "p50_ms": statistics.median(latencies) * 1e3,
        "cpu_ms": cpu / count * 1e3,
        "per_s": count / wall,
        "count": count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seconds", type=float, default=3.0, help="time per measurement")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    print(f"{'operation':16s} callers   p50 ms   CPU ms      per s")
    for name, make in (("fresh session", fresh_session), ("warm exec", warm_exec), ("grading", grading)):
        for callers in (1, 8):
            row = measure(make, callers, arguments.seconds)
            figures[f"{name}, {callers} callers"] = row
            print(f"{name:16s} {callers:7d} {row['p50_ms']:8.2f} {row['cpu_ms']:8.2f} {row['per_s']:10.0f}", flush=True)
    shutdown()
    targets: dict[str, Any] = {}
    for name, target in TARGETS_CPU_MS.items():
        value = figures[f"{name}, 1 callers"]["cpu_ms"]
        targets[f"{name}: CPU ms"] = {"target": target, "value": value, "met": value <= target}
    if arguments.json:
        report = {"figures": figures, "targets": targets}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

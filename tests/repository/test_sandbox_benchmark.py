"""The sandbox benchmark counts only right answers, takes ratios of medians, and says why a target has no value."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ADAPTER = """
import itertools
from contextlib import {manager}

@{manager}
{async_}def caller(settings):
    turns = itertools.count()

    {async_}def run():
        turn = next(turns)
        if turn == 1:
            raise ValueError("once")
        return "4" if turn % 2 else "5"

    yield run
"""


@pytest.fixture
def figures(repository: Path) -> ModuleType:
    path = repository / "benchmarks" / "sandbox_peers" / "figures.py"
    spec = importlib.util.spec_from_file_location("benchmark_figures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(per_s: float, *, peer: bool, where: str = "local", wrong: int = 0) -> dict[str, Any]:
    measured = {"per_s": per_s, "wrong": wrong}
    return {"peer": peer, "where": where, "1 callers": measured, "8 callers": measured}


def test_rounds_are_merged_by_median_and_counts_added_up(figures: ModuleType) -> None:
    turns = [{"latencies_s": [0.002, 0.004, 0.009], "wrong": 1, "example": "'5'", "wall_s": 0.5}]
    turns += [{"latencies_s": [], "wrong": 0, "example": "", "wall_s": 1.0}]
    turns += [{"latencies_s": [0.001], "wrong": 0, "example": "", "wall_s": 1.0}]
    merged = figures.over_rounds([figures.of_latencies(turn) for turn in turns])
    assert merged == {"p50_ms": 2.5, "per_s": 1.0, "executions": 4, "wrong": 1, "wrong_example": "'5'"}


def test_a_session_is_compared_with_the_fastest_local_peer(figures: ModuleType) -> None:
    measured = {
        "palaestra session": row(3000, peer=False),
        "slow": row(40, peer=True),
        "fast": row(120, peer=True),
        "container": row(9999, peer=True, where="docker"),
    }
    targets = figures.targets(measured, {"palaestra docker session": "no engine"})
    exec_ratio = next(entry for name, entry in targets.items() if name.startswith("session exec"))
    assert exec_ratio == {"target": ">= 30", "value": 25.0, "met": False}
    docker = next(entry for name, entry in targets.items() if name.startswith("Docker session"))
    assert docker == {"target": ">= 100", "value": None, "met": False, "reason": "no engine"}
    assert not any(name.startswith("fresh") for name in targets)  # that side was not asked for


def test_a_wrong_answer_of_ours_misses_a_target(figures: ModuleType) -> None:
    targets = figures.targets({"palaestra session": row(3000, peer=False, wrong=1)}, {})
    assert targets["wrong answers of Palaestra"] == {"target": "<= 0", "value": 2, "met": False}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_worker_counts_wrong_answers_and_exceptions(repository: Path, tmp_path: Path, asynchronous: bool) -> None:
    manager, async_ = ("asynccontextmanager", "async ") if asynchronous else ("contextmanager", "")
    adapter = tmp_path / "adapter.py"
    adapter.write_text(ADAPTER.format(manager=manager, async_=async_))
    worker = repository / "benchmarks" / "sandbox_peers" / "worker.py"
    done = subprocess.run(
        [sys.executable, "-P", worker, adapter, json.dumps({"expected": "4"})],
        input='{"callers": 2, "seconds": 0}\n{"callers": 2, "seconds": 0.05}\n',
        capture_output=True,
        text=True,
        check=True,
    )
    opened, answer = map(json.loads, done.stdout.splitlines())
    assert (opened["latencies_s"], opened["wrong"]) == ([], 0)
    assert answer["example"] == "ValueError('once')"
    assert abs(len(answer["latencies_s"]) - answer["wrong"]) <= 4
    assert 0 < sum(answer["latencies_s"]) < 2 * answer["wall_s"]


def test_our_side_alone_in_miniature(repository: Path, tmp_path: Path) -> None:
    report = tmp_path / "figures.json"
    script = repository / "benchmarks" / "sandbox.py"
    command = [
        sys.executable,
        script,
        "--json",
        report,
        "--rounds",
        "1",
        "--seconds",
        "0.1",
        "--peers",
        tmp_path / "peers",
    ]
    only = ("--only", "palaestra session", "palaestra opening", "docker session")
    done = subprocess.run([*command, *only], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    assert written["figures"]["palaestra session"]["8 callers"]["executions"] > 0
    assert written["skipped"]["palaestra docker session"] == "needs --docker-host and --image"
    assert written["targets"]["wrong answers of Palaestra"]["met"] is True
    session = next(entry for name, entry in written["targets"].items() if name.startswith("session exec"))
    assert session["reason"] == "no peer was measured"
    assert "skipped  palaestra docker session" in done.stdout
    assert not (tmp_path / "peers").exists()

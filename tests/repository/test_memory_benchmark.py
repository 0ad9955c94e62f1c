"""The memory benchmark measures a step, and refuses figures of steps that are not the same."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def script(repository: Path) -> Any:
    spec = importlib.util.spec_from_file_location("memory_benchmark", repository / "benchmarks" / "memory.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def row(step_mib: float, grad_norm: float = 0.5) -> dict[str, float]:
    return {"step_mib": step_mib, "seconds": 1.0, "grad_norm": grad_norm}


def test_the_target_compares_the_least_of_each(script: Any) -> None:
    entries = script.contenders(16)
    measured = {entry.name: row(100.0 if entry.library == "trl" else 70.0) for entry in entries}
    assert script.compared(measured, entries)["step memory, least of TRL's: ratio"]["met"] is False
    measured["palaestra, 8 rows"] = row(55.0)
    targets = script.compared(measured, entries)
    assert targets["step memory, least of TRL's: ratio"] == {"target": "<= 0.6", "value": 0.55, "met": True}
    assert targets["step memory, 8 rows: ratio"] == {"target": "-", "value": 0.55, "met": None}
    measured["trl, 8 rows"] = {"failed": "no memory"}
    assert script.compared(measured, entries)["step memory, 8 rows: ratio"]["value"] is None


def test_a_step_that_lost_its_gradient_is_refused(script: Any) -> None:
    entries = script.contenders(16)
    measured = {entry.name: row(100.0) for entry in entries}
    measured["palaestra, 1 rows"] = row(1.0, grad_norm=0.4)
    with pytest.raises(SystemExit, match=r"has gradient norm 0[.]5, another 0[.]4"):
        script.compared(measured, entries)


def test_a_step_in_miniature(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, repository / "benchmarks" / "memory.py", "--json", tmp_path / "figures.json"]
    sizes = ["--rows", "8", "--length", "64", "--hidden", "64", "--layers", "1"]
    only = ["--only", "palaestra, 1 rows, no"]
    result = subprocess.run([*command, *sizes, *only], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "figures.json").read_text())
    [figures] = report["figures"].values()
    assert figures["grad_norm"] > 0
    logits_mib = 8 * 56 * 151_936 * 4 / 2**20
    assert 16 < figures["step_mib"] < 0.5 * logits_mib, "a tile, not the logits"
    assert report["targets"]["step memory, least of TRL's: ratio"] == {"target": "<= 0.6", "value": None, "met": False}

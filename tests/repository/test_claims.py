"""Figures in README and docs come from claims/*.json, and claim files say where they were measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = """
import argparse, json
parser = argparse.ArgumentParser()
parser.add_argument("--json")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
targets = {"success": {"target": ">= 0.85", "value": [0.9, 0.87512], "met": True}}
json.dump({"seeds": [options.seed], "targets": targets}, open(options.json, "w"))
"""
PAGE = "# Page\n\n<!-- claims: demo -->\n<!-- /claims -->\n\nEnd.\n"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def measured(repository: Path, tmp_path: Path) -> Path:
    """A small project with one benchmark, its claim file and a page with its table."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "demo.py").write_text(BENCHMARK)
    (tmp_path / "README.md").write_text(PAGE)
    folders = ("--out", tmp_path / "claims", "--benchmarks", tmp_path / "benchmarks")
    result = run(repository / "claims" / "run.py", *folders, "--", "--seed", 3)
    assert result.returncode == 0, result.stderr
    assert run(repository / "claims" / "tables.py", "--root", tmp_path).returncode == 0
    return tmp_path


def test_every_table_of_readme_and_docs_equals_its_claim_file(repository: Path) -> None:
    result = run(repository / "claims" / "tables.py", "--check")
    assert result.returncode == 0, result.stderr


def test_every_committed_claim_says_where_it_was_measured(repository: Path) -> None:
    for path in (repository / "claims").glob("*.json"):
        claim = json.loads(path.read_text())
        assert len(claim["revision"]) == 40, path.name
        assert claim["machine"]["cores"] >= 1
        assert claim["versions"]["python"]
        assert set(claim["targets"]), path.name
        assert all({"target", "value", "met"} <= set(entry) for entry in claim["targets"].values()), path.name


def test_a_claim_file_has_figures_and_provenance(measured: Path) -> None:
    claim = json.loads((measured / "claims" / "demo.json").read_text())
    assert claim["seeds"] == [3]
    assert claim["arguments"] == ["--seed", "3"]
    assert claim["benchmark"] == "demo.py"
    assert claim["targets"]["success"]["met"] is True
    assert {"revision", "uncommitted_changes", "date", "versions", "machine", "seconds"} <= set(claim)


def test_one_script_may_have_several_claim_files(repository: Path, measured: Path) -> None:
    folders = ("--out", measured / "claims", "--benchmarks", measured / "benchmarks")
    before = (measured / "claims" / "demo.json").read_text()
    result = run(repository / "claims" / "run.py", *folders, "--only", "demo", "--name", "other", "--", "--seed", 5)
    assert result.returncode == 0, result.stderr
    assert json.loads((measured / "claims" / "other.json").read_text())["seeds"] == [5]
    assert (measured / "claims" / "demo.json").read_text() == before
    assert "needs --only" in run(repository / "claims" / "run.py", *folders, "--name", "other").stderr


def test_tables_are_written_and_a_number_changed_by_hand_is_caught(repository: Path, measured: Path) -> None:
    page = measured / "README.md"
    assert "| success | >= 0.85 | 0.9, 0.875 | yes |" in page.read_text()
    check = (repository / "claims" / "tables.py", "--check", "--root", measured)
    assert run(*check).returncode == 0
    page.write_text(page.read_text().replace("0.875", "0.975"))
    result = run(*check)
    assert result.returncode == 1
    assert "README.md" in result.stderr
    (measured / "claims" / "demo.json").unlink()
    assert "has no claim file" in run(*check).stderr


def test_a_failing_benchmark_fails_the_run(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    result = run(repository / "claims" / "run.py", "--out", tmp_path / "out", "--benchmarks", tmp_path)
    assert result.returncode == 1
    assert "failed: broken" in result.stderr
    assert not (tmp_path / "out").exists()

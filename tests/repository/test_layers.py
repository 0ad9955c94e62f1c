"""The layer contract of pyproject.toml holds, sees every module behind the symlinks, and can fail."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Runs import-linter on the package of a tree, with that tree's pyproject.toml."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "src"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(repository: Path, tmp_path: Path) -> Path:
    """A copy of the package that a test may spoil."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository / "src" / "palaestra", tmp_path / "src" / "palaestra", ignore=ignore)
    shutil.copy(repository / "pyproject.toml", tmp_path)
    return tmp_path


def append(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text()}\n{line}\n")


def test_the_contract_holds_and_sees_every_module(repository: Path) -> None:
    result = lint_imports(repository)
    assert result.returncode == 0, result.stdout
    modules = [path for path in (repository / "src" / "palaestra").rglob("*.py") if not path.is_symlink()]
    modules += [
        path
        for link in (repository / "src" / "palaestra").iterdir()
        if link.is_symlink()
        for path in link.resolve().rglob("*.py")
    ]
    analysed = re.search(r"Analyzed (\d+) files", result.stdout)
    assert analysed
    assert int(analysed[1]) == len(set(modules))


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("core/errors.py", "from ..rewards import base", "core is not allowed to import palaestra.rewards"),
        (
            "models/__init__.py",
            "from .. import sandboxes",
            "models is not allowed to import palaestra.sandboxes",
        ),
        (
            "learners/__init__.py",
            "def f():\n    import palaestra.cli.main",
            "learners is not allowed to import palaestra.cli",
        ),
        ("rewards/base.py", "import palaestra.envs.base", "rewards is not allowed to import palaestra.envs"),
        ("core/errors.py", "from . import records", "No cycles are allowed in palaestra.core"),
    ],
)
def test_an_upward_import_or_a_cycle_is_caught(tree: Path, file: str, line: str, broken: str) -> None:
    append(tree / "src" / "palaestra" / file, line)
    result = lint_imports(tree)
    assert result.returncode == 1, result.stdout + result.stderr
    assert broken in " ".join(result.stdout.split())


def test_a_folder_outside_the_layers_is_caught(tree: Path) -> None:
    (tree / "src" / "palaestra" / "extras").mkdir()
    (tree / "src" / "palaestra" / "extras" / "__init__.py").write_text("")
    result = lint_imports(tree)
    assert result.returncode == 1
    assert "extras" in result.stdout

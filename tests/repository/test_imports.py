"""Importing is cheap, silent and leaves no trace; root folders are importable only as `palaestra.*`."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "tokenizers", "docker", "playwright", "matplotlib", "pydantic", "tensorboard", "trl")
FOLDERS = ("adapters", "agents", "core", "envs", "learners", "models", "rewards", "sandboxes", "simulators")
ROUNDS = 7


def run_python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code as the Makefile does: with PYTHONSAFEPATH, and with byte code cached as in ordinary use."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**kept, "PYTHONSAFEPATH": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("statement", ["import palaestra", "import palaestra.cli.main"])
def test_the_package_and_the_command_line_load_no_heavy_library(tmp_path: Path, statement: str) -> None:
    code = f"import json, sys; {statement}; print(json.dumps([n for n in {HEAVY} if n in sys.modules]))"
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def test_environments_and_sandboxes_need_the_core_install_only(tmp_path: Path) -> None:
    code = f"""
import importlib, pkgutil, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import palaestra
for layer in ("core", "sandboxes", "rewards", "simulators", "envs", "agents.scripted"):
    package = importlib.import_module("palaestra." + layer)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
import gymnasium
env = gymnasium.make("CodeSandbox-v0")
env.reset(seed=1)
env.close()
"""
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr


def cpu_seconds(module: str, cwd: Path) -> float:
    code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    return float(run_python(code, cwd).stdout)


def test_importing_palaestra_takes_at_most_twice_the_time_of_gymnasium(tmp_path: Path) -> None:
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(ROUNDS + 1):  # interleaved, so that a busy moment hits both
        ours.append(cpu_seconds("palaestra", tmp_path))
        theirs.append(cpu_seconds("gymnasium", tmp_path))
    ratio = statistics.median(ours[1:]) / statistics.median(theirs[1:])  # the first round wrote the byte code
    assert ratio <= 2, f"import palaestra takes {ratio:.2f}x the time of import gymnasium"


@pytest.mark.parametrize("folder", FOLDERS)
def test_root_folders_are_not_importable_by_their_bare_names(repository: Path, folder: str) -> None:
    assert (repository / folder / "__init__.py").exists()
    result = run_python(f"import {folder}", repository)
    found = "" if result.returncode else run_python(f"import {folder}; print({folder}.__file__)", repository).stdout
    assert not found.startswith(str(repository)), found


def test_every_module_imports_without_a_word_and_without_a_trace(tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, threading
import palaestra
before = threading.active_count()
names = [module.name for module in pkgutil.walk_packages(palaestra.__path__, "palaestra.")]
assert len(names) > 40, names
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert threading.active_count() == before, threading.enumerate()
"""
    result = run_python(code, tmp_path, HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path), MPLCONFIGDIR=os.devnull)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == []

"""`scripts/virtual_machine.py`, as far as it can be tried without building a machine."""

import importlib.util
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = repository / "scripts" / "virtual_machine.py"
    spec = importlib.util.spec_from_file_location("virtual_machine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "virtual_machine", module)
    spec.loader.exec_module(module)
    return module


def test_the_checkout_and_the_command_travel_as_whole_sectors(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "tests").mkdir(parents=True)
    (checkout / "tests" / "a.py").write_text("x = 1\n")
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "large").write_text("left out")
    (checkout / "link").symlink_to("tests")
    monkeypatch.setattr(script, "ROOT", checkout)
    command = ["python", "-c", "print('a b')"]
    script.pack(command, tmp_path / "in.tar")
    assert (tmp_path / "in.tar").stat().st_size % 512 == 0
    with tarfile.open(tmp_path / "in.tar") as archive:
        names = set(archive.getnames())
        assert {"command", "tree", "tree/tests/a.py", "tree/link"} <= names
        assert archive.getmember("tree/link").linkname == "tests"
        assert not any(".venv" in name for name in names)
        found = archive.extractfile("command")
        assert found is not None
        assert shlex.split(found.read().decode()) == command


def test_what_is_missing_is_one_line(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda *_, **__: None)
    with pytest.raises(SystemExit, match=r"^error: missing mmdebstrap .*qemu-system-arm: apt-get install .*mmdebstrap"):
        script.check_tools("arm64")


def test_its_help_teaches(repository: Path) -> None:
    script = repository / "scripts" / "virtual_machine.py"
    result = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert "--arch arm64 --user 1000" in result.stdout
    assert "control groups" in result.stdout


def test_the_machines_first_process_is_a_shell_script(repository: Path) -> None:
    subprocess.run(["sh", "-n", repository / "scripts" / "virtual_machine_init.sh"], check=True)

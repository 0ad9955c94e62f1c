"""`scripts/docker_engine.py` gives a command an engine, and leaves nothing of it behind however it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("image")]
ASK = """
import docker, json, os, sys
client = docker.from_env()
image = os.environ["PALAESTRA_TEST_IMAGE"]
container = client.containers.run(image, ["sleep", "1000"], network_mode="none", detach=True)
print(json.dumps([os.environ["DOCKER_HOST"], client.info()["Driver"], container.id]), flush=True)
sys.stdin.read()
sys.exit(7)
"""


@pytest.fixture
def script(repository: Path) -> list[str]:
    return [sys.executable, str(repository / "scripts" / "docker_engine.py")]


def start(script: list[str]) -> tuple[subprocess.Popen[str], list[str]]:
    """A running script whose command has started a container, and what the command said."""
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *script, "--", sys.executable, "-c", ASK],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def wait_until_gone(folder: Path, seconds: float = 10) -> list[str]:
    """What is left of an engine that had this folder: processes, mounts, control groups."""
    deadline = time.monotonic() + seconds
    while (left := remains(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def remains(folder: Path) -> list[str]:
    found: list[str] = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            found += [command] if str(folder) in command else []
    return found + [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]


@pytest.mark.parametrize("end", [None, signal.SIGINT, signal.SIGTERM])
def test_an_engine_ends_with_its_command(script: list[str], end: signal.Signals | None) -> None:
    process, (host, driver, _) = start(script)
    folder = Path(host.removeprefix("unix://")).parent
    assert (driver, folder.is_dir()) == ("overlay2", True)
    if end is not None:
        os.killpg(process.pid, end)  # as a terminal does
    process.communicate(timeout=30)
    assert process.returncode == {None: 7, signal.SIGINT: 130, signal.SIGTERM: 143}[end]
    assert remains(folder) == []
    assert not folder.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{folder.name}"))


def test_what_a_killed_run_leaves_on_disk_goes_with_the_next(script: list[str]) -> None:
    process, (host, _, _) = start(script)
    folder = Path(host.removeprefix("unix://")).parent
    process.kill()
    process.communicate()
    assert wait_until_gone(folder) == []
    assert folder.exists()
    assert subprocess.run([*script, "--", "true"], check=False, timeout=60).returncode == 0
    assert not folder.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{folder.name}"))


def test_an_engine_that_runs_is_left_alone(script: list[str], own_engine: Any) -> None:
    assert subprocess.run([*script, "--", "true"], check=False, timeout=60).returncode == 0
    assert own_engine.folder.exists()
    with own_engine.client() as client:
        assert client.ping()


def test_an_engine_knows_the_runtimes_that_are_installed(script: list[str]) -> None:
    ask = "import docker, json, os; print(json.dumps([docker.from_env().info()['Runtimes'], dict(os.environ)]))"
    command = [*script, "--platform", "ptrace", "--", sys.executable, "-c", ask]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    known, environment = json.loads(done.stdout)
    installed = [name for name in ("runsc", "crun") if shutil.which(name)]
    assert environment["PALAESTRA_TEST_RUNTIMES"].split() == installed
    assert {name: known[name]["path"] for name in installed} == {name: shutil.which(name) for name in installed}
    if "runsc" in installed:
        assert known["runsc"]["runtimeArgs"] == ["--network=none", "--platform=ptrace"]


def test_what_is_missing_is_one_line(script: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([*script, "--", "true"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: missing programs: apt-get install ")
    assert done.stderr.count("\n") == 1

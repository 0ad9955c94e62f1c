"""A host process that is killed at any moment leaves nothing: no process and no folder."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from palaestra.sandboxes import open_sandbox, shutdown

KILLS = 10
PROGRAM = """
import sys, threading
from palaestra.sandboxes import open_sandbox
print("begun", flush=True)
def work():
    while True:
        with open_sandbox(isolation=sys.argv[1]) as sandbox:
            sandbox.exec(f"import subprocess\\nsubprocess.Popen(['setsid', 'sleep', '{sys.argv[2]}'])")
            sandbox.write_file("a", b"x" * 100_000)
            for copy in sandbox.fork(2):
                copy.exec("1")
for _ in range(3):
    threading.Thread(target=work).start()
"""


def processes_of(*marks: str) -> list[str]:
    found: list[str] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z" and any(mark in command for mark in marks):
                found.append(command)
    return found


@pytest.mark.parametrize("mode", ["namespaces", "landlock"])
def test_a_host_that_is_killed_at_any_moment_leaves_nothing(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where folders of sessions would be
    tmp_path.chmod(0o755)
    mark = f"7654{os.getpid()}"
    rng = random.Random(mode)
    for _ in range(KILLS):
        host = subprocess.Popen([sys.executable, "-c", PROGRAM, mode, mark], stdout=subprocess.PIPE)
        assert host.stdout is not None
        with host.stdout:
            assert host.stdout.readline() == b"begun\n"
            time.sleep(rng.uniform(0.0, 0.6))
            host.send_signal(signal.SIGKILL)
            host.wait()
    deadline = time.monotonic() + 10
    while (left := processes_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    while (folders := list(tmp_path.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.1)
    if folders:  # killed before its supervisor knew of the folder: the next jail that needs one removes it
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        shutdown()
        with open_sandbox(isolation="landlock") as sandbox:
            assert sandbox.exec("1").ok
        shutdown()
        assert list(tmp_path.iterdir()) == []

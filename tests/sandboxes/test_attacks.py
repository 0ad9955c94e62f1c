"""What code in a session must not achieve, attack by attack."""

import os
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from palaestra.sandboxes import ExecStatus, Limits, Sandbox, open_sandbox

ATTACKS: dict[str, str] = runpy.run_path(str(Path(__file__).with_name("attack_programs.py")))["ATTACKS"]
SECRET = "s3cr3t-of-the-host"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox(limits=Limits(timeout_s=10)) as opened:
        yield opened


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text(SECRET, encoding="utf-8")
    for folder in (path, *path.parents[:4]):
        folder.chmod(0o755)  # only the sandbox stands in the way
    return path


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_achieves_nothing(
    name: str, sandbox: Sandbox, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", SECRET)
    program = ATTACKS[name].replace("@SECRET_FILE@", str(secret_file)).replace("@SECRET@", SECRET)
    program = program.replace("@NEIGHBOUR@", "neighbour").replace("@TERCES@", SECRET[::-1]) + "\nprint('tried')\n"
    with open_sandbox() as neighbour:
        assert neighbour.exec("x = 1").ok
        result = sandbox.exec(program)
        assert "ESCAPED" not in result.stdout
        assert result.stdout.endswith("tried\n"), result
        assert neighbour.exec("import os\nx, os.listdir('/workspace'), os.listdir('/tmp')").stdout == "(1, [], [])\n"
        twice = neighbour.exec(program)  # what the first left behind must not help the second
        assert "ESCAPED" not in twice.stdout


def test_the_attacks_would_succeed_without_isolation(secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", SECRET)
    with pytest.warns(RuntimeWarning, match="isolation='none'"):
        sandbox = open_sandbox(isolation="none")
    with sandbox:
        for name in ("read: the host's files", "network: internet sockets", "read: other processes"):
            program = ATTACKS[name].replace("@SECRET_FILE@", str(secret_file)).replace("@SECRET@", SECRET)
            assert "ESCAPED" in sandbox.exec(program).stdout, name


def test_a_fork_bomb_ends_with_its_session() -> None:
    limits = Limits(timeout_s=1.0, processes=32)
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
    with open_sandbox(limits=limits) as sandbox, open_sandbox() as neighbour:
        result = sandbox.exec(bomb)
        assert result.status in (ExecStatus.TIMEOUT, ExecStatus.KILLED)
        assert neighbour.exec("6 * 7").stdout == "42\n"
        sandbox.reset()
        assert sandbox.exec("6 * 7").stdout == "42\n"


def test_processes_are_counted() -> None:
    with open_sandbox(limits=Limits(processes=10)) as sandbox:
        program = (
            "import os, time\ncount = 0\ntry:\n    while True:\n        if os.fork() == 0:\n            time.sleep(5)\n"
            "            os._exit(0)\n        count += 1\nexcept BlockingIOError:\n    print(count)\n"
        )
        assert int(sandbox.exec(program).stdout) == 9


def test_memory_of_children_counts() -> None:
    program = (
        "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n        x = bytearray(100 << 20)\n"
        "        time.sleep(20)\n        os._exit(0)\ntime.sleep(20)\n"
    )
    with open_sandbox(limits=Limits(memory_mib=256, timeout_s=15)) as sandbox:
        result = sandbox.exec(program)
        assert result.status is ExecStatus.MEMORY_LIMIT
        assert result.seconds < 10
        assert sandbox.exec("1").status is ExecStatus.DEAD


def test_inodes_and_bytes_of_both_folders_are_limited() -> None:
    limits = Limits(workspace_mib=4, tmp_mib=4, inodes=100)
    with open_sandbox(limits=limits) as sandbox:
        for folder in ("/workspace", "/tmp", "/dev/shm"):
            result = sandbox.exec(f"open({folder!r} + '/big', 'wb').write(bytes(8 << 20))")
            assert result.status is ExecStatus.DISK_LIMIT
            assert sandbox.exec(f"import os\nos.remove({folder!r} + '/big')").ok
        result = sandbox.exec("for i in range(1000): open(f'f{i}', 'w').close()")
        assert result.status is ExecStatus.DISK_LIMIT
        assert sandbox.exec("1").stdout == "1\n"


def test_memory_files_are_limited() -> None:
    program = "import os\nfd = os.memfd_create('x')\nfor _ in range(4096): os.write(fd, bytes(1 << 20))\n"
    with open_sandbox(limits=Limits(memory_mib=64, workspace_mib=16, tmp_mib=16)) as sandbox:
        assert not sandbox.exec(program).ok


def test_nothing_outlives_the_session() -> None:
    program = (
        "import os, signal, subprocess, time\n"
        "subprocess.Popen(['/usr/bin/env', '-i', 'setsid', 'sleep', '98765'])\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        for s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\n"
        "        import ctypes\n        ctypes.CDLL(None).prctl(15, b'outliver-98765')\n        time.sleep(600)\n"
        "    os._exit(0)\n"
        "time.sleep(0.3)\n"
    )
    with open_sandbox() as sandbox:
        assert sandbox.exec(program).ok
        assert _processes_named("98765")
    deadline = time.monotonic() + 5
    while _processes_named("98765") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _processes_named("98765")


def _processes_named(text: str) -> list[int]:
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                seen = (folder / "cmdline").read_bytes() + (folder / "comm").read_bytes()
            except OSError:
                continue
            if text.encode() in seen and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def test_a_session_cannot_speak_for_the_supervisor(sandbox: Sandbox) -> None:
    """Frames that the code itself writes to the control socket end its session or are taken at their word, no more."""
    forged = "import os\nos.write(3, b'\\xff' * 64)\nimport time\ntime.sleep(5)\n"
    assert sandbox.exec(forged).status is ExecStatus.KILLED
    sandbox.reset()
    assert sandbox.exec("import os\nos.close(3)\nimport time\ntime.sleep(5)").status is ExecStatus.KILLED
    sandbox.reset()
    huge = "import os, struct\nos.write(3, struct.pack('!II', 2, 1 << 31) + b'{}')\nimport time\ntime.sleep(5)\n"
    assert sandbox.exec(huge).status is ExecStatus.KILLED
    sandbox.reset()
    assert sandbox.exec("40 + 2").stdout == "42\n"


def test_a_frame_with_wrong_fields_does_no_harm(sandbox: Sandbox) -> None:
    program = """
import os, json, struct
for head in ({"id": None}, {"id": [1]}, {"s": "sandbox_died"}, {"id": "x", "fatal": "y"}, {"id": -1, "x": {}}):
    text = json.dumps(head).encode()
    os.write(3, struct.pack("!II", len(text), 0) + text)
print("tried")
"""
    assert sandbox.exec(program).stdout == "tried\n"
    assert sandbox.exec("40 + 2").stdout == "42\n"


def test_files_are_opened_inside_the_workspace_only(sandbox: Sandbox, secret_file: Path) -> None:
    links = f"""
import os
os.symlink({str(secret_file)!r}, "absolute"); os.symlink("../" * 9 + {str(secret_file)!r}[1:], "relative")
os.symlink("/", "root"); os.symlink("/proc/self/root", "magic"); os.mkfifo("fifo"); os.mkdir("folder")
"""
    assert sandbox.exec(links).ok
    for path in (
        "absolute",
        "relative",
        f"root{secret_file}",
        "magic/etc/passwd",
        f"../..{secret_file}",
        "fifo",
        "folder",
    ):
        with pytest.raises(Exception, match=path.split("/")[0]):
            sandbox.read_file(path)
    with pytest.raises(Exception, match="magic"):
        sandbox.write_file("magic/tmp/x", b"x")
    with pytest.raises(Exception, match="not a path in the workspace"):
        sandbox.read_file(str(secret_file))
    assert secret_file.read_text(encoding="utf-8") == SECRET


def test_output_floods_are_stopped() -> None:
    limits = Limits(output_hard_mib=2, timeout_s=10)
    with open_sandbox(limits=limits) as sandbox:
        result = sandbox.exec("while True: print('x' * 1000)")
        assert result.status is ExecStatus.OUTPUT_LIMIT
        assert len(result.stdout) < 70_000
        assert result.seconds < 5


def test_import_of_the_sandbox_starts_nothing() -> None:
    program = "import palaestra.sandboxes, os; print(len(os.listdir(f'/proc/self/task/{os.getpid()}')) > 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"

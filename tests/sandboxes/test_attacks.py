"""What code in a session must not achieve, attack by attack."""

import os
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from palaestra.sandboxes import ExecStatus, Limits, Sandbox, local, open_sandbox, shutdown
from palaestra.sandboxes.jail.tracked import Session

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
    for opened in (path, *path.parents):
        if opened.stat().st_mode & 0o005 == 0o005:
            break
        opened.chmod(0o755)  # only the sandbox stands in the way
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


def test_memory_in_sockets_counts() -> None:
    program = """
import os, socket, time
for _ in range(30):
    if os.fork() == 0: break
held = []
try:
    while True:
        held += socket.socketpair()
        for end in held[-2:]:
            end.setblocking(False)
            try:
                while True: end.send(bytes(1 << 16))
            except BlockingIOError: pass
except OSError: time.sleep(20)
"""
    with open_sandbox(limits=Limits(memory_mib=512, timeout_s=15)) as sandbox:
        result = sandbox.exec(program)
        assert result.status is ExecStatus.MEMORY_LIMIT
        assert result.seconds < 10


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()",
            "0.1 s of CPU",
        ),
        (
            "import os, time\nif os.fork() == 0:\n    time.sleep(0.3)\n    for _ in range(4):\n"
            "        if os.fork() == 0:\n            x = bytearray(60 << 20)\n            time.sleep(60)\n"
            "    time.sleep(60)",
            "128 MiB of memory",
        ),
    ],
)
def test_limits_hold_between_calls(program: str, message: str) -> None:
    with open_sandbox(limits=Limits(memory_mib=128, timeout_s=5, cpu_s=0.1)) as sandbox, open_sandbox() as neighbour:
        assert neighbour.exec("x = 1").ok
        assert sandbox.exec(program).ok
        for rest_s in (3, 6, 12, 24):  # long enough on a busy machine
            time.sleep(rest_s)
            result = sandbox.exec("0")
            if result.status is ExecStatus.DEAD:
                break
        assert result.status is ExecStatus.DEAD
        assert f"the session was killed between calls: more than {message}" in result.message
        assert result.message.endswith("; reset() starts a fresh one")
        assert neighbour.exec("x").stdout == "1\n"


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


SPEAK = """
import json, os, struct, sys
frame = sys._getframe()
while "head" not in frame.f_locals or "id" not in frame.f_locals["head"]: frame = frame.f_back
this_call = frame.f_locals["head"]["id"]
def speak(head, body=b""):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    data = struct.pack("!II", len(text), len(body)) + text + body
    while data: data = data[os.write(3, data):]
"""


@pytest.mark.parametrize(
    "head",
    [
        "{'id': None}",
        "{'id': [1]}",
        "{'s': 'sandbox_died'}",
        "{'id': 'x', 'fatal': 'y'}",
        "{'id': this_call + 1}",
        "{'id': 0}",
    ],
)
def test_a_session_that_answers_what_nobody_asked_ends(sandbox: Sandbox, head: str) -> None:
    with open_sandbox() as neighbour:
        assert neighbour.exec("x = 1").ok
        result = sandbox.exec(f"{SPEAK}\nspeak({head})\nimport time\ntime.sleep(20)")
        assert (result.status, result.seconds < 10) == (ExecStatus.KILLED, True)
        assert neighbour.exec("x").stdout == "1\n"
    sandbox.reset()
    assert sandbox.exec("40 + 2").stdout == "42\n"


def test_a_flood_of_frames_does_not_stop_the_neighbours(sandbox: Sandbox) -> None:
    flood = "\nmany = (struct.pack('!II', 2, 0) + b'{}') * 20_000\nwhile True: os.write(3, many)"
    with open_sandbox() as neighbour:
        assert neighbour.exec("x = 1").ok
        assert sandbox.exec(SPEAK + flood).seconds < 5
        assert neighbour.exec("x").stdout == "1\n"


@pytest.mark.parametrize(
    "fields",
    [
        "'s': ['ok'], 'x': {}, 'm': [1]",
        "'s': 'ok', 'x': 10**30, 'm': 'a\\n\\x1b[2J\\ud800'",
        "'s': 'sandbox_died', 'x': True",
    ],
)
def test_an_answer_in_the_sessions_name_is_checked_field_by_field(sandbox: Sandbox, fields: str) -> None:
    result = sandbox.exec(
        f"{SPEAK}\nspeak({{'id': this_call, {fields}}}, b'x' * (1 << 20))\nimport time\ntime.sleep(20)"
    )
    assert result.status in (ExecStatus.OK, ExecStatus.ERROR)
    assert result.exit_status in (0, 1)
    assert result.message.isprintable()
    assert result.stdout + result.stderr == ""  # output comes through the pipes and their limits only


def test_a_deeply_nested_frame_does_no_harm(sandbox: Sandbox) -> None:
    with open_sandbox() as neighbour:
        assert neighbour.exec("x = 1").ok
        for depth in (900, 960, 990, 5000):
            nested = f"b'[' * {depth} + b']' * {depth}"
            sandbox.exec(
                f"{SPEAK}\nspeak(b'{{\"id\":%d,\"s\":' % this_call + {nested} + b',\"m\":' + {nested} + b'}}')"
            )
            sandbox.reset()
        assert neighbour.exec("x").stdout == "1\n"


def test_an_error_message_is_one_printable_line(sandbox: Sandbox) -> None:
    result = sandbox.exec("raise ValueError('a\\x1b[2J\\ud800b')")
    assert result.message == "ValueError: a [2J b"


def test_a_forked_copy_of_the_session_ends_with_its_cell(sandbox: Sandbox) -> None:
    forking = "import os\npid = os.fork()\nif pid == 0: print('child')\nelse: os.waitpid(pid, 0); print('parent')"
    assert sandbox.exec(forking).stdout == "child\nparent\n"
    assert [sandbox.exec(f"{i}").stdout for i in range(5)] == [f"{i}\n" for i in range(5)]


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


@pytest.mark.parametrize(
    "program",
    [
        "while True: print('x' * 1000)",
        "import fcntl, subprocess\nfcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20)\n"
        "subprocess.run('for i in 1 2 3; do dd if=/dev/zero bs=1M 2>/dev/null & done; wait', shell=True)",
    ],
)
def test_output_floods_are_stopped(program: str) -> None:
    limits = Limits(output_hard_mib=2, timeout_s=10)
    with open_sandbox(limits=limits) as sandbox, open_sandbox() as neighbour:
        result = sandbox.exec(program)
        assert result.status is ExecStatus.OUTPUT_LIMIT
        assert len(result.stdout) < 70_000
        assert result.seconds < 5
        assert neighbour.exec("6 * 7").stdout == "42\n"


def test_one_look_at_an_output_ends_however_fast_it_is_filled(tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    endless.write_bytes(bytes(8 << 20))
    with endless.open("rb") as out, endless.open("rb") as err:
        session = Session(1, SimpleNamespace(), out.fileno(), err.fileno(), {}, 1024)  # pyright: ignore
        assert 1 << 20 <= session.drain() < 3 << 20  # at least what a pipe can hold, which is 1 MiB


def test_what_is_hidden_is_empty_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f"{os.path.realpath(sys.base_prefix)}/include"
    program = f"import os\nos.path.isdir({folder!r}), os.listdir({folder!r})"
    with open_sandbox() as sandbox:
        assert sandbox.exec(program).stdout != "(True, [])\n"
    shutdown()
    monkeypatch.setattr(local, "hidden_folders", lambda: [folder])
    try:
        with open_sandbox() as sandbox:
            assert sandbox.exec(program).stdout == "(True, [])\n"
    finally:
        shutdown()


def test_our_own_tasks_are_hidden() -> None:
    import palaestra.envs.tasks.code

    tasks = Path(palaestra.envs.tasks.code.__file__).resolve()
    assert any(tasks.is_relative_to(folder) for folder in local.hidden_folders())


def test_import_of_the_sandbox_starts_nothing() -> None:
    program = "import palaestra.sandboxes, os; print(len(os.listdir(f'/proc/self/task/{os.getpid()}')) > 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"

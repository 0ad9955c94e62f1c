"""How a session is confined, part by part; tests/attacks has those who try to get out."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from palaestra.sandboxes import ExecStatus, Limits, Sandbox, local, open_sandbox, shutdown
from palaestra.sandboxes.jail import kernel, seccomp
from palaestra.sandboxes.jail.tracked import Session


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox(limits=Limits(timeout_s=10)) as opened:
        yield opened


def test_processes_are_counted() -> None:
    with open_sandbox(limits=Limits(processes=10)) as sandbox:
        program = (
            "import os, time\ncount = 0\ntry:\n    while True:\n        if os.fork() == 0:\n            time.sleep(5)\n"
            "            os._exit(0)\n        count += 1\nexcept BlockingIOError:\n    print(count)\n"
        )
        assert int(sandbox.exec(program).stdout) == 9


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


def test_an_error_message_is_one_printable_line(sandbox: Sandbox) -> None:
    result = sandbox.exec("raise ValueError('a\\x1b[2J\\ud800b')")
    assert result.message == "ValueError: a [2J b"


def test_a_forked_copy_of_the_session_ends_with_its_cell(sandbox: Sandbox) -> None:
    forking = "import os\npid = os.fork()\nif pid == 0: print('child')\nelse: os.waitpid(pid, 0); print('parent')"
    assert sandbox.exec(forking).stdout == "child\nparent\n"
    assert [sandbox.exec(f"{i}").stdout for i in range(5)] == [f"{i}\n" for i in range(5)]


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


def test_every_denied_call_is_refused(sandbox: Sandbox) -> None:
    numbers = {name: known[kernel.ARCHITECTURES.index(kernel.MACHINE)] for name, known in seccomp.DENIED.items()}
    program = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {numbers!r}.items():
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6) if number >= 0 else None
    if result is not None and (result, ctypes.get_errno()) != (-1, 1): print(name)
print("all")
"""
    assert sandbox.exec(program).stdout == "all\n"


def test_devices_give_zeros_and_nothing_that_is_shared(sandbox: Sandbox) -> None:
    program = """
import mmap
for name in ("/dev/zero", "/dev/full"):
    with open(name, "rb") as file:
        print(file.read(3) == bytes(3))
        try: mmap.mmap(file.fileno(), 1 << 20, mmap.MAP_SHARED, mmap.PROT_READ)
        except OSError: print("refused")
mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE).close()
"""
    assert sandbox.exec(program).stdout == "True\nrefused\n" * 2

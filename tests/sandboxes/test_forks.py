"""Live copies of sessions: what they have, what parts them, and what of them stays."""

import os
import time
import warnings
from collections.abc import Iterator

import pytest

from palaestra.core.errors import ConfigError, SandboxError
from palaestra.sandboxes import ExecStatus, Limits, Sandbox, open_sandbox

MODES = ("namespaces", "landlock")
LIMITS = Limits(timeout_s=10, processes=16)


@pytest.fixture(params=MODES)
def original(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with open_sandbox(isolation=request.param, limits=LIMITS) as sandbox:
        yield sandbox


def run(sandbox: Sandbox, code: str) -> str:
    result = sandbox.exec(code)
    assert result.ok, result
    return result.stdout


def test_a_copy_has_state_files_and_random_state_of_its_own(original: Sandbox) -> None:
    run(original, "import random, os\nrandom.seed(5)\nx = [1]\nos.makedirs('d/e')\nopen('d/e/f', 'w').write('old')")
    first, second = original.fork(2)
    assert run(first, "x.append(2)\nopen('d/e/f', 'w').write('new')\nopen('g', 'w').close()\nx") == "[1, 2]\n"
    assert run(second, "x, open('d/e/f').read(), os.listdir('.')") == "([1], 'old', ['d'])\n"
    assert run(original, "x, open('d/e/f').read(), os.listdir('.')") == "([1], 'old', ['d'])\n"
    drawn = {run(sandbox, "random.random()") for sandbox in (original, first, second)}
    assert len(drawn) == 1
    first.write_file("d/h", b"host")
    assert first.read_file("d/h") == b"host"
    with pytest.raises(SandboxError, match="No such file"):
        second.read_file("d/h")


def test_copies_of_copies_live_on_when_those_before_them_end(original: Sandbox) -> None:
    run(original, "x = 1\nopen('f', 'w').write('one')")
    (child,) = original.fork(1)
    run(child, "x = 2\nopen('f', 'w').write('two')")
    first, second, third = child.fork(3)
    child.close()
    assert run(first, "x, open('f').read()") == "(2, 'two')\n"
    assert original.exec("import os\nos.kill(os.getpid(), 9)").status is ExecStatus.KILLED
    assert first.alive
    assert not original.alive
    original.reset()
    assert run(original, "'x' in globals()") == "False\n"
    assert second.exec("import os\nos._exit(3)").exit_status == 3
    assert run(third, "x") == "2\n"
    (grandchild,) = third.fork(1)
    third.reset()
    assert run(grandchild, "x, open('f').read()") == "(2, 'two')\n"


def test_open_files_and_the_working_folder_are_the_copys_own(original: Sandbox) -> None:
    run(
        original,
        "import os, tempfile\nos.mkdir('d')\nos.chdir('d')\nf = open('../a', 'w+')\nf.write('abcdef')\nf.seek(2)",
    )
    run(original, "gone = open('gone', 'w+')\ngone.write('unnamed')\ngone.flush()\nos.unlink('gone')\nr, w = os.pipe()")
    run(original, "system = open(os.__file__)\nhead = system.read(10)")
    (copy,) = original.fork(1)
    assert run(copy, "f.read(2), os.path.basename(os.getcwd())") == "('cd', 'd')\n"
    run(copy, "f.seek(0)\nf.write('XY')\nf.flush()\ngone.write('!')\ngone.flush()")
    assert run(copy, "gone.seek(0)\ngone.read()") == "'unnamed!'\n"
    assert run(original, "f.seek(0)\nf.read()").endswith("'abcdef'\n")
    assert run(original, "gone.seek(0)\ngone.read()").endswith("'unnamed'\n")
    assert run(copy, "open('../a').read()") == "'XYcdef'\n"
    assert run(copy, "rest = system.read()\nlen(rest) > 1000") == run(
        original, "rest = system.read()\nlen(rest) > 1000"
    )
    run(original, "os.write(w, b'secret')")
    assert run(copy, "os.read(r, 10)") == "b''\n"
    assert run(copy, "tempfile.mkstemp()[1].startswith(tempfile.gettempdir())") == "True\n"


def test_limits_hold_for_each_copy_by_itself(original: Sandbox) -> None:
    copies = original.fork(40)  # more than the processes of one session
    assert {run(copy, "import subprocess\nsubprocess.run(['true']).returncode") for copy in copies} == {"0\n"}
    hungry, bomb, slow, *others = copies
    eat = "import time\nx = [bytearray(1 << 20) for _ in range(400)]\ny = [bytes(a) for a in x]\ntime.sleep(5)"
    assert hungry.exec(eat).status is ExecStatus.MEMORY_LIMIT
    bear = "import os, time\nfor _ in range(30):\n    if os.fork() == 0:\n        time.sleep(30)\n"
    assert bomb.exec(f"{bear}        os._exit(0)\ntime.sleep(30)").status in (ExecStatus.KILLED, ExecStatus.ERROR)
    assert slow.exec("while True: pass", timeout_s=0.3).status is ExecStatus.TIMEOUT
    assert slow.alive
    assert {run(other, "6 * 7") for other in (original, slow, *others)} == {"42\n"}


def test_a_copy_cannot_reach_the_others(original: Sandbox) -> None:
    first, second = original.fork(2)
    program = """
import os
hits = []
for pid in range(1, 200):
    if pid != os.getpid():
        try: os.kill(pid, 0); hits.append(pid)
        except OSError: pass
        for look in (os.listdir, open):
            for name in ("mem", "environ", "root", "cwd", "fd/1", "fd/3"):
                try:
                    look(f"/proc/{pid}/{name}")
                    hits.append((pid, name))
                except OSError: pass
hits
"""
    for sandbox in (original, first, second):
        run(sandbox, "x = 1")
    for sandbox in (original, first, second):
        assert run(sandbox, program) == "[]\n"


def test_names_move_between_folders(original: Sandbox) -> None:
    program = """
import os
os.makedirs("d/e", exist_ok=True)
open("d/e/f", "w").close()
os.rename("d/e/f", "f")
os.link("f", "d/g")
os.rename("d/e", "e")
os.rename("e", "d/e")
sorted(os.listdir("d")), os.stat("f").st_nlink
"""
    (copy,) = original.fork(1)
    assert run(original, program) == run(copy, program) == "(['e', 'g'], 2)\n"


def test_a_copy_can_be_forked_again_and_again(original: Sandbox) -> None:
    (sandbox,) = original.fork(1)
    for count in range(3):
        run(sandbox, f"open('f{count}', 'w').close()")
        (copy,) = sandbox.fork(1)
        assert run(copy, "import os\nlen(os.listdir('.'))") == f"{count + 1}\n"


def test_the_rules_that_part_copies_are_not_of_a_sessions_making(original: Sandbox) -> None:
    """The kernel keeps rules and counts nobody's, so sessions enter those of their warden."""
    program = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
call = lambda *arguments: (libc.syscall(*map(ctypes.c_long, arguments)), ctypes.get_errno())
made = ctypes.create_string_buffer(struct.pack("Q", 1))
call(444, ctypes.addressof(made), 8, 0), call(445, 3, 1, 0, 0)
"""
    (copy,) = original.fork(1)
    for sandbox in (original, copy):
        assert run(sandbox, program) == "((-1, 1), (-1, 1))\n"


def test_what_cannot_be_forked_says_why(original: Sandbox) -> None:
    for wrong in (0, -1, 257, 1.0, True, "2"):
        with pytest.raises(ConfigError, match=r"n=.*must be in \[1, 256\]"):
            original.fork(wrong)  # type: ignore[arg-type]
    assert not original.exec("import os\nos._exit(0)").ok
    with pytest.raises(SandboxError, match="ended"):
        original.fork(1)
    original.close()
    with pytest.raises(SandboxError, match="closed"):
        original.fork(1)
    with (
        warnings.catch_warnings(action="ignore"),
        open_sandbox(isolation="none") as bare,
        pytest.raises(SandboxError, match="without isolation"),
    ):
        bare.fork(1)


def test_no_room_for_copies_leaves_the_session_as_it_was() -> None:
    with open_sandbox(limits=LIMITS) as sandbox:
        run(
            sandbox,
            "import os\nx = 5\nfor _ in range(300):\n    os.mkdir('d')\n    os.chdir('d')\nos.chdir('/workspace')",
        )
        with pytest.raises(SandboxError, match="nested deeper"):
            sandbox.fork(3)
        assert run(sandbox, "x") == "5\n"
        assert sandbox.run(["rm", "-rf", "d"]).ok
        (copy,) = sandbox.fork(1)
        assert run(copy, "x") == "5\n"


def test_a_session_that_spoils_its_fork_ends_alone(original: Sandbox) -> None:
    with open_sandbox(isolation="namespaces") as neighbour:
        run(neighbour, "x = 1")
        original.exec("import os, socket\nos.close(3)")
        with pytest.raises(SandboxError):
            original.fork(2)
        original.reset()
        lie = "import os, threading, time\ndef write():\n    time.sleep(0.2)\n    os.write(3, b'\\0' * 100)\n"
        original.exec(lie + "threading.Thread(target=write).start()")
        time.sleep(0.4)
        with pytest.raises(SandboxError):
            original.fork(2)
        original.reset()
        assert run(original, "6 * 7") == "42\n"
        assert run(neighbour, "x") == "1\n"


def test_a_fork_takes_no_descriptor_with_it(original: Sandbox) -> None:
    run(original, "x = 1")
    for _ in range(2):
        for copy in original.fork(20):
            copy.close()
    before = len(os.listdir("/proc/self/fd"))
    copies = original.fork(20)
    assert run(copies[7], "import os\nlen([fd for fd in range(256) if os.path.exists(f'/proc/self/fd/{fd}')])") == "4\n"
    for copy in copies:
        copy.close()
    assert len(os.listdir("/proc/self/fd")) == before

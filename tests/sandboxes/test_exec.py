"""What an execution gives: state, output, and each status."""

import time
from collections.abc import Iterator

import pytest

from palaestra.core.errors import SandboxError
from palaestra.sandboxes import ExecStatus, Limits, Sandbox, open_sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox(limits=Limits(timeout_s=10)) as opened:
        yield opened


def test_state_is_kept_and_reset_forgets_it(sandbox: Sandbox) -> None:
    assert sandbox.exec("x = 41\ndef f():\n    return x + 1").ok
    assert sandbox.exec("f()").stdout == "42\n"
    sandbox.reset()
    assert "NameError" in sandbox.exec("f()").stderr


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        ("1 + 1", "2\n"),
        ("'a'", "'a'\n"),
        ("None", ""),
        ("x = 5", ""),
        ("x = 5\nx", "5\n"),
        ("x = 5\nx  # the end\n\n", "5\n"),
        ("print('a')\n(1,\n 2)", "a\n(1, 2)\n"),
        ("for i in range(2):\n    i", ""),
        ("s = '''\nx\n'''", ""),
        ("'''\nx\n'''", "'\\nx\\n'\n"),
        ("def f():\n    return 3\nf()", "3\n"),
        ("[\n1]", "[1]\n"),
        ("print(1); 2", "1\n2\n"),
        ("if True:\n    print(1)\nelse:\n    print(2)", "1\n"),
        ("", ""),
        ("# nothing", ""),
        ("7\r\n", "7\n"),
        ("_ = 3\n1 if _ else 2", "1\n"),
        ("x = [3]\nx[\n 0\n]", "3\n"),
        ("import this as t" if False else "import math\nmath.pi > 3", "True\n"),
    ],
)
def test_the_last_expression_is_echoed(sandbox: Sandbox, code: str, stdout: str) -> None:
    result = sandbox.exec(code)
    assert (result.stdout, result.stderr, result.status, result.exit_status) == (stdout, "", ExecStatus.OK, 0)


def test_a_traceback_shows_the_code_and_nothing_of_ours(sandbox: Sandbox) -> None:
    sandbox.exec("def half(x):\n    return x / 0\n")
    result = sandbox.exec("y = 1\nhalf(y)\n")
    assert result.status is ExecStatus.ERROR
    assert result.exit_status == 1
    assert result.message == "ZeroDivisionError: division by zero"
    assert result.stderr.startswith('Traceback (most recent call last):\n  File "<cell 2>", line 2, in <module>\n')
    assert "    return x / 0\n" in result.stderr
    assert "palaestra" not in result.stderr
    assert sandbox.exec("y").stdout == "1\n"


@pytest.mark.parametrize("code", ["x = 'a\nb'", "def f(:\n    1\nf(1)", "(1,\n2", "x = 1\ny = = 2\n", "y y"])
def test_a_syntax_error_shows_no_lines_of_ours(sandbox: Sandbox, code: str) -> None:
    stderr = sandbox.exec(code).stderr
    assert "SyntaxError" in stderr
    assert "session.py" not in stderr
    assert "During handling" not in stderr


def test_a_syntax_error_is_reported_with_its_line(sandbox: Sandbox) -> None:
    result = sandbox.exec("x = 1\ny = = 2\n")
    assert result.status is ExecStatus.ERROR
    assert 'File "<cell 1>", line 2' in result.stderr
    assert result.message == "SyntaxError: invalid syntax"
    assert "NameError" in sandbox.exec("x").stderr


@pytest.mark.parametrize(
    ("code", "status", "exit_status", "message"),
    [
        ("import sys\nsys.exit()", ExecStatus.OK, 0, ""),
        ("exit(0)", ExecStatus.OK, 0, ""),
        ("raise SystemExit(3)", ExecStatus.ERROR, 3, "the program exited with status 3"),
        ("import sys\nsys.exit('bad')", ExecStatus.ERROR, 1, "the program exited with a message"),
    ],
)
def test_sys_exit_ends_the_program_and_not_the_session(
    sandbox: Sandbox, code: str, status: ExecStatus, exit_status: int, message: str
) -> None:
    result = sandbox.exec(code)
    assert (result.status, result.exit_status, result.message) == (status, exit_status, message)
    assert sandbox.exec("1").stdout == "1\n"


def test_text_and_bytes_pass_unharmed(sandbox: Sandbox) -> None:
    assert sandbox.exec("print('żółć 🐍 ' + chr(0x10ffff))").stdout == "żółć 🐍 \U0010ffff\n"
    assert sandbox.exec("'ü' + \"\\n\"").stdout == "'ü\\n'\n"
    result = sandbox.exec("import os\nos.write(1, b'a\\xff\\x00b')")
    assert result.stdout.startswith("a\ufffd\x00b")
    assert sandbox.exec("print('\\ud800')").ok
    assert sandbox.exec("x = '\ud800'").status is ExecStatus.ERROR  # no UTF-8 for it
    assert sandbox.exec("1").ok


def test_stdout_and_stderr_are_apart_and_complete(sandbox: Sandbox) -> None:
    result = sandbox.exec("import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.stdout.write('no newline')")
    assert result.stdout == "out\nno newline10\n"
    assert result.stderr == "err\n"


def test_reading_stdin_finds_its_end(sandbox: Sandbox) -> None:
    assert sandbox.exec("input()").message == "EOFError: EOF when reading a line"


def test_long_output_keeps_head_and_tail() -> None:
    with open_sandbox(limits=Limits(output_kib=2)) as sandbox:
        result = sandbox.exec("print('H' + 'x' * 100_000 + 'T')")
    assert result.ok
    assert result.stdout.startswith("Hxxx")
    assert result.stdout.endswith("xxxT\n")
    assert "\n... [97955 bytes left out] ...\n" in result.stdout
    assert len(result.stdout) < 2200


def test_a_time_out_interrupts_and_the_session_survives(sandbox: Sandbox) -> None:
    sandbox.exec("n = 0")
    result = sandbox.exec("print('begun')\nwhile True:\n    n += 1", timeout_s=0.3)
    assert result.status is ExecStatus.TIMEOUT
    assert result.message == "timed out after 0.3 s; interrupted, the session keeps its state"
    assert result.stdout == "begun\n"
    assert "KeyboardInterrupt" in result.stderr
    assert 0.3 <= result.seconds < 2
    assert sandbox.alive
    assert sandbox.exec("n > 0").stdout == "True\n"


def test_what_ignores_the_interrupt_is_killed() -> None:
    stubborn = "import time\nwhile True:\n    try: time.sleep(9)\n    except KeyboardInterrupt: pass\n"
    with open_sandbox(limits=Limits(timeout_s=0.2, grace_s=0.1)) as sandbox:
        sandbox.exec("x = 1")
        result = sandbox.exec(stubborn)
        assert result.status is ExecStatus.TIMEOUT
        assert result.message == "timed out after 0.2 s; the session was killed"
        assert not sandbox.alive
        dead = sandbox.exec("x")
        assert (dead.status, dead.exit_status, dead.stdout) == (ExecStatus.DEAD, None, "")
        assert "reset()" in dead.message
        sandbox.reset()
        assert sandbox.exec("1").stdout == "1\n"


def test_sleeping_costs_no_cpu_time_and_computing_does() -> None:
    with open_sandbox(limits=Limits(timeout_s=20, cpu_s=0.4)) as sandbox:
        assert sandbox.exec("import time\ntime.sleep(0.8)").ok
        result = sandbox.exec("while True: pass")
        assert result.status is ExecStatus.TIMEOUT
        assert result.message.startswith("more than 0.4 s of CPU time")
        assert result.seconds < 10
        assert sandbox.exec("import time\ntime.sleep(0.3)\n5").stdout == "5\n"  # each execution has a budget of its own


def test_cpu_time_of_children_counts() -> None:
    program = "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'while true; do true; done'])"
    with open_sandbox(limits=Limits(timeout_s=20, cpu_s=0.4)) as sandbox:
        assert sandbox.exec(program).status is ExecStatus.TIMEOUT


@pytest.mark.parametrize(
    "code", ["import os\nos._exit(3)", "import ctypes\nctypes.string_at(0)", "import os\nos.abort()"]
)
def test_a_process_that_ends_itself_is_killed_status(sandbox: Sandbox, code: str) -> None:
    result = sandbox.exec("print('before', flush=True)\n" + code)
    assert result.status is ExecStatus.KILLED
    assert result.stdout == "before\n"
    assert result.exit_status not in (None, 0)
    assert "the session's process" in result.message
    assert sandbox.exec("1").status is ExecStatus.DEAD


def test_too_much_memory_is_an_error_that_a_session_survives() -> None:
    with open_sandbox(limits=Limits(memory_mib=128)) as sandbox:
        sandbox.exec("x = 1")
        result = sandbox.exec("y = bytearray(1 << 30)")
        assert result.status is ExecStatus.MEMORY_LIMIT
        assert sandbox.exec("x").stdout == "1\n"


def test_a_full_disk_has_its_status() -> None:
    with open_sandbox(limits=Limits(workspace_mib=1)) as sandbox:
        assert sandbox.exec("open('big', 'wb').write(bytes(2 << 20))").status is ExecStatus.DISK_LIMIT
        result = sandbox.run(["dd", "if=/dev/zero", "of=more", "bs=1M", "count=4"])
        assert result.status is ExecStatus.DISK_LIMIT
        with pytest.raises(SandboxError, match="more2: No space left"):
            sandbox.write_file("more2", bytes(2 << 20))


def test_output_past_the_hard_limit_is_stopped() -> None:
    with open_sandbox(limits=Limits(output_hard_mib=1)) as sandbox:
        result = sandbox.exec("while True: print('x' * 1000)")
        assert result.status is ExecStatus.OUTPUT_LIMIT
        assert result.message.startswith("more than 1 MiB of output")


def test_commands_run_in_the_workspace(sandbox: Sandbox) -> None:
    sandbox.write_file("a.txt", b"hello")
    assert sandbox.run(["cat", "a.txt"]).stdout == "hello"
    result = sandbox.run(["sh", "-c", "pwd; cat; echo oops >&2; exit 4"], stdin=b"in\xff\x00put")
    assert result.stdout.startswith("/workspace\nin\ufffd\x00put")
    assert (result.stderr, result.exit_status, result.status) == ("oops\n", 4, ExecStatus.ERROR)
    assert result.message == "sh exited with status 4"
    assert sandbox.run(["no-such-program"]).exit_status == 127
    assert sandbox.run(["sh", "-c", "kill -9 $$"]).exit_status == -9


def test_a_command_that_takes_too_long_is_stopped(sandbox: Sandbox) -> None:
    sandbox.exec("x = 7")
    result = sandbox.run(["sleep", "60"], timeout_s=0.3)
    assert result.status is ExecStatus.TIMEOUT
    assert result.seconds < 3
    assert sandbox.exec("x").stdout == "7\n"


def test_what_a_stopped_command_left_in_the_background_is_stopped_too(sandbox: Sandbox) -> None:
    ticking = "(while :; do echo tick >> ticks; sleep 0.02; done) & wait"
    assert sandbox.run(["sh", "-c", ticking], timeout_s=0.3).status is ExecStatus.TIMEOUT
    ticks = sandbox.read_file("ticks")
    time.sleep(0.2)
    assert sandbox.read_file("ticks") == ticks


def test_two_threads_of_one_session_take_turns(sandbox: Sandbox) -> None:
    import threading

    results: list[str] = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(sandbox.exec(f"import time\ntime.sleep(0.05)\n{i}").stdout))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["0\n", "1\n", "2\n", "3\n"]


def test_random_numbers_differ_between_sessions(sandbox: Sandbox) -> None:
    code = "import random, os\nrandom.random(), os.urandom(4)"
    with open_sandbox() as other:
        assert sandbox.exec(code).stdout != other.exec(code).stdout


def test_threads_and_processes_of_the_standard_library_work(sandbox: Sandbox) -> None:
    program = """
import asyncio, concurrent.futures, multiprocessing, subprocess, tempfile, threading
def square(x): return x * x
with concurrent.futures.ThreadPoolExecutor(3) as pool: print(list(pool.map(square, range(4))))
with multiprocessing.get_context("fork").Pool(2) as pool: print(pool.map(square, range(4)))
print(subprocess.run(["echo", "hi"], capture_output=True, text=True).stdout, end="")
async def main(): return await asyncio.sleep(0.01, 5)
print(asyncio.run(main()))
print(tempfile.NamedTemporaryFile().name.startswith("/tmp/"), threading.main_thread() is threading.current_thread())
"""
    result = sandbox.exec(program)
    assert result.stdout == "[0, 1, 4, 9]\n[0, 1, 4, 9]\nhi\n5\nTrue True\n", result


def test_a_closed_sandbox_says_so(sandbox: Sandbox) -> None:
    sandbox.close()
    sandbox.close()
    assert not sandbox.alive
    with pytest.raises(SandboxError, match="closed"):
        sandbox.exec("1")
    sandbox.reset()
    assert sandbox.exec("1").ok


def test_an_idle_background_job_does_not_disturb_the_next_call(sandbox: Sandbox) -> None:
    sandbox.run(["sh", "-c", "(sleep 0.2; echo late) &"])
    time.sleep(0.4)
    assert sandbox.exec("1").stdout == "1\n"


@pytest.mark.parametrize("isolation", ["namespaces", "landlock"])
def test_tools_that_keep_modes_times_and_attributes_do_not_complain(isolation: str) -> None:
    with open_sandbox(isolation=isolation, limits=Limits(timeout_s=20)) as sandbox:
        sandbox.write_file("tool", b"#!/bin/sh\necho works\n")
        script = (
            "chmod 750 tool && touch -d 2001-01-01 tool && cp -a tool a && cp -p tool b && install -m 755 tool c "
            "&& tar cf all.tar a b c && mkdir out && tar xpf all.tar -C out && mv out/a d "
            "&& ./a && ./c && ./d && stat -c '%a %Y' tool a b d"
        )
        result = sandbox.run(["bash", "-c", script])
        kept = "750 978307200\n"
        assert (result.stdout, result.stderr) == ("works\n" * 3 + kept * 4, "")


@pytest.mark.parametrize("isolation", ["namespaces", "landlock"])
def test_an_end_is_noticed_although_a_child_goes_on(isolation: str) -> None:
    leave = "import os, time\nprint('gone', flush=True)\nif os.fork() == 0: time.sleep(60)\nos._exit(3)"
    with open_sandbox(isolation=isolation, limits=Limits(timeout_s=20)) as sandbox:
        result = sandbox.exec(leave)
        assert (result.status, result.exit_status, result.stdout) == (ExecStatus.KILLED, 3, "gone\n")
        assert result.seconds < 10
        sandbox.reset()
        copy = sandbox.fork(1)[0]
        assert copy.exec(leave).exit_status == 3
        assert sandbox.exec("6 * 7").stdout == "42\n"
        assert sandbox.exec("import threading, os, time\nif os.fork() == 0: time.sleep(60)").ok
        assert sandbox.exec("threading.Timer(0.1, os._exit, [4]).start()").ok
        time.sleep(1)
        assert sandbox.exec("1").status is ExecStatus.DEAD

"""Life: what a reset gives, what `alive` says, and what is left after `close`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..base import ExecStatus, Limits, Sandbox
from .bench import (
    Bench,
    becomes_true,
    expect,
    expect_printed,
    expect_refused,
    expect_status,
    expect_usable_again,
    printed,
)

_BACKGROUND = """
import os, subprocess
script = 'while :; do echo tick >> "$0/ticks"; sleep 0.02; done'
child = subprocess.Popen(["sh", "-c", script, os.getcwd()], start_new_session=True)
"""
"""Starts a process that leaves the session's process group and writes to the workspace for ever."""
_STATE = "import os\nprint('x' in globals(), 'MARK' in os.environ, os.listdir(), os.path.exists({path!r}))"
_NO_STATE = "False False [] False\n"


def _forgets_everything_on_reset(bench: Bench) -> None:
    sandbox = bench.open()
    printed(
        sandbox,
        "import os\nx = 1\nos.environ['MARK'] = '1'\nos.mkdir('folder')\nos.chdir('folder')\nopen('a', 'w').close()",
    )
    path = printed(sandbox, "import tempfile\nprint(tempfile.mkdtemp())").strip()
    sandbox.write_file("b/c", b"1")
    sandbox.reset()
    expect_printed(sandbox, "import os\nos.path.basename(os.getcwd()) == 'folder'", "False\n")
    expect_printed(sandbox, _STATE.format(path=path), _NO_STATE)
    expect_refused(lambda: sandbox.read_file("b/c"), "reading a file from before the reset")


def _undoes_on_reset_what_was_patched(bench: Bench) -> None:
    sandbox = bench.open()
    printed(sandbox, "import builtins, json, sys\nbuiltins.sum = json.dumps = None\nsys.path.clear()")
    sandbox.reset()
    expect_printed(sandbox, "import json, sys\nprint(sum([1, 2]), json.dumps([1]), sys.path != [])", "3 [1] True\n")


def _ends_processes_on_reset(bench: Bench) -> None:
    _check_that_processes_end(bench, lambda sandbox: sandbox.reset())


def _ends_processes_on_close(bench: Bench) -> None:
    def close(sandbox: Sandbox) -> None:
        sandbox.close()
        sandbox.reset()  # a sandbox has no other way to look where it was

    _check_that_processes_end(bench, close)


def _ends_processes_with_a_session_that_dies(bench: Bench) -> None:
    def die(sandbox: Sandbox) -> None:
        sandbox.exec("os._exit(1)")
        sandbox.reset()

    _check_that_processes_end(bench, die)


def _check_that_processes_end(bench: Bench, end: Callable[[Sandbox], None]) -> None:
    sandbox = bench.open()
    pid = int(printed(sandbox, _BACKGROUND + "print(child.pid)"))
    expect(becomes_true(lambda: "ticks" in printed(sandbox, "os.listdir()")), "a background process did not start")
    end(sandbox)
    has_ended = f"""
import os
def has_ended():
    try:
        os.kill({pid}, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return {pid} == os.getpid()
"""
    printed(sandbox, has_ended)
    expect(becomes_true(lambda: printed(sandbox, "has_ended()") == "True\n"), "a background process lives on")
    expect_printed(sandbox, "import time\ntime.sleep(0.1)\nos.listdir()", "[]\n")


def _keeps_what_runs_in_the_background_until_then(bench: Bench) -> None:
    sandbox = bench.open()
    expect_status(sandbox.run(["sh", "-c", "(sleep 0.2; echo late > late) > /dev/null 2>&1 &"]), ExecStatus.OK)
    expect(becomes_true(lambda: printed(sandbox, "import os\nos.listdir()") == "['late']\n"), "it ended with the call")


def _is_revived_by_a_reset(bench: Bench) -> None:
    sandbox = bench.open()
    printed(sandbox, "x = 1")
    sandbox.write_file("a", b"1")
    for _ in range(3):
        sandbox.exec("import os\nos._exit(1)")
        sandbox.reset()
        expect_printed(sandbox, _STATE.format(path="a"), _NO_STATE)
    sandbox.close()
    sandbox.reset()
    expect_printed(sandbox, _STATE.format(path="a"), _NO_STATE)


def _keeps_its_limits_over_a_reset(bench: Bench) -> None:
    sandbox = bench.open(Limits(timeout_s=1, grace_s=5, output_kib=2))
    printed(sandbox, "1")
    sandbox.reset()
    expect(len(sandbox.exec("print('x' * 100_000)").stdout) < 3 * 1024, "output_kib is not kept over a reset")
    result = expect_status(sandbox.exec("while True:\n    pass"), ExecStatus.TIMEOUT)
    expect(result.seconds < 5, f"what may take 1 s took {result.seconds:.1f} s after a reset")


def _can_be_reset_over_and_over(bench: Bench) -> None:
    sandbox = bench.open()
    sandbox.reset()
    sandbox.reset()
    for number in range(20):
        expect_printed(sandbox, f"print('x' in globals())\nx = {number}", "False\n")
        sandbox.reset()
    expect_usable_again(sandbox)


def _tells_whether_it_is_alive(bench: Bench) -> None:
    sandbox = bench.open(Limits(timeout_s=0.3, grace_s=5))
    expect(sandbox.alive is True, "a fresh sandbox is not alive")
    for code in ("x = 1", "1 / 0", "x = (", "raise SystemExit(3)", "while True:\n    pass"):
        sandbox.exec(code)
        expect(sandbox.alive is True, f"it is not alive after {code!r}")
    sandbox.run(["false"])
    expect(sandbox.alive is True, "it is not alive after a command that failed")
    sandbox.exec("import os\nos._exit(0)")
    expect(sandbox.alive is False, "it is alive after its process left")
    sandbox.reset()
    expect(sandbox.alive is True, "it is not alive after a reset")
    sandbox.close()
    expect(sandbox.alive is False, "it is alive after close()")


def _closes_twice(bench: Bench) -> None:
    for use in ("", "x = 1", "import os\nos._exit(1)"):
        sandbox = bench.open()
        if use:
            sandbox.exec(use)
        sandbox.close()
        sandbox.close()
        expect(not sandbox.alive, "it is alive after close()")


def _refuses_to_work_once_closed(bench: Bench) -> None:
    sandbox = bench.open()
    sandbox.write_file("a", b"1")
    sandbox.close()
    expect_refused(lambda: sandbox.exec("1"), "exec of a closed sandbox")
    expect_refused(lambda: sandbox.run(["true"]), "run of a closed sandbox")
    expect_refused(lambda: sandbox.read_file("a"), "read_file of a closed sandbox")
    expect_refused(lambda: sandbox.write_file("a", b"2"), "write_file of a closed sandbox")


def _closes_at_the_end_of_a_with_block(bench: Bench) -> None:
    sandbox = bench.open()
    with sandbox as entered:
        expect(entered is sandbox, "entering a sandbox gives something else")
        expect_printed(sandbox, "6 * 7", "42\n")
    expect(not sandbox.alive, "it is alive after its with block")
    sandbox = bench.open()
    with contextlib.suppress(ZeroDivisionError), sandbox:
        raise ZeroDivisionError
    expect(not sandbox.alive, "it is alive after a with block that raised")


CHECKS = (
    _forgets_everything_on_reset,
    _undoes_on_reset_what_was_patched,
    _ends_processes_on_reset,
    _ends_processes_on_close,
    _ends_processes_with_a_session_that_dies,
    _keeps_what_runs_in_the_background_until_then,
    _is_revived_by_a_reset,
    _keeps_its_limits_over_a_reset,
    _can_be_reset_over_and_over,
    _tells_whether_it_is_alive,
    _closes_twice,
    _refuses_to_work_once_closed,
    _closes_at_the_end_of_a_with_block,
)

"""Statuses: how each way to end is reported, and what it leaves of the session."""

from __future__ import annotations

import math

from ..base import ExecResult, ExecStatus, Limits, Sandbox
from .bench import (
    Bench,
    expect,
    expect_printed,
    expect_refused,
    expect_status,
    expect_usable_again,
    is_one_line,
    printed,
)

_PATIENT = Limits(timeout_s=20, grace_s=5)
"""So that a busy machine has time to interrupt code that may be interrupted."""
_STUBBORN = "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass"
_CRASH = "import ctypes\nctypes.string_at(0)"


def _calls_what_ran_to_its_end_ok(bench: Bench) -> None:
    result = expect_status(bench.open().exec("x = 1"), ExecStatus.OK)
    expect(result.ok and result.exit_status == 0, f"the exit status of what went well is {result.exit_status!r}")
    expect(result.message == "", f"the message of what went well is {result.message!r}")
    expect(type(result.stdout) is str and type(result.stderr) is str, "output must be text")
    expect(type(result.status) is ExecStatus, f"the status is a {type(result.status).__name__}, not an ExecStatus")
    expect(math.isfinite(result.seconds) and result.seconds >= 0, f"seconds is {result.seconds!r}")


def _calls_an_exception_an_error(bench: Bench) -> None:
    result = expect_status(bench.open().exec("def f():\n    return 1 / 0\nf()"), ExecStatus.ERROR)
    expect(result.exit_status == 1, f"the exit status of an exception is {result.exit_status!r}, not 1")
    expect(result.message == "ZeroDivisionError: division by zero", f"the message is {result.message!r}")
    expect(result.stderr.startswith("Traceback (most recent call last):"), "stderr has no traceback")
    expect("line 2, in f" in result.stderr, "the traceback does not name the line")


def _calls_a_syntax_error_an_error_and_runs_nothing(bench: Bench) -> None:
    sandbox = bench.open()
    for code in ("x = 1\ny = = 2", "x = (", "x = 1\n  y = 2", "return 5"):
        result = expect_status(sandbox.exec(code), ExecStatus.ERROR)
        expect("Error: " in result.message, f"the message of {code!r} is {result.message!r}")
    expect("NameError" in sandbox.exec("x").stderr, "lines before a syntax error were run")


def _gives_the_exit_status_of_a_program_that_leaves(bench: Bench) -> None:
    sandbox = bench.open()
    printed(sandbox, "x = 1")
    for code, status, exit_status in (
        ("import sys\nsys.exit()", ExecStatus.OK, 0),
        ("exit(0)", ExecStatus.OK, 0),
        ("raise SystemExit(3)", ExecStatus.ERROR, 3),
        ("import sys\nsys.exit('so long')", ExecStatus.ERROR, 1),
    ):
        result = expect_status(sandbox.exec(code), status)
        expect(result.exit_status == exit_status, f"the exit status of {code!r} is {result.exit_status!r}")
    expect("so long" in result.stderr, "stderr lacks the message of sys.exit")
    expect_printed(sandbox, "x", "1\n")


def _calls_an_interrupt_that_the_code_raises_an_error(bench: Bench) -> None:
    sandbox = bench.open()
    expect_status(sandbox.exec("x = 1\nraise KeyboardInterrupt"), ExecStatus.ERROR)
    expect_printed(sandbox, "x", "1\n")


def _interrupts_code_that_computes_too_long(bench: Bench) -> None:
    sandbox = bench.open(_PATIENT)
    result = sandbox.exec("n = 0\nprint('begun')\nwhile True:\n    n += 1", timeout_s=0.3)
    _expect_interrupted(sandbox, result)
    expect(result.stdout == "begun\n", f"of what it had printed, {result.stdout!r} was kept")
    expect_printed(sandbox, "n > 0", "True\n")


def _interrupts_code_that_waits_too_long(bench: Bench) -> None:
    for waiting in ("import time\ntime.sleep(60)", "import subprocess\nsubprocess.run(['sleep', '60'])"):
        sandbox = bench.open(_PATIENT)
        printed(sandbox, "x = 1")
        _expect_interrupted(sandbox, sandbox.exec(waiting, timeout_s=0.3))
        expect_printed(sandbox, "x", "1\n")


def _expect_interrupted(sandbox: Sandbox, result: ExecResult) -> None:
    expect_status(result, ExecStatus.TIMEOUT)
    expect(0.3 <= result.seconds < 5, f"what may take 0.3 s took {result.seconds:.2f} s")
    expect(sandbox.alive, "the session did not survive a time-out of code that can be interrupted")


def _kills_code_that_ignores_the_interrupt(bench: Bench) -> None:
    sandbox = bench.open(Limits(grace_s=0.2))
    printed(sandbox, "1")
    result = expect_status(sandbox.exec(_STUBBORN, timeout_s=0.3), ExecStatus.TIMEOUT)
    expect(result.seconds < 5, f"what may take 0.3 + 0.2 s took {result.seconds:.2f} s")
    expect(not sandbox.alive, "a session that ignored the interrupt is still alive")
    sandbox.reset()
    expect_printed(sandbox, "6 * 7", "42\n")


def _takes_the_time_out_from_the_call_or_else_from_the_limits(bench: Bench) -> None:
    sandbox = bench.open(Limits(timeout_s=0.3, grace_s=5))
    wait = "import time\ntime.sleep(0.7)"
    expect_status(sandbox.exec(wait), ExecStatus.TIMEOUT)
    expect_status(sandbox.exec(wait, timeout_s=20), ExecStatus.OK)
    expect_status(sandbox.run(["sleep", "0.7"]), ExecStatus.TIMEOUT)


def _calls_a_process_that_leaves_killed(bench: Bench) -> None:
    result = bench.open().exec("import os\nprint('before', flush=True)\nos._exit(3)")
    expect_status(result, ExecStatus.KILLED)
    expect(result.exit_status == 3, f"the exit status of os._exit(3) is {result.exit_status!r}")
    expect(result.stdout == "before\n", f"of what it had printed, {result.stdout!r} was kept")


def _calls_a_crash_killed_by_its_signal(bench: Bench) -> None:
    result = bench.open().exec("print('before', flush=True)\n" + _CRASH)
    expect_status(result, ExecStatus.KILLED)
    killed_by_signal = type(result.exit_status) is int and result.exit_status < 0
    expect(killed_by_signal, f"the exit status of a crash is {result.exit_status!r}, which names no signal")
    expect(result.stdout == "before\n", f"of what it had printed, {result.stdout!r} was kept")


def _runs_nothing_in_a_dead_session(bench: Bench) -> None:
    sandbox = bench.open()
    sandbox.write_file("a", b"1")
    sandbox.exec("import os\nos._exit(1)")
    expect(not sandbox.alive, "a session whose process left is still alive")
    for result in (sandbox.exec("print(1)"), sandbox.run(["echo", "1"])):
        expect_status(result, ExecStatus.DEAD)
        expect(result.exit_status is None and result.stdout == "", "something ran in a dead session")
        expect("reset" in result.message, f"the message does not tell of reset(): {result.message!r}")
    expect_refused(lambda: sandbox.read_file("a"), "reading a dead session's file")
    expect_refused(lambda: sandbox.write_file("a", b""), "writing a file for a dead session")
    expect_usable_again(sandbox)


def _says_what_went_wrong_on_one_readable_line(bench: Bench) -> None:
    sandbox = bench.open(Limits(grace_s=0.2))
    nasty = r"'a\nb\r\x1b[31m\x00\u202e\ud800' + 'x' * 9999"
    for code in (f"raise ValueError({nasty})", f"raise SystemExit({nasty})", "x = = 1", _STUBBORN, "1", _CRASH, "1"):
        result = sandbox.exec(code, timeout_s=0.3 if code is _STUBBORN else None)
        expect(not result.ok, f"{code!r} went well")
        expect(is_one_line(result.message), f"the message of {code[:40]!r} is no readable line: {result.message!r}")
        expect(len(result.message) < 2000, f"a message has {len(result.message)} characters")
        if code == "1":
            sandbox.reset()


def _measures_how_long_it_took(bench: Bench) -> None:
    result = expect_status(bench.open().exec("import time\ntime.sleep(0.2)"), ExecStatus.OK)
    expect(0.2 <= result.seconds < 2, f"sleeping for 0.2 s took {result.seconds:.3f} s, it says")


CHECKS = (
    _calls_what_ran_to_its_end_ok,
    _calls_an_exception_an_error,
    _calls_a_syntax_error_an_error_and_runs_nothing,
    _gives_the_exit_status_of_a_program_that_leaves,
    _calls_an_interrupt_that_the_code_raises_an_error,
    _interrupts_code_that_computes_too_long,
    _interrupts_code_that_waits_too_long,
    _kills_code_that_ignores_the_interrupt,
    _takes_the_time_out_from_the_call_or_else_from_the_limits,
    _calls_a_process_that_leaves_killed,
    _calls_a_crash_killed_by_its_signal,
    _runs_nothing_in_a_dead_session,
    _says_what_went_wrong_on_one_readable_line,
    _measures_how_long_it_took,
)

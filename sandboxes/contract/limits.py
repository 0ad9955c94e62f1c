"""Limits: each breach has its own status, and a sandbox that was reset is as good as new."""

from __future__ import annotations

from ..base import ExecStatus, Limits
from .bench import Bench, expect, expect_refused, expect_status, expect_usable_again

_MIB = 1 << 20


def _keeps_head_and_tail_of_long_output(bench: Bench) -> None:
    sandbox = bench.open(Limits(output_kib=2))
    result = expect_status(
        sandbox.exec(
            "import sys\nfor file in sys.stdout, sys.stderr:\n    print('H' + 'x' * 100_000 + 'T', file=file)"
        ),
        ExecStatus.OK,
    )
    for text in (result.stdout, result.stderr):
        expect(text.startswith("Hxxx"), f"the head of long output is lost: {text[:20]!r}")
        expect(text.endswith("xxxT\n"), f"the tail of long output is lost: {text[-20:]!r}")
        expect(len(text) < 3 * 1024, f"output_kib=2 kept {len(text)} characters")


def _stops_endless_output(bench: Bench) -> None:
    limits = Limits(output_hard_mib=1, timeout_s=20, grace_s=2)
    sandbox = bench.open(limits)
    expect_status(sandbox.exec("while True:\n    print('x' * 1000)"), ExecStatus.OUTPUT_LIMIT)
    expect_usable_again(sandbox)
    sandbox = bench.open(limits)
    expect_status(sandbox.exec("import subprocess\nsubprocess.run(['yes'])"), ExecStatus.OUTPUT_LIMIT)
    sandbox.reset()  # a child that is just being killed may still print a little
    expect_usable_again(sandbox)


def _stops_a_file_that_is_too_large(bench: Bench) -> None:
    sandbox = bench.open(Limits(workspace_mib=2, tmp_mib=2))
    expect_status(sandbox.exec(f"_ = open('big', 'wb').write(bytes({4 * _MIB}))"), ExecStatus.DISK_LIMIT)
    expect_usable_again(sandbox)


def _stops_files_that_are_too_large_together(bench: Bench) -> None:
    sandbox = bench.open(Limits(workspace_mib=2, tmp_mib=2))
    program = f"for i in range(16):\n    _ = open(f'{{i}}', 'wb').write(bytes({_MIB // 2}))"
    expect_status(sandbox.exec(program), ExecStatus.DISK_LIMIT)
    expect_usable_again(sandbox)


def _stops_temporary_files_that_are_too_large(bench: Bench) -> None:
    sandbox = bench.open(Limits(workspace_mib=2, tmp_mib=2))
    program = f"import tempfile\nwith tempfile.TemporaryFile() as file:\n    _ = file.write(bytes({4 * _MIB}))"
    expect_status(sandbox.exec(program), ExecStatus.DISK_LIMIT)
    expect_usable_again(sandbox)


def _stops_too_many_files(bench: Bench) -> None:
    sandbox = bench.open(Limits(inodes=100))
    expect_status(sandbox.exec("for i in range(300):\n    open(f'{i}', 'w').close()"), ExecStatus.DISK_LIMIT)
    expect_usable_again(sandbox)


def _refuses_a_file_that_does_not_fit(bench: Bench) -> None:
    sandbox = bench.open(Limits(workspace_mib=2, tmp_mib=2))
    expect_refused(lambda: sandbox.write_file("big", bytes(4 * _MIB)), "a file of 4 MiB under workspace_mib=2")
    expect_usable_again(sandbox)


def _stops_too_much_memory(bench: Bench) -> None:
    sandbox = bench.open(Limits(memory_mib=128))
    expect_status(sandbox.exec("x = b'x' * (1 << 30)"), ExecStatus.MEMORY_LIMIT)
    expect_usable_again(sandbox)


def _counts_the_memory_of_child_processes(bench: Bench) -> None:
    sandbox = bench.open(Limits(memory_mib=128, timeout_s=15))
    program = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        x = b"x" * (60 << 20)
        time.sleep(30)
        os._exit(0)
for _ in range(5):
    os.wait()
"""
    expect_status(sandbox.exec(program), ExecStatus.MEMORY_LIMIT)
    expect_usable_again(sandbox)


def _stops_too_many_processes(bench: Bench) -> None:
    sandbox = bench.open(Limits(processes=16, timeout_s=15))
    program = """
import os, time
for _ in range(64):
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
time.sleep(1)
"""
    result = sandbox.exec(program)
    expect(result.status is not ExecStatus.OK, "64 processes ran at once under processes=16")
    expect_status(result, ExecStatus.ERROR, ExecStatus.KILLED)
    expect_usable_again(sandbox)


def _counts_cpu_time_and_not_waiting(bench: Bench) -> None:
    sandbox = bench.open(Limits(cpu_s=0.4, timeout_s=20, grace_s=5))
    expect_status(sandbox.exec("import time\ntime.sleep(0.7)"), ExecStatus.OK)
    result = expect_status(sandbox.exec("while True:\n    pass"), ExecStatus.TIMEOUT)
    expect(result.seconds < 15, f"cpu_s=0.4 let code compute for {result.seconds:.1f} s")
    expect_usable_again(sandbox)


CHECKS = (
    _keeps_head_and_tail_of_long_output,
    _stops_endless_output,
    _stops_a_file_that_is_too_large,
    _stops_files_that_are_too_large_together,
    _stops_temporary_files_that_are_too_large,
    _stops_too_many_files,
    _refuses_a_file_that_does_not_fit,
    _stops_too_much_memory,
    _counts_the_memory_of_child_processes,
    _stops_too_many_processes,
    _counts_cpu_time_and_not_waiting,
)

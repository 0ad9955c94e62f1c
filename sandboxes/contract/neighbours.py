"""Neighbours: many sandboxes at once, none of which notices the others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ..base import ExecStatus, Limits
from .bench import Bench, expect, expect_printed, expect_status, printed, run_at_once


def _keeps_sandboxes_apart(bench: Bench) -> None:
    first, second = bench.open(), bench.open()
    printed(first, "import os, json\nx = 1\njson.mark = 1\nos.environ['MARK'] = '1'")
    first.write_file("a", b"1")
    state = "import os, json\nprint('x' in globals(), hasattr(json, 'mark'), 'MARK' in os.environ, os.listdir())"
    expect_printed(second, state, "False False False []\n")
    second.write_file("a", b"2")
    printed(second, "x = 2")
    expect_printed(first, "print(x, open('a').read())", "1 1\n")


def _lets_sandboxes_run_side_by_side(bench: Bench) -> None:
    sandboxes = [bench.open() for _ in range(4)]
    for sandbox in sandboxes:
        printed(sandbox, "import time")
    seconds = run_at_once([lambda s=sandbox: printed(s, "time.sleep(0.5)") for sandbox in sandboxes])
    expect(seconds < 1.5, f"four sandboxes that sleep for 0.5 s at once took {seconds:.1f} s")


def _lets_no_blocked_sandbox_block_another(bench: Bench) -> None:
    blocked, other = bench.open(Limits(grace_s=5)), bench.open()
    printed(blocked, "1")
    with ThreadPoolExecutor(1) as pool:
        endless = pool.submit(lambda: blocked.exec("while True:\n    pass", timeout_s=1.0))
        expect_printed(other, "6 * 7", "42\n")
        other.write_file("a", b"1")
        expect_status(other.run(["cat", "a"]), ExecStatus.OK)
        other.reset()
        expect_printed(bench.open(), "6 * 7", "42\n")
        expect(not endless.done(), "a sandbox answered only when another one's endless loop was over")
        expect_status(endless.result(), ExecStatus.TIMEOUT)


def _holds_sixteen_sandboxes_at_once(bench: Bench) -> None:
    sandboxes = [bench.open() for _ in range(16)]
    run_at_once([lambda s=s, i=i: printed(s, f"x = {i}") for i, s in enumerate(sandboxes)])
    run_at_once([lambda s=s, i=i: s.write_file("a", f"{i}".encode()) for i, s in enumerate(sandboxes)])
    for number, sandbox in enumerate(sandboxes):
        expect_printed(sandbox, "print(x, open('a').read())", f"{number} {number}\n")


def _survives_what_befalls_its_neighbours(bench: Bench) -> None:
    sandbox = bench.open()
    printed(sandbox, "x = 1")
    sandbox.write_file("a", b"1")
    bench.open(Limits(memory_mib=128)).exec("x = b'x' * (1 << 30)")
    bench.open(Limits(timeout_s=0.2, grace_s=0)).exec("while True:\n    pass")
    bench.open(Limits(output_hard_mib=1)).exec("while True:\n    print('x' * 1000)")
    bench.open().exec("import os\nos._exit(1)")
    bench.open().close()
    expect_printed(sandbox, "print(x, open('a').read())", "1 1\n")


CHECKS = (
    _keeps_sandboxes_apart,
    _lets_sandboxes_run_side_by_side,
    _lets_no_blocked_sandbox_block_another,
    _holds_sixteen_sandboxes_at_once,
    _survives_what_befalls_its_neighbours,
)

"""Text: what goes in as code and comes out as output, whatever characters are in it."""

from __future__ import annotations

import contextlib

from ...core.errors import PalaestraError
from ..base import ExecStatus, Limits
from .bench import Bench, expect, expect_printed, expect_status, printed


def _passes_unicode_in_both_directions(bench: Bench) -> None:
    sandbox = bench.open()
    expect_printed(sandbox, "größe = 'żółć 🐍'\nprint(größe + chr(0x10ffff))", "żółć 🐍\U0010ffff\n")
    expect_printed(sandbox, "größe", "'żółć 🐍'\n")
    result = expect_status(sandbox.run(["printf", "%s", "żółć 🐍"]), ExecStatus.OK)
    expect(result.stdout == "żółć 🐍", f"a command printed {result.stdout!r}")


def _replaces_bytes_that_are_no_text(bench: Bench) -> None:
    sandbox = bench.open()
    expect_printed(sandbox, r"import os; _ = os.write(1, b'a\xff\x00\xc3(b\n')", "a\ufffd\x00\ufffd(b\n")
    result = sandbox.run(["printf", r"a\377b"])
    expect(result.stdout == "a\ufffdb", f"a command's byte that is no text became {result.stdout!r}")


def _keeps_stdout_and_stderr_apart(bench: Bench) -> None:
    result = bench.open().exec("import sys\nprint('out')\nprint('err', file=sys.stderr)\n_ = sys.stdout.write('end')")
    expect(result.stdout == "out\nend", f"stdout is {result.stdout!r}")
    expect(result.stderr == "err\n", f"stderr is {result.stderr!r}")


def _keeps_large_output_whole_and_in_order(bench: Bench) -> None:
    sandbox = bench.open(Limits(output_kib=1024))
    expect_printed(sandbox, "for i in range(100_000):\n    print(i)", "".join(f"{i}\n" for i in range(100_000)))
    expect_printed(sandbox, "for i in range(500):\n    print(i, flush=True)", "".join(f"{i}\n" for i in range(500)))


def _shows_what_child_processes_print(bench: Bench) -> None:
    sandbox = bench.open()
    program = "import subprocess\n_ = subprocess.run(['sh', '-c', 'echo out; echo err >&2'])"
    result = expect_status(sandbox.exec(program), ExecStatus.OK)
    expect((result.stdout, result.stderr) == ("out\n", "err\n"), f"a child's output became {result!r}")


def _shows_no_output_twice(bench: Bench) -> None:
    sandbox = bench.open()
    printed(sandbox, "print('first')")
    expect_printed(sandbox, "print('second')", "second\n")
    result = sandbox.run(["true"])
    expect(result.stdout == "" and result.stderr == "", f"a silent command printed {result.stdout!r}")


def _runs_long_code(bench: Bench) -> None:
    sandbox = bench.open()
    lines = "".join(f"x{i} = 'the value of variable number {i:06d}'\n" for i in range(5000))
    expect(len(lines) > 200_000, "this check is too short")
    expect_printed(sandbox, lines + "x4999", "'the value of variable number 004999'\n")
    expect_printed(sandbox, f"len('{'x' * 200_000}')", "200000\n")


def _takes_null_bytes_and_lone_surrogates(bench: Bench) -> None:
    sandbox = bench.open()
    printed(sandbox, "x = 1")
    for code in ("y = '\0'", "y = '\ud800'"):
        with contextlib.suppress(PalaestraError):  # refused before it got to the session
            expect_status(sandbox.exec(code), ExecStatus.ERROR)
    expect_printed(sandbox, r"print('\0')", "\0\n")
    result = expect_status(sandbox.exec(r"print('a\ud800b')"), ExecStatus.OK)
    expect(_is_encodable(result.stdout), "output has a lone surrogate, which no file takes")
    expect_printed(sandbox, "x", "1\n")


def _finds_the_end_of_its_input(bench: Bench) -> None:
    sandbox = bench.open()
    result = expect_status(sandbox.exec("input()", timeout_s=5), ExecStatus.ERROR)
    expect("EOFError" in result.stderr, "input() does not find the end of stdin")
    expect_printed(sandbox, "import sys\nsys.stdin.read()", "''\n")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


CHECKS = (
    _passes_unicode_in_both_directions,
    _replaces_bytes_that_are_no_text,
    _keeps_stdout_and_stderr_apart,
    _keeps_large_output_whole_and_in_order,
    _shows_what_child_processes_print,
    _shows_no_output_twice,
    _runs_long_code,
    _takes_null_bytes_and_lone_surrogates,
    _finds_the_end_of_its_input,
)

"""Commands: programs that run in the workspace, without a shell in between."""

from __future__ import annotations

from ...core.errors import SandboxError
from ..base import ExecStatus, Limits, Sandbox
from .bench import Bench, becomes_true, expect, expect_printed, expect_status, printed

_TICKING = "while :; do echo tick >> ticks; sleep 0.02; done"


def _runs_commands_in_the_workspace(bench: Bench) -> None:
    sandbox = bench.open()
    sandbox.write_file("a.txt", b"hello")
    result = expect_status(sandbox.run(["cat", "a.txt"]), ExecStatus.OK)
    expect(result.stdout == "hello" and result.exit_status == 0, f"cat gave {result.stdout!r}, {result.exit_status!r}")
    expect(result.message == "", f"the message of what went well is {result.message!r}")
    expect_status(sandbox.run(["sh", "-c", "echo 1 > made; mkdir folder"]), ExecStatus.OK)
    expect_printed(sandbox, "import os\nsorted(os.listdir())", "['a.txt', 'folder', 'made']\n")


def _gives_a_command_its_input(bench: Bench) -> None:
    sandbox = bench.open()
    for data, size in ((b"\x00\xff\n", 3), (b"x" * (1 << 20), 1 << 20), (b"", 0)):
        result = expect_status(sandbox.run(["wc", "-c"], stdin=data), ExecStatus.OK)
        expect(result.stdout.split() == [str(size)], f"of {size} bytes of input, wc -c counted {result.stdout!r}")
    expect_status(sandbox.run(["true"], stdin=b"x" * (1 << 20)), ExecStatus.OK)  # it does not read it
    result = expect_status(sandbox.run(["cat"], timeout_s=5), ExecStatus.OK)
    expect(result.stdout == "", f"no input is {result.stdout!r}")


def _gives_the_exit_status_of_a_command(bench: Bench) -> None:
    sandbox = bench.open()
    for script, wanted in (("exit 4", 4), ("exit 255", 255), ("kill -9 $$", -9), ("kill -15 $$", -15)):
        result = expect_status(sandbox.run(["sh", "-c", script]), ExecStatus.ERROR)
        expect(result.exit_status == wanted, f"the exit status of {script!r} is {result.exit_status!r}")
        expect("sh" in result.message, f"the message names no program: {result.message!r}")
    expect(sandbox.alive, "a command that failed ended the session")


def _names_a_program_that_is_missing(bench: Bench) -> None:
    sandbox = bench.open()
    for program in ("no-such-program", "./no-such-program", "/"):
        result = expect_status(sandbox.run([program]), ExecStatus.ERROR)
        expect(result.exit_status != 0, f"the exit status of what does not exist is {result.exit_status!r}")
        expect(program in result.message, f"the message does not name {program}: {result.message!r}")
    expect(sandbox.alive, "a program that is missing ended the session")


def _passes_arguments_as_they_are(bench: Bench) -> None:
    arguments = ["a  b", "", "$HOME", "*", "`id`", "; exit 3", "'\"", "żółć", "-n", "a\nb"]
    result = bench.open().run(["printf", "%s|", *arguments])
    wanted = "".join(f"{argument}|" for argument in arguments)
    expect(result.stdout == wanted, f"the arguments arrived as {result.stdout!r}")


def _keeps_stdout_and_stderr_of_a_command_apart(bench: Bench) -> None:
    result = bench.open().run(["sh", "-c", "echo out; echo err >&2; printf end"])
    expect(result.stdout == "out\nend", f"stdout is {result.stdout!r}")
    expect(result.stderr == "err\n", f"stderr is {result.stderr!r}")


def _refuses_what_is_no_command(bench: Bench) -> None:
    sandbox = bench.open()
    commands: tuple[list[str] | str, ...] = ([], "ls -l")
    for argv in commands:
        try:
            result = sandbox.run(argv)
        except (SandboxError, ValueError):
            continue
        raise AssertionError(f"run({argv!r}) gave the status '{result.status}' instead of an error")
    expect_printed(sandbox, "6 * 7", "42\n")


def _gives_commands_a_home_and_a_folder_for_temporary_files(bench: Bench) -> None:
    sandbox = bench.open()
    for variable in ("HOME", "PATH"):
        result = expect_status(sandbox.run(["sh", "-c", f'printf %s "${variable}"']), ExecStatus.OK)
        expect(result.stdout != "", f"{variable} is not set")
    expect_status(
        sandbox.run(["sh", "-c", 'cd && echo 1 > "$HOME/a" && cat "$HOME/a" && cat "$(mktemp)"']), ExecStatus.OK
    )
    expect_printed(sandbox, "import os\nos.path.isdir(os.path.expanduser('~'))", "True\n")


def _stops_a_command_that_takes_too_long(bench: Bench) -> None:
    sandbox = bench.open(Limits(grace_s=5))
    printed(sandbox, "x = 7")
    result = expect_status(sandbox.run(["sh", "-c", "echo begun; exec sleep 60"], timeout_s=0.3), ExecStatus.TIMEOUT)
    expect(0.3 <= result.seconds < 5, f"what may take 0.3 s took {result.seconds:.2f} s")
    expect(result.stdout == "begun\n", f"of what it had printed, {result.stdout!r} was kept")
    expect_printed(sandbox, "x", "7\n")


def _stops_the_children_of_a_command_that_takes_too_long(bench: Bench) -> None:
    for script in (f"sh -c '{_TICKING}'; true", f"sh -c '{_TICKING}' & wait"):
        sandbox = bench.open(Limits(grace_s=5))
        expect_status(sandbox.run(["sh", "-c", script], timeout_s=0.3), ExecStatus.TIMEOUT)
        expect(_ticks(sandbox) > 0, "the child did not start")
        expect(becomes_true(lambda s=sandbox: not _is_ticking(s)), f"a child of {script!r} runs on after the time-out")


def _is_ticking(sandbox: Sandbox) -> bool:
    before = _ticks(sandbox)
    expect_status(sandbox.run(["sleep", "0.15"]), ExecStatus.OK)
    return _ticks(sandbox) > before


def _ticks(sandbox: Sandbox) -> int:
    return len(sandbox.read_file("ticks"))


CHECKS = (
    _runs_commands_in_the_workspace,
    _gives_a_command_its_input,
    _gives_the_exit_status_of_a_command,
    _names_a_program_that_is_missing,
    _passes_arguments_as_they_are,
    _keeps_stdout_and_stderr_of_a_command_apart,
    _refuses_what_is_no_command,
    _gives_commands_a_home_and_a_folder_for_temporary_files,
    _stops_a_command_that_takes_too_long,
    _stops_the_children_of_a_command_that_takes_too_long,
)

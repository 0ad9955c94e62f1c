"""Running a whole program once, as `python main.py < input` would, in a session's own process.

The process is a warm clone, so that no interpreter has to start; what a script can tell is the same: `__main__`,
`sys.argv`, its file, standard input as a file, threads that are waited for, exit handlers, destructors. The verdict
needs nothing that the process says about itself: what was printed is collected outside. Not the same: a program that
puts another one in its place (`os.execv`) has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import sys

from . import wire

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Execute = Callable[[str, str], tuple[str, int, str]]
    """Executes a source under a file name in `__main__` and gives status, exit status and message."""

FILE_NAME = "main.py"


def request(sources: list[str], stdin: str) -> bytes:
    """Gives the request for `run`; the last of the sources is the program."""
    return wire.dumps({"sources": sources, "stdin": stdin}).encode()


def run(question: bytes, execute: Execute, namespace: dict[str, Any]) -> tuple[str, int, str]:
    """Runs a program to its end, with everything that its interpreter would do at exit.

    Args:
        question: What `request` gives.
        execute: Runs one source.
        namespace: The names of `__main__`.
    """
    asked = wire.loads(question.decode())
    *before, program = asked["sources"]
    path = f"{os.getcwd()}/{FILE_NAME}"
    try:
        _redirect_stdin(asked["stdin"].encode("utf-8", "surrogatepass"))
        with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(program)
    except OSError as error:
        return "disk", 1, f"no space for the program and its input: {error.strerror}"
    namespace["__file__"] = path
    sys.argv = [FILE_NAME]
    sys.path.insert(0, os.getcwd())
    outcome = ("ok", 0, "")
    for source, name in [*((source, "prelude.py") for source in before), (program, path)]:
        outcome = execute(source, name)
        if outcome[0] != "ok":
            break
    _finalize(namespace)
    return outcome


def stdin_file(data: bytes) -> int:
    """Gives a descriptor of a file without a name that holds `data`.

    Raises:
        OSError: There is no space for it.
    """
    if not data:
        return os.open("/dev/null", os.O_RDONLY)
    fd = _unnamed_file(os.environ["TMPDIR"])
    wire.write_all(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _unnamed_file(folder: str) -> int:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # gVisor
            raise
    name = os.path.join(folder, f".{os.urandom(8).hex()}")
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.unlink(name)
    return fd


def _redirect_stdin(data: bytes) -> None:
    fd = stdin_file(data)
    os.dup2(fd, 0)
    os.close(fd)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115


def _finalize(namespace: dict[str, Any]) -> None:
    """Ends the program in CPython's order: threads, exit handlers, buffers, objects, buffers."""
    wait_for_threads: Callable[[], None] | None = getattr(sys.modules.get("threading"), "_shutdown", None)
    run_exit_handlers: Callable[[], None] = getattr(atexit, "_run_exitfuncs")  # noqa: B009 - private
    for step in (wait_for_threads, run_exit_handlers, _flush, namespace.clear, gc.collect, _flush):
        with contextlib.suppress(BaseException):
            if step is not None:
                step()


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__, sys.stderr):
        with contextlib.suppress(BaseException):  # the code put something else in their place
            if stream is not None:
                stream.flush()

"""What runs inside a session's own process: the loop that executes code, commands and calls.

From its first execution on this process belongs to the code that it ran: nothing that it says is trusted. It speaks to
the supervisor over descriptor 3 alone and knows nothing but what it was sent.
"""

from __future__ import annotations

import _ast
import builtins
import errno
import gc
import linecache
import os
import signal
import sys
import traceback
import types
from typing import Any, NoReturn

from . import calls, wire

CONTROL_FD = 3
_SIGNALLED = 128
Outcome = tuple[str, int, str]
"""Status (`ok`, `error`, `memory`, `disk`), exit status, and one line about what went wrong."""
OK: Outcome = ("ok", 0, "")


class Interpreter:
    """A `__main__` module in which cells of code run one after the other."""

    def __init__(self, module: types.ModuleType) -> None:
        self.namespace = module.__dict__
        self.namespace["__builtins__"] = builtins
        self._cells = 0

    def run(self, code: str) -> Outcome:
        """Runs a cell as a REPL would: the value of a last expression is echoed, an error is a trimmed traceback."""
        self._cells += 1
        name = f"<cell {self._cells}>"
        try:
            self._execute(code, name)
        except SystemExit as error:
            return _exit_outcome(error)
        except BaseException as error:
            return report(error, name)
        return OK

    def _execute(self, code: str, name: str) -> None:
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree: Any = compile(code, name, "exec", _ast.PyCF_ONLY_AST)
        last = None
        if tree.body and type(tree.body[-1]) is _ast.Expr:
            last = _ast.Interactive([tree.body.pop()])  # `single` mode echoes through sys.displayhook
        if tree.body:
            exec(compile(tree, name, "exec"), self.namespace)
        if last is not None:
            exec(compile(last, name, "single"), self.namespace)


def _exit_outcome(error: SystemExit) -> Outcome:
    code = error.code
    if code is None or code == 0:
        return OK
    if isinstance(code, int):
        return "error", code & 0xFF, f"the program exited with status {code & 0xFF}"
    print(code, file=sys.stderr)
    return "error", 1, "the program exited with a message"


def report(error: BaseException, name: str) -> Outcome:
    """Prints an exception with the frames of the file `name` only, and gives its outcome."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != name:
        trace = trace.tb_next
    try:
        lines = traceback.format_exception(type(error), error, trace)
    except Exception:
        lines = [type(error).__name__ + "\n"]
    sys.stderr.write("".join(lines))
    line = lines[-1].strip()
    status = "error"
    if isinstance(error, MemoryError):
        status = "memory"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        status = "disk"
    return status, 1, line[:500]


def _run_command(argv: list[str], stdin: bytes) -> Outcome:
    """Runs a command in the workspace with the session's own output."""
    source = _stdin_file(stdin)
    try:
        pid = os.posix_spawnp(
            argv[0], argv, os.environ, setpgroup=0, setsigdef=(signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ),
            file_actions=[(os.POSIX_SPAWN_DUP2, source, 0)],
        )  # fmt: skip
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        return "error", 127, f"{argv[0]}: {error.strerror}"
    finally:
        os.close(source)
    try:
        _, status = os.waitpid(pid, 0)
    except KeyboardInterrupt:
        os.killpg(pid, signal.SIGINT)
        try:
            _, status = os.waitpid(pid, 0)
        except KeyboardInterrupt:
            status = signal.SIGINT
    exit_status = os.waitstatus_to_exitcode(status)
    if exit_status == 0:
        return OK
    if exit_status == -signal.SIGXFSZ or _disk_is_full():
        return "disk", exit_status, "no space left in the workspace"
    how = f"was killed by signal {-exit_status}" if exit_status < 0 else f"exited with status {exit_status}"
    return "error", exit_status, f"{argv[0]} {how}"


def _stdin_file(data: bytes) -> int:
    if not data:
        return os.open("/dev/null", os.O_RDONLY)
    fd = os.memfd_create("stdin")
    wire.write_all(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _disk_is_full() -> bool:
    for path in ("/workspace", "/tmp"):
        usage = os.statvfs(path)
        if usage.f_bfree == 0 or usage.f_ffree == 0:
            return True
    return False


def _perform(head: dict[str, Any], body: bytes, interpreter: Interpreter) -> tuple[Outcome, bytes]:
    operation = head["op"]
    if operation == "exec":
        return interpreter.run(body.decode()), b""
    if operation == "run":
        return _run_command(head["argv"], body), b""
    if operation == "calls":
        return OK, calls.answer_all(body)
    if operation == "ready":
        return OK, b""
    raise ValueError(f"unknown operation {operation!r}")


def serve() -> NoReturn:
    """Executes what the supervisor sends, until it hangs up."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    interpreter = Interpreter(module)
    gc.enable()
    while True:
        try:
            head, body = wire.read_frame(CONTROL_FD)
        except (EOFError, OSError):
            os._exit(0)
        outcome: Outcome = ("error", 1, "interrupted")
        answer = b""
        try:
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                outcome, answer = _perform(head, body, interpreter)
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        except BaseException as error:  # an interrupt that came between two steps, or a value that cannot cross
            outcome = ("error", 1, f"{type(error).__name__}: {error}"[:500])
        _flush()
        status, exit_status, message = outcome
        wire.write_all(
            CONTROL_FD, wire.pack({"id": head["id"], "s": status, "x": exit_status, "m": message}, answer)
        )  # fmt: skip


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            continue


def rehearse() -> None:
    """Runs every path once on harmless code, so that clones of this process inherit its caches warm."""
    interpreter = Interpreter(types.ModuleType("__main__"))
    for code in _REHEARSAL:
        interpreter.run(code)
    calls.answer_all(calls.request(["def f(x):\n    return [x]\n"], "f", [[1], [[1, 2]], [{"a": (1, 2.5)}]]))
    _flush()
    linecache.cache.clear()


_REHEARSAL = (
    "def f(x):\n    y = sorted(v for v in x if v > 2)\n    return max(y), [v * 2 for v in y]\nprint(f([1, 2, 3]))\n",
    "import math\ns = 0\nfor i in range(3):\n    s += i\nassert s == 3, 'no'\nf'{s:d}'",
    "class A:\n    def __init__(self):\n        self.x = {}\nA().x['k']\n",
    "x = (",
)

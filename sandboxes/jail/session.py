"""What runs inside a session's own process: the loop that executes code, commands and calls.

From its first execution on this process belongs to the code that it ran: nothing that it says is trusted. It speaks to
the supervisor over descriptor 3 alone and knows nothing but what it was sent.
"""

from __future__ import annotations

import _ast
import builtins
import contextlib
import errno
import gc
import linecache
import os
import signal
import socket
import sys
import traceback
import types

from . import calls, examination, program, stub, wire

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from .forking import Copying


CONTROL_FD = 3
Outcome = tuple[str, int, str]
"""Status (`ok`, `error`, `memory`, `disk`), exit status, and one line about what went wrong."""
OK: Outcome = ("ok", 0, "")


class Interpreter:
    """A `__main__` module in which cells of code run one after the other.

    Args:
        module: Where the code's names live.
    """

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
            return self._exit_outcome(error)
        except BaseException as error:
            return self._report(error, name)
        return OK

    def run_file(self, code: str, name: str) -> Outcome:
        """Runs code as a script of that name would run: nothing is echoed."""
        try:
            exec(compile(code, name, "exec", dont_inherit=True), self.namespace)
        except SystemExit as error:
            return self._exit_outcome(error)
        except BaseException as error:
            return self._report(error, name)
        return OK

    def _execute(self, code: str, name: str) -> None:
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        before, last = _split(code, name)
        if before is not None:
            exec(before, self.namespace)
        if last is not None:
            sys.displayhook(eval(last, self.namespace))

    def _exit_outcome(self, error: SystemExit) -> Outcome:
        code = error.code
        if code is None or code == 0:
            return OK
        if isinstance(code, int):
            return "error", code & 0xFF, f"the program exited with status {code & 0xFF}"
        sys.stderr.write(f"{code}\n")
        return "error", 1, "the program exited with a message"

    def _report(self, error: BaseException, name: str) -> Outcome:
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


def _split(code: str, name: str) -> tuple[types.CodeType | None, types.CodeType | None]:
    """Compiles code as the statements before a last expression, and that expression; either may be missing.

    Building a syntax tree to find the last expression would cost more than running most programs. So the last line that
    looks like the beginning of a statement is taken for one: `compile` then says whether what is before it is complete
    and whether it is an expression.
    """
    start = _last_statement(code)
    if start < 0:
        return compile(code, name, "exec", dont_inherit=True), None
    before: types.CodeType | None = None
    is_whole = True
    try:
        before = compile(code[:start], name, "exec", dont_inherit=True) if start else None
    except SyntaxError:
        is_whole = False  # that line goes on from an earlier one
    if not is_whole:
        return _split_tree(code, name)
    lines = "\n" * code.count("\n", 0, start)
    with contextlib.suppress(SyntaxError):
        return before, compile(lines + code[start:], name, "eval", dont_inherit=True)
    if ";" in code[start:]:  # an expression may be the last of several statements of that line
        return _split_tree(code, name)
    return compile(code, name, "exec", dont_inherit=True), None  # no expression, or the error's true place


def _split_tree(code: str, name: str) -> tuple[types.CodeType | None, types.CodeType | None]:
    tree: Any = compile(code, name, "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
    if not tree.body or type(tree.body[-1]) is not _ast.Expr:
        return compile(tree, name, "exec", dont_inherit=True), None
    last = _ast.Expression(tree.body.pop().value)
    return compile(tree, name, "exec", dont_inherit=True), compile(last, name, "eval", dont_inherit=True)


def _last_statement(code: str) -> int:
    """Where the last line begins that is neither indented nor a comment nor a closing bracket; -1 if by its first word
    it is no expression.
    """
    end = len(code)
    while end > 0:
        start = code.rfind("\n", 0, end) + 1
        if code[start : start + 1] not in _CONTINUES:
            return -1 if code.startswith(_STATEMENTS, start) else start
        end = start - 1
    return -1


_CONTINUES = ("", " ", "\t", "\n", "\r", "#", ")", "]", "}")
_STATEMENTS = (
    "@", "assert ", "async ", "class ", "def ", "del ", "elif ", "else", "except", "finally", "for ", "from ",
    "global ", "if ", "import ", "pass", "raise", "return", "try", "while ", "with ",
)  # fmt: skip


def _run_command(argv: list[str], stdin: bytes) -> Outcome:
    """Runs a command in the workspace with the session's own output."""
    try:
        source = program.stdin_file(stdin)
    except OSError as error:
        return "disk", 1, f"no space for the command's input: {error.strerror}"
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
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)  # what a shell starts with `&` ignores the interrupt
    exit_status = os.waitstatus_to_exitcode(status)
    if exit_status == 0:
        return OK
    if exit_status == -signal.SIGXFSZ or _disk_is_full():
        return "disk", exit_status, "no space left in the workspace"
    how = f"was killed by signal {-exit_status}" if exit_status < 0 else f"exited with status {exit_status}"
    return "error", exit_status, f"{argv[0]} {how}"


def _disk_is_full() -> bool:
    folders = {os.environ["HOME"], os.environ["TMPDIR"]}
    usages = [os.statvfs(path) for path in folders if os.path.isdir(path)]
    return any(usage.f_bfree == 0 or (usage.f_files and usage.f_ffree == 0) for usage in usages)  # some count no files


def _perform(head: dict[str, Any], body: bytes) -> tuple[Outcome, bytes]:
    operation = head["op"]
    if operation == "run":
        return _run_command(head["argv"], body), b""
    if operation == "calls":
        return OK, calls.answer_all(body)
    if operation == "tests":
        return OK, examination.answer(body)
    if operation == "stub":
        stub.answer_stub(body)
    if operation == "ready":
        return OK, b""
    raise ValueError(f"unknown operation {operation!r}")


def serve(interpreter: Interpreter, copying: Copying) -> NoReturn:
    """Executes what the supervisor sends, until it hangs up."""
    gc.enable()
    pid = os.getpid()
    try:
        while True:
            if serve_one(CONTROL_FD, interpreter, pid, copying):
                pid = os.getpid()
    except (EOFError, OSError):
        os._exit(0)


def serve_one(control: int, interpreter: Interpreter, pid: int, copying: Copying | None = None) -> bool:
    """Executes the next request. A copy of the session's process `pid` that the code forked ends after it.

    Returns:
        Whether this process is from now on a copy that the supervisor asked for.

    Raises:
        EOFError: The supervisor has hung up.
    """
    head, body = wire.read_frame(control)
    if copying is not None and head["op"] == "fork":
        return copying.fork(control, head["id"])
    outcome: Outcome = ("error", 1, "interrupted")
    answer = b""
    try:
        try:
            _handle_signal(_SIGINT, signal.default_int_handler)
            if head["op"] == "exec":
                outcome = interpreter.run(body.decode())
            elif head["op"] == "program":
                outcome = program.run(body, interpreter.run_file, interpreter.namespace)
            else:
                outcome, answer = _perform(head, body)
        finally:
            _handle_signal(_SIGINT, _IGNORE)
    except BaseException as error:  # an interrupt that came between two steps, or a value that cannot cross
        outcome = ("error", 1, f"{type(error).__name__}: {error}"[:500])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # the code put something else in their place
        answer = answer or b""
    status, exit_status, message = outcome
    if os.getpid() != pid:
        os._exit(exit_status)
    wire.write_all(control, wire.pack({"id": head["id"], "s": status, "x": exit_status, "m": message}, answer))
    return False


_SIGINT, _IGNORE = int(signal.SIGINT), int(signal.SIG_IGN)
_handle_signal: Callable[[int, Any], Any] = getattr(signal.signal, "__wrapped__", signal.signal)
"""`signal.signal` without the search for enum members."""


def prepare() -> Interpreter:
    """Gives what a session begins with, and runs every path on harmless code first.

    Clones inherit code that is specialised and caches that are warm.
    """
    interpreter = Interpreter(types.ModuleType("__main__"))
    question = calls.request(["def f(x):\n    return [x]\n"], "f", [[1], [[1, 2]], [{"a": (1, 2.5)}], [[]]])
    requests = [("exec", code.encode()) for code in _REHEARSAL] + [("calls", question)]
    inside, outside = socket.socketpair()
    with inside, outside:
        for _ in range(_REHEARSALS):
            for operation, body in requests:
                outside.sendall(wire.pack({"op": operation, "id": 1}, body))
                serve_one(inside.fileno(), interpreter, os.getpid())
                outside.recv(1 << 16)
    linecache.cache.clear()
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.modules.pop("solution", None)
    return Interpreter(module)


_REHEARSALS = 20
_REHEARSAL = (
    "def f(x):\n    y = sorted(v for v in x if v > 2)\n    return max(y), [v * 2 for v in y]\nprint(f([1, 2, 3]))\n",
    "import math\ns = 0\nfor i in range(3):\n    s += i\nassert s == 3, 'no'\nf'{s:d}'",
    "class A:\n    def __init__(self):\n        self.x = {}\nA().x['k']\n",
    "x = (",
)

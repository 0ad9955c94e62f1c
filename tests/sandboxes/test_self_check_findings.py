"""The contract kit finds what is wrong: sandboxes that keep the contract but for one thing."""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from palaestra.core.errors import SandboxError
from palaestra.sandboxes import ExecResult, ExecStatus, Limits, Sandbox, open_sandbox, self_check
from palaestra.sandboxes.contract.bench import Check
from palaestra.sandboxes.contract.catalogue import CHECKS

FORKS = [check for check in CHECKS if check.needs == "fork"]
_SEED = "import random\nrandom.seed({0})"
_SEED_NUMPY = "try:\n    import numpy\n    numpy.random.seed({0})\nexcept ImportError:\n    pass"


class Honest:
    """Passes everything on to a real sandbox, and copies it by doing again in a fresh one what was done before."""

    seed = _SEED

    def __init__(self, limits: Limits | None) -> None:
        self.limits = limits
        self.inner: Sandbox = open_sandbox(limits=limits)
        self._begin()

    def _begin(self) -> None:
        self.past: list[Callable[[Sandbox], Any]] = []
        code = self.seed.format(int.from_bytes(os.urandom(4)))
        self._do(lambda sandbox: sandbox.exec(code))

    def _do(self, call: Callable[[Sandbox], Any]) -> Any:
        self.past.append(call)
        return call(self.inner)

    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        return self._do(lambda sandbox: sandbox.exec(code, timeout_s))

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        return self._do(lambda sandbox: sandbox.run(argv, stdin, timeout_s))

    def write_file(self, path: str, data: bytes) -> None:
        self._do(lambda sandbox: sandbox.write_file(path, data))

    def read_file(self, path: str) -> bytes:
        return self.inner.read_file(path)

    def fork(self, n: int) -> list["Honest"]:
        if not self.alive:
            raise SandboxError("there is nothing to copy")
        return [self._copy() for _ in range(n)]

    def _copy(self) -> "Honest":
        copy = type(self)(self.limits)
        copy.inner.reset()
        copy.past = []
        for call in self.past:
            copy._do(call)
        return copy

    def reset(self) -> None:
        self.inner.reset()
        self._begin()

    def close(self) -> None:
        self.inner.close()

    @property
    def alive(self) -> bool:
        return self.inner.alive

    def __enter__(self) -> "Honest":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HonestWithNumpy(Honest):
    seed = f"{_SEED}\n{_SEED_NUMPY}"


class Changing(Honest):
    """Changes what an execution gave."""

    change: Callable[[ExecResult], ExecResult]

    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        return type(self).change(super().exec(code, timeout_s))

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        return type(self).change(super().run(argv, stdin, timeout_s))


def changing(change: Callable[[ExecResult], ExecResult]) -> type[Honest]:
    return type("Changed", (Changing,), {"change": staticmethod(change)})


class Forgetful(Honest):
    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        self.reset()
        return super().exec(code, timeout_s)


class Silent(Honest):
    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        return super().exec(f"{code}\nNone", timeout_s)


class Impatient(Honest):
    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        return super().exec(code)


class Frail(Honest):
    """Does not survive a time-out."""

    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        result = super().exec(code, timeout_s)
        if result.status is ExecStatus.TIMEOUT:
            self.close()
        return result


class Immortal(Honest):
    alive = True  # type: ignore[assignment]


class Loud(Honest):
    """Raises where a status would do."""

    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        result = super().exec(code, timeout_s)
        if result.status is ExecStatus.DEAD:
            raise SandboxError("it is dead")
        return result


class Unlimited(Honest):
    def __init__(self, limits: Limits | None) -> None:
        super().__init__(None)


class Strict(Honest):
    """Takes text only that can be encoded."""

    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        code.encode()
        return super().exec(code, timeout_s)


class Repeating(Honest):
    said = ""

    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        result = super().exec(code, timeout_s)
        self.said += result.stdout
        return replace(result, stdout=self.said)


class Texts(Honest):
    def read_file(self, path: str) -> bytes:
        return super().read_file(path).replace(b"\r\n", b"\n")


class Appending(Honest):
    def write_file(self, path: str, data: bytes) -> None:
        with contextlib.suppress(SandboxError):
            data = self.read_file(path) + data
        super().write_file(path, data)


class Flat(Honest):
    def write_file(self, path: str, data: bytes) -> None:
        super().write_file(os.path.basename(path), data)


class ByCode(Honest):
    """Has the session's own code write and read files, which follows every path and link."""

    def write_file(self, path: str, data: bytes) -> None:
        if not self.exec(f"with open({path!r}, 'wb') as file:\n    _ = file.write({data!r})").ok:
            raise SandboxError(f"{path}: not written")

    def read_file(self, path: str) -> bytes:
        result = self.exec(f"print(open({path!r}).read(), end='')")
        if not result.ok:
            raise SandboxError(f"{path}: not read")
        return result.stdout.encode()


class Inventive(Honest):
    def read_file(self, path: str) -> bytes:
        try:
            return super().read_file(path)
        except SandboxError:
            return b""


class Shell(Honest):
    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        return super().run(["sh", "-c", " ".join(argv)], stdin, timeout_s)


class Deaf(Honest):
    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        return super().run(argv, b"", timeout_s)


class Splitting(Honest):
    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        return super().run(argv.split() if isinstance(argv, str) else argv or ["true"], stdin, timeout_s)


class Littering(Honest):
    def reset(self) -> None:
        super().reset()
        self.write_file("left", b"")


class Touchy(Honest):
    def close(self) -> None:
        if not self.inner.alive:
            raise SandboxError("it is closed")
        super().close()


class Reopening(Honest):
    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        if not self.alive:
            self.reset()
        return super().exec(code, timeout_s)


class StaysOpen(Honest):
    def __exit__(self, *_: object) -> None:
        pass


class Mortal(Honest):
    """Cannot be revived."""

    def reset(self) -> None:
        if self.alive:
            super().reset()


class Queued(Honest):
    turn = threading.Lock()

    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        with self.turn:
            return super().exec(code, timeout_s)


class Shared(Honest):
    """One session for all."""

    def __init__(self, limits: Limits | None) -> None:
        super().__init__(limits)
        Shared.one = self.inner = getattr(Shared, "one", self.inner)


class Inheriting(Honest):
    def __init__(self, limits: Limits | None) -> None:
        super().__init__(limits)
        self.exec(f"import os\nos.environ.update({dict(os.environ)!r})")


class Itself(Honest):
    def fork(self, n: int) -> list[Honest]:
        return [self] * n


class Blank(Honest):
    def fork(self, n: int) -> list[Honest]:
        return [type(self)(self.limits) for _ in range(n)]


class OneTooFew(Honest):
    def fork(self, n: int) -> list[Honest]:
        return super().fork(n - 1)


class Reseeding(Honest):
    def fork(self, n: int) -> list[Honest]:
        copies = super().fork(n)
        for copy in copies:
            copy.exec("import random\nrandom.seed()")
        return copies


class WithoutFiles(Honest):
    def fork(self, n: int) -> list[Honest]:
        copies = super().fork(n)
        for copy in copies:
            copy.run(["sh", "-c", "rm -rf *"])
        return copies


class Clinging(Honest):
    """Takes its copies with it."""

    def fork(self, n: int) -> list[Honest]:
        self.copies = super().fork(n)
        return self.copies

    def close(self) -> None:
        for copy in getattr(self, "copies", ()):
            copy.close()
        super().close()


class Loose(Honest):
    """Forgets limits in copies."""

    def fork(self, n: int) -> list[Honest]:
        self.limits = None
        return super().fork(n)


class Alone(Honest):
    def fork(self, n: int) -> list[Honest]:
        raise SandboxError(f"fork({n}): not supported here")


@pytest.mark.parametrize("check", FORKS, ids=lambda check: check.name)
def test_copies_that_are_made_in_another_way_keep_the_contract(check: Check) -> None:
    kind = HonestWithNumpy if "random" in check.name else Honest
    report = self_check(kind, only=[check.number], require=["fork"])
    assert report.ok, str(report)


def test_what_is_not_supported_is_skipped_unless_it_is_required() -> None:
    report = self_check(Alone, only=["forks", "keeps imports"])
    assert report.ok
    assert {result.outcome for result in report.results} == {"passed", "skipped"}
    assert "not supported here" in report.results[-1].finding
    assert not self_check(Alone, only=["copies the state"], require=["fork"]).ok


@pytest.mark.parametrize(
    ("broken", "check", "finding"),
    [
        (Forgetful, "keeps variables functions and classes", "name 'x' is not defined"),
        (Silent, "echoes the last expression", "'1 + 1' printed '', not '2\\n'"),
        (changing(lambda r: replace(r, status=ExecStatus.OK)), "calls an exception an error", "the status is 'ok'"),
        (changing(lambda r: replace(r, exit_status=0)), "calls an exception an error", "status of an exception is 0"),
        (changing(lambda r: replace(r, exit_status=0)), "calls a crash killed by its signal", "names no signal"),
        (changing(lambda r: replace(r, exit_status=0)), "gives the exit status of a command", "'exit 4' is 0"),
        (changing(lambda r: replace(r, message=r.stderr)), "says what went wrong on one readable line", "no readable"),
        (changing(lambda r: replace(r, seconds=0.0)), "measures how long it took", "took 0.000 s, it says"),
        (changing(lambda r: replace(r, stdout=r.stdout[-1000:])), "keeps head and tail of long output", "the head of"),
        (
            changing(lambda r: replace(r, stdout=r.stdout + r.stderr)),
            "keeps stdout and stderr apart",
            "stdout is 'out\\nenderr\\n'",
        ),
        (
            changing(lambda r: replace(r, stdout="".join(sorted(r.stdout.splitlines(keepends=True))))),
            "keeps large output whole and in order",
            "characters), not",
        ),
        (changing(lambda r: replace(r, stdout=ascii(r.stdout))), "passes unicode in both directions", "printed"),
        (Impatient, "takes the time out from the call or else from the limits", "the status is 'timeout', not 'ok'"),
        (Frail, "interrupts code that computes too long", "did not survive a time-out"),
        (Immortal, "kills code that ignores the interrupt", "is still alive"),
        (Immortal, "tells whether it is alive", "alive after its process left"),
        (Loud, "runs nothing in a dead session", "SandboxError: it is dead"),
        (Unlimited, "stops a file that is too large", "the status is 'ok', not 'disk_limit'"),
        (Unlimited, "stops too many files", "the status is 'ok', not 'disk_limit'"),
        (Unlimited, "refuses a file that does not fit", "gave None instead of a SandboxError"),
        (Unlimited, "keeps its limits over a reset", "output_kib is not kept over a reset"),
        (Strict, "takes null bytes and lone surrogates", "UnicodeEncodeError"),
        (Repeating, "shows no output twice", "printed 'first\\nsecond\\n'"),
        (Texts, "gives back the bytes that it took", "others came back"),
        (Appending, "replaces a longer file", "gave b'longershort'"),
        (Flat, "makes the directories above a file", "No such file or directory: 'one'"),
        (ByCode, "refuses paths that lead out", "instead of a SandboxError"),
        (ByCode, "reads through no link that leads out", "a link that leads out, gave b'agent"),
        (ByCode, "writes through no link that leads out", "self-check-outside"),
        (Inventive, "names a file that is missing", "reading a missing file gave b''"),
        (Shell, "passes arguments as they are", "the arguments arrived as"),
        (Deaf, "gives a command its input", "of 3 bytes of input, wc -c counted '0\\n'"),
        (Splitting, "refuses what is no command", "run([]) gave the status 'ok'"),
        (Littering, "forgets everything on reset", "printed \"False False ['left'] False\\n\""),
        (Mortal, "is revived by a reset", "the status is 'dead', not 'ok'"),
        (Touchy, "closes twice", "SandboxError: it is closed"),
        (Reopening, "refuses to work once closed", "exec of a closed sandbox gave ExecResult"),
        (StaysOpen, "closes at the end of a with block", "alive after its with block"),
        (Queued, "lets sandboxes run side by side", "four sandboxes that sleep for 0.5 s at once took"),
        (Queued, "lets no blocked sandbox block another", "only when another one's endless loop was over"),
        (Shared, "keeps sandboxes apart", "not 'False False False []\\n'"),
        (Inheriting, "does not see the environment of the host", "a variable of the host was inherited"),
        (Itself, "keeps the state of copies apart", "'x' printed '[0, 0, 1, 2]\\n', not '[0, 0]\\n'"),
        (Blank, "copies the state", "name 'f' is not defined"),
        (WithoutFiles, "copies files and keeps them apart", "No such file or directory"),
        (Reseeding, "copies the random state", "copies draw other random numbers"),
        (OneTooFew, "makes sixteen copies at once", "fork(16) gave 15 copies"),
        (Clinging, "keeps copies when the original goes", "not alive after close() of the original"),
        (Itself, "keeps the others when a copy goes", "SandboxError: the sandbox is closed"),
        (Loose, "keeps limits in copies", "a copy keeps more output than its original"),
    ],
)  # fmt: skip
def test_a_sandbox_that_does_one_thing_wrong_is_found_out(broken: type[Honest], check: str, finding: str) -> None:
    (result,) = self_check(broken, only=[check]).results
    assert not result.passed
    assert finding in result.finding

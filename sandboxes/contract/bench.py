"""What a check works with: sandboxes that are closed after it, and the words in which it says what was not kept."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ...core.errors import SandboxError
from ..base import ExecResult, ExecStatus, Limits, Sandbox

SandboxFactory = Callable[[Limits | None], Sandbox] | Callable[[], Sandbox]


class NoLimits(Exception):
    """The factory takes no limits, which a check needs to set."""


def _takes_an_argument(factory: Callable[..., object]) -> bool:
    try:
        inspect.signature(factory).bind(None)
    except TypeError:
        return False
    except ValueError:  # a callable that does not tell
        return True
    return True


class Bench:
    """Opens the sandboxes of one check.

    Args:
        factory: Gives a fresh sandbox that keeps to the limits it is given, if it takes some.
    """

    def __init__(self, factory: SandboxFactory) -> None:
        self._factory: Callable[..., Sandbox] = factory
        self._takes_limits = _takes_an_argument(factory)
        self._opened: list[Sandbox] = []

    def open(self, limits: Limits | None = None) -> Sandbox:
        """Gives a sandbox of its own, which is closed at the end of the check."""
        if limits is not None and not self._takes_limits:
            raise NoLimits("the factory takes no limits, so this was not checked")
        sandbox = self._factory(limits) if self._takes_limits else self._factory()
        self._opened.append(sandbox)
        return sandbox

    def fork(self, sandbox: Sandbox, n: int) -> Sequence[Sandbox]:
        """Gives `n` copies, which are closed at the end of the check."""
        copies = sandbox.fork(n)
        self._opened += copies
        expect(len(copies) == n, f"fork({n}) gave {len(copies)} copies")
        return copies

    def close(self) -> None:
        """Closes them all, even if one of them refuses; then raises what it raised."""
        errors: list[Exception] = []
        while self._opened:
            try:
                self._opened.pop().close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise of the protocol."""

    number: int
    subject: str
    name: str
    """What a sandbox that keeps the promise does: "keeps imports"."""
    perform: Callable[[Bench], None]
    """Raises if the promise is not kept."""
    needs: str | None
    """The optional capability without which there is nothing to check."""


def expect(kept: bool, problem: str) -> None:
    """Raises AssertionError with the problem, unless the promise was kept."""
    if not kept:
        raise AssertionError(problem)


def expect_status(result: ExecResult, *allowed: ExecStatus) -> ExecResult:
    """Gives the result on, if it has one of these statuses."""
    said = result.message or result.stderr.strip().rpartition("\n")[2] or "it says nothing"
    wanted = " or ".join(f"'{status}'" for status in allowed)
    expect(result.status in allowed, f"the status is '{result.status}', not {wanted}: {said}")
    return result


def printed(sandbox: Sandbox, code: str) -> str:
    """Gives what code printed that must run to its end."""
    return expect_status(sandbox.exec(code), ExecStatus.OK).stdout


def expect_printed(sandbox: Sandbox, code: str, wanted: str) -> None:
    """Runs code that must run to its end and print this."""
    stdout = printed(sandbox, code)
    expect(stdout == wanted, f"{_short(code)} printed {_short(stdout)}, not {_short(wanted)}")


def expect_refused(call: Callable[[], object], what: str) -> SandboxError:
    """Gives the `SandboxError` that the call must raise, with one readable line."""
    try:
        given = call()
    except SandboxError as error:
        expect(is_one_line(str(error)), f"{what} was refused with {_short(str(error))}, which is no readable line")
        return error
    raise AssertionError(f"{what} gave {_short(given)} instead of a SandboxError")


def expect_usable_again(sandbox: Sandbox) -> None:
    """The sandbox must work, after a reset if its session has ended."""
    if not sandbox.alive:
        sandbox.reset()
    expect_printed(sandbox, "6 * 7", "42\n")


def is_one_line(text: str) -> bool:
    """Whether a text can be shown as it is, on one line."""
    return bool(text) and text.isprintable()


def becomes_true(condition: Callable[[], bool], within_s: float = 3.0) -> bool:
    """Waits for a condition; gives whether it came true."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def run_at_once(calls: Sequence[Callable[[], object]]) -> float:
    """Makes the calls in a thread each; gives the seconds until the last one was done, or raises what one raised."""
    started = time.monotonic()
    with ThreadPoolExecutor(len(calls)) as pool:
        for call in [pool.submit(call) for call in calls]:
            call.result()
    return time.monotonic() - started


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"

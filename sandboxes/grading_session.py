"""One session of a grading: its requests, and its answers as plain data that is checked first."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .base import ExecStatus, Limits
from .client import JailClient, Reply
from .code_runner import Answer, TestOutcome
from .jail import calls
from .jail.wire import one_line

_SHORTEST_S = 1e-3
_CANNOT_CROSS = "the tests pass what cannot cross to the solution's session ({}); same_session=True runs them in one"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsReply:
    """What a session answered to calls of its function."""

    status: ExecStatus
    message: str = ""
    load_error: str | None = None
    answers: tuple[Answer, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TestsReply:
    """What a session answered that runs tests."""

    __test__ = False

    status: ExecStatus
    message: str = ""
    load_error: str | None = None
    results: tuple[TestOutcome, ...] = ()
    """Also of a test that was interrupted, as `"interrupted"`."""
    broken: tuple[str, str] | None = None
    total: int = 0
    is_over: bool = False
    flaw: str = ""
    """What is wrong with the tests or their prelude, whatever the solution is."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A solution and the tests that it has to pass; see `CodeRunner.run_tests`."""

    sources: Sequence[str]
    entry_point: str | None
    tests: str
    prelude: str
    stop_at_failure: bool
    same_session: bool
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    """Repeated by whoever answers for the tests. Where they share the solution's process, what the solution writes
    blindly in their name is so told from an answer; a solution that searches its memory finds it."""


class Budget:
    """The time that is left for all tests together, and for the next one.

    Args:
        limits: Their `timeout_s` is for all.
        test_timeout_s: For each; None where they share one execution.
    """

    def __init__(self, limits: Limits, test_timeout_s: float | None) -> None:
        self._total_s = self.left_s = limits.timeout_s
        self._test_s = test_timeout_s

    def next_s(self) -> float:
        """How long the next test may take."""
        return self.left_s if self._test_s is None else min(self._test_s, self.left_s)

    @property
    def spent_s(self) -> float:
        """What was taken so far."""
        return self._total_s - self.left_s

    @property
    def is_spent(self) -> bool:
        """Whether no time is left."""
        return self.left_s <= 0

    @property
    def message(self) -> str:
        """One line for when it is spent."""
        return f"timed out after {self._total_s:g} s"

    def explain(self, message: str) -> str:
        """Gives a session's message, with the whole time where it had what was left of it."""
        return self.message if self.is_spent and message.startswith("timed out") else message


class GradingSession:
    """A fresh session, which begins with its first request.

    Args:
        client: The jail that it is in.
        limits: What it may use.
    """

    def __init__(self, client: JailClient, limits: Limits) -> None:
        self._client = client
        self._limits = client.limits_number(limits)
        self._number = client.new_session()

    def ask(self, head: dict[str, Any], body: bytes, timeout_s: float | None) -> Reply:
        """Sends a request and waits for its answer."""
        where = {"s": self._number, "l": self._limits, "timeout_s": timeout_s}
        return self._client.submit({**head, **where}, body).wait()

    def close(self) -> None:
        """Ends the session; needless where it ended with its only request."""
        self._client.tell({"op": "close", "s": self._number})

    def call(
        self,
        sources: Sequence[str],
        entry_point: str | None,
        arguments: Sequence[Sequence[Any]],
        *,
        stop: bool = False,
        timeout_s: float | None = None,
        keep: bool = False,
    ) -> CallsReply:
        """Loads the sources, if there are any, and calls their function with each argument list.

        Args:
            sources: Source texts; none go on with those that were loaded before.
            entry_point: The function's name; None only loads.
            arguments: Argument lists.
            stop: Stop at the first exception.
            timeout_s: Wall-clock limit; None means the limits' own.
            keep: Whether more requests follow; otherwise the session ends with this one.
        """
        question = calls.request(sources, entry_point, arguments, stop)
        return _read_calls(self.ask({"op": "calls", "keep": keep}, question, timeout_s), len(arguments))

    def begin_tests(self, examined: Examined, *, skip: int, timeout_s: float) -> TestsReply:
        """Loads the solution and prepares its tests, of which the first `skip` are decided; is over if that fails."""
        seconds = 0.0
        if examined.same_session:
            loaded = self.call(examined.sources, examined.entry_point, (), timeout_s=timeout_s, keep=True)
            seconds = loaded.seconds
            if loaded.status is not ExecStatus.OK or loaded.load_error is not None:
                return TestsReply(
                    status=loaded.status,
                    message=loaded.message,
                    load_error=loaded.load_error,
                    is_over=True,
                    seconds=seconds,
                )
        begun = self.look_through_tests(examined, skip=skip, timeout_s=max(timeout_s - seconds, _SHORTEST_S))
        seconds += begun.seconds
        if begun.status is not ExecStatus.OK or begun.flaw:
            return replace(begun, is_over=True, seconds=seconds)
        ready = self.run_tests(examined, most=0, timeout_s=max(timeout_s - seconds, _SHORTEST_S))
        is_over = ready.is_over or ready.status is not ExecStatus.OK
        return replace(ready, total=begun.total, is_over=is_over, seconds=seconds + ready.seconds)

    def look_through_tests(self, examined: Examined, *, skip: int = 0, timeout_s: float) -> TestsReply:
        """Runs the prelude and counts the tests, while the solution is being loaded."""
        question = {
            "tests": examined.tests,
            "prelude": examined.prelude,
            "entry_point": examined.entry_point,
            "skip": skip,
            "stop": examined.stop_at_failure,
            "same_session": examined.same_session,
            "token": examined.token,
        }
        solution = b"" if examined.same_session else json.dumps({"sources": list(examined.sources)}).encode()
        head = {"op": "tests", "keep": True, "solution_size": len(solution)}
        reply = _read_tests(self.ask(head, solution + json.dumps(question).encode(), timeout_s), examined)
        if reply.status is ExecStatus.ERROR and not examined.same_session:  # in that session is nothing but tests
            return replace(reply, flaw=f"the tests or their prelude do not run: {reply.message}")
        return reply

    def run_tests(self, examined: Examined, *, most: int | None, timeout_s: float) -> TestsReply:
        """Runs the next tests, all for `most` None."""
        return _read_tests(
            self.ask({"op": "tests", "keep": True}, json.dumps({"most": most}).encode(), timeout_s), examined
        )


def how_it_ended(reply: Reply) -> tuple[ExecStatus, str]:
    """Gives status and message, without what became of the session, which nobody asks about."""
    status, message = ExecStatus(reply.head["status"]), str(reply.head["message"])
    return status, message if status is ExecStatus.ERROR else message.partition("; ")[0]


def _read_calls(reply: Reply, count: int) -> CallsReply:
    status, message = how_it_ended(reply)
    load_error: str | None = None
    answers: list[Answer] = []
    if status is ExecStatus.OK:
        try:
            load_error, given = calls.read_answers(reply.body)
        except ValueError as error:
            given, status, message = [], ExecStatus.ERROR, str(error)
        for value, error, seconds in given[:count]:
            how = ExecStatus.OK if error is None else ExecStatus.ERROR
            answers.append(Answer(value=value, error=error, status=how, seconds=seconds))
    return CallsReply(
        status=status,
        message=message,
        load_error=load_error,
        answers=tuple(answers),
        seconds=reply.head["seconds"],
    )


def _read_tests(reply: Reply, examined: Examined) -> TestsReply:
    """Reads an answer for the tests. With an answer that is none there is no verdict, whatever the status.

    A session that also holds the solution neither blames the tests nor says how many there are.
    """
    status, message = how_it_ended(reply)
    seconds = reply.head["seconds"]
    is_trusted = not examined.same_session
    try:
        said = json.loads(reply.body)
        if said["token"] != examined.token:
            raise ValueError("somebody else's answer")
        return TestsReply(
            status=status,
            message=message,
            load_error=None if said["load_error"] is None else one_line(str(said["load_error"])),
            results=tuple(_outcome(item) for item in said["results"]),
            broken=None if said["broken"] is None else _two_lines(*said["broken"]),
            total=int(said["total"]) if is_trusted else 0,
            is_over=bool(said["is_over"]),
            flaw=_CANNOT_CROSS.format(one_line(str(said["refused"]))) if said["refused"] and is_trusted else "",
            seconds=seconds,
        )
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        if status is ExecStatus.OK:
            status, message = ExecStatus.KILLED, "the tests' session gave no verdict"
        return TestsReply(status=status, message=message, seconds=seconds)


def _outcome(item: Any) -> TestOutcome:
    status = str(item["status"])
    if status not in ("passed", "failed", "error", "killed", "interrupted"):
        raise ValueError(f"unknown status {status!r}")
    seconds = min(max(0.0, float(item["seconds"])), calls.MAX_SECONDS)
    return TestOutcome(
        test=one_line(str(item["test"])), status=status, error=one_line(str(item["error"])), seconds=seconds
    )


def _two_lines(first: object, second: object) -> tuple[str, str]:
    return one_line(str(first)), one_line(str(second))

"""Tests as source text, which run in a session of their own: the host's side.

The jail's supervisor keeps the clocks, outside of untrusted processes. Where each test is an execution of its own, what
ends one (time, memory, an exit of the solution) decides that test alone: the next ones go on in fresh sessions, where
the solution is loaded anew and the statements between the tests run again.
"""

from __future__ import annotations

from dataclasses import replace

from .base import ExecStatus, Limits
from .client import JailClient
from .code_runner import TestOutcome, TestsOutcome
from .grading_session import Budget, Examined, GradingSession, TestsReply

_NO_TEST = "the tests' source holds no test: a statement with an assert, a function test_..., or check(candidate)"


class Examiner:
    """Runs the tests of one grading.

    Args:
        client: The jail.
        limits: What each session may use; `timeout_s` is for all tests together.
        examined: The solution and its tests.
        test_timeout_s: Makes each test an execution of its own.
    """

    def __init__(self, client: JailClient, limits: Limits, examined: Examined, test_timeout_s: float | None) -> None:
        self._client, self._limits, self._examined = client, limits, examined
        self._budget = Budget(limits, test_timeout_s)
        self._most = None if test_timeout_s is None else 1
        self._results: list[TestOutcome] = []
        self._total = 0
        self._session: GradingSession | None = None

    def run(self) -> TestsOutcome:
        """Gives what `CodeRunner.run_tests` gives."""
        try:
            ended = self._look_through() if self._examined.same_session else None
            while ended is None:
                ended = self._load() if self._session is None else self._run_next(self._session)
                if ended is None and self._budget.is_spent:
                    ended = TestsReply(status=ExecStatus.TIMEOUT, message=self._budget.message)
        finally:
            self._leave()
        ran = ended.status is ExecStatus.OK and ended.load_error is None and ended.broken is None
        total = max(self._total, len(self._results))
        return TestsOutcome(
            status=ended.status,
            message=ended.message,
            load_error=ended.load_error,
            total=total,
            results=tuple(self._results),
            broken=ended.broken,
            flaw=ended.flaw or (_NO_TEST if ran and not total else ""),
            seconds=self._budget.spent_s,
        )

    def _look_through(self) -> TestsReply | None:
        """Has the tests looked at where no solution is; gives a reply if that ends them."""
        session = GradingSession(self._client, self._limits)
        nobody = replace(self._examined, sources=(), same_session=False)
        try:
            reply = session.look_through_tests(nobody, timeout_s=self._limits.timeout_s)
        finally:
            session.close()
        self._total = reply.total
        if reply.status is ExecStatus.OK and not reply.total:
            return replace(reply, flaw=_NO_TEST)
        return None if reply.status is ExecStatus.OK else reply

    def _load(self) -> TestsReply | None:
        """Begins anew; gives a reply if that ends the tests."""
        self._session = GradingSession(self._client, self._limits)
        skip = len(self._results)
        reply = self._session.begin_tests(self._examined, skip=skip, timeout_s=self._budget.left_s)
        reply = self._take(reply)
        return reply if reply.is_over else None

    def _run_next(self, session: GradingSession) -> TestsReply | None:
        """Runs the next test, or all; gives a reply if that ends the tests."""
        reply = session.run_tests(self._examined, most=self._most, timeout_s=self._budget.next_s())
        reply = self._take(reply)
        if reply.status is ExecStatus.SANDBOX_DIED or reply.flaw:
            return reply
        if reply.status is ExecStatus.OK and not (reply.results or reply.is_over):  # it would never end
            reply = replace(reply, status=ExecStatus.KILLED, message="the tests' session gave no verdict")
        self._results += self._decided(reply)
        is_lost = reply.status is not ExecStatus.OK
        if self._most is None:
            return reply if is_lost or reply.is_over else None
        if is_lost and reply.broken is not None:
            return replace(reply, status=ExecStatus.OK, broken=(reply.broken[0], reply.message), message="")
        if reply.is_over and not is_lost:
            return reply
        if is_lost or any(result.status == "killed" for result in reply.results):
            if self._examined.stop_at_failure or len(self._results) >= self._total:
                return TestsReply(status=ExecStatus.OK)
            self._leave()
        return None

    def _decided(self, reply: TestsReply) -> list[TestOutcome]:
        """What an answer decides, the test that was interrupted included."""
        finished = [result for result in reply.results if result.status != "interrupted"]
        current = [result for result in reply.results if result.status == "interrupted"]
        if reply.status is ExecStatus.OK:
            return finished + [replace(result, status="error") for result in current]
        if self._most is not None and reply.broken is None:
            current, finished = list(reply.results) or [_UNKNOWN], []
        cause = {"status": reply.status.value, "error": reply.message, "seconds": reply.seconds}
        return finished + [replace(result, **cause) for result in current]

    def _take(self, reply: TestsReply) -> TestsReply:
        self._total = max(self._total, reply.total)
        self._budget.left_s -= reply.seconds
        return replace(reply, message=self._budget.explain(reply.message))

    def _leave(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


_UNKNOWN = TestOutcome(test="", status="", error="", seconds=0.0)
"""A test whose session ended without saying what it was."""

"""Untrusted code that is graded, each time in a fresh session of a jail: the host's side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .base import Limits, SandboxConfig
from .code_runner import FunctionAnswers, ProgramOutcome, TestsOutcome
from .examiner import Examiner
from .grading_session import Examined, GradingSession, how_it_ended
from .jail import program
from .one_by_one import call_one_by_one
from .pool import jail

_KIB = 1 << 10


class JailedRunner:
    """Runs untrusted code, each time in a fresh session; see `CodeRunner`.

    Args:
        config: Which jail the sessions are in.
        limits: What each may use.

    Raises:
        SandboxUnavailable: This machine cannot isolate code that way.
    """

    def __init__(self, config: SandboxConfig, limits: Limits | None = None) -> None:
        self._client = jail(config)
        self._limits = limits or Limits()

    def call_function(
        self,
        sources: Sequence[str],
        entry_point: str | None,
        calls: Sequence[Sequence[Any]],
        *,
        stop_at_error: bool = False,
        call_timeout_s: float | None = None,
    ) -> FunctionAnswers:
        """See `CodeRunner.call_function`; without a limit of their own, all calls cross in one round trip."""
        if call_timeout_s is not None:
            return call_one_by_one(
                self._client, self._limits, sources, entry_point, calls, stop_at_error, call_timeout_s
            )
        reply = GradingSession(self._client, self._limits).call(sources, entry_point, calls, stop=stop_at_error)
        return FunctionAnswers(
            status=reply.status,
            message=reply.message,
            load_error=reply.load_error,
            answers=reply.answers,
            seconds=reply.seconds,
        )

    def run_tests(
        self,
        sources: Sequence[str],
        entry_point: str | None,
        tests: str,
        *,
        prelude: str = "",
        stop_at_failure: bool = False,
        test_timeout_s: float | None = None,
        same_session: bool = False,
    ) -> TestsOutcome:
        """See `CodeRunner.run_tests`: in a session of their own, against a stub of the sources' function."""
        examined = Examined(
            sources=sources,
            entry_point=entry_point,
            tests=tests,
            prelude=prelude,
            stop_at_failure=stop_at_failure,
            same_session=same_session,
        )
        return Examiner(self._client, self._limits, examined, test_timeout_s).run()

    def run_program(
        self, sources: Sequence[str], stdin: str, *, keep_bytes: int = 0, timeout_s: float | None = None
    ) -> ProgramOutcome:
        """See `CodeRunner.run_program`."""
        limits = _keeping(self._limits, keep_bytes)
        session = GradingSession(self._client, limits)
        reply = session.ask({"op": "program"}, program.request(list(sources), stdin), timeout_s)
        printed = int(reply.head.get("o", 0))
        status, message = how_it_ended(reply)
        return ProgramOutcome(
            status=status,
            message=message,
            exit_status=reply.head["exit"],
            stdout=reply.body[:printed],
            is_cut=printed > limits.output_kib * _KIB,  # what is kept of longer output, and a line about the rest
            seconds=reply.head["seconds"],
        )


def _keeping(limits: Limits, size: int) -> Limits:
    """Limits under which so much output is kept; in steps, as a jail remembers all limits that it ever saw."""
    output_kib = limits.output_kib
    while output_kib * _KIB < size:
        output_kib *= 2
    return limits if output_kib == limits.output_kib else replace(limits, output_kib=output_kib)

"""Untrusted functions, each run in a fresh session of a jail: the host's side of grading."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .base import Answer, ExecStatus, FunctionAnswers, Limits, SandboxConfig, TestsOutcome
from .client import Reply
from .jail.calls import read_answers, request
from .jail.wire import one_line
from .pool import jail


class JailedRunner:
    """Runs untrusted functions, each time in a fresh session; see `CodeRunner`.

    Args:
        config: Which jail the sessions are in.
        limits: What each may use.

    Raises:
        SandboxUnavailable: This machine cannot isolate code that way.
    """

    def __init__(self, config: SandboxConfig, limits: Limits | None = None) -> None:
        self._client = jail(config)
        self._limits = self._client.limits_number(limits or Limits())

    def call_function(
        self, sources: Sequence[str], entry_point: str, calls: Sequence[Sequence[Any]], stop_at_error: bool = False
    ) -> FunctionAnswers:
        """Executes the sources one after the other in one module and calls its function with each argument list."""
        reply = self._ask({"op": "calls"}, request(sources, entry_point, calls, stop_at_error))
        status, message = ExecStatus(reply.head["status"]), str(reply.head["message"])
        load_error: str | None = None
        answers: tuple[Answer, ...] = ()
        if status is ExecStatus.OK:
            try:
                load_error, given = read_answers(reply.body)
                answers = tuple(Answer(value=value, error=error) for value, error in given[: len(calls)])
            except ValueError as error:
                status, message = ExecStatus.ERROR, str(error)
        return FunctionAnswers(
            status=status, message=message, load_error=load_error, answers=answers, seconds=reply.head["seconds"]
        )

    def run_tests(
        self, sources: Sequence[str], entry_point: str, tests: str, prelude: str = "", stop_at_failure: bool = False
    ) -> TestsOutcome:
        """Runs tests in a session of their own, against a stub of the sources' function."""
        solution = json.dumps({"sources": list(sources)}).encode()
        question = {"prelude": prelude, "tests": tests, "entry_point": entry_point, "stop": stop_at_failure}
        head = {"op": "tests", "solution_size": len(solution)}
        reply = self._ask(head, solution + json.dumps(question).encode())
        status = ExecStatus(reply.head["status"])
        said: dict[str, Any] = {"load_error": None, "total": 0, "failures": []}
        if status is ExecStatus.OK:
            said = json.loads(reply.body)  # the tests' session runs trusted code only
        failures = tuple((int(item["index"]), str(item["test"]), one_line(item["error"])) for item in said["failures"])
        return TestsOutcome(
            status=status,
            message=str(reply.head["message"]),
            load_error=said["load_error"] and one_line(said["load_error"]),
            total=said["total"],
            failures=failures,
            seconds=reply.head["seconds"],
        )

    def _ask(self, head: dict[str, Any], body: bytes) -> Reply:
        return self._client.submit({**head, "s": self._client.new_session(), "l": self._limits}, body).wait()

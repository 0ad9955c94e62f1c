"""Calls of an untrusted function of which each is an execution of its own.

The jail's supervisor keeps the clock of each, outside of untrusted processes. What ends one (time, memory, an exit)
ends that call alone: the next ones go on in a fresh session, where the solution is loaded anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .base import ExecStatus, Limits
from .client import JailClient
from .code_runner import Answer, FunctionAnswers
from .grading_session import Budget, CallsReply, GradingSession


def call_one_by_one(
    client: JailClient,
    limits: Limits,
    sources: Sequence[str],
    entry_point: str | None,
    calls: Sequence[Sequence[Any]],
    stop_at_error: bool,
    call_timeout_s: float,
) -> FunctionAnswers:
    """See `CodeRunner.call_function`."""
    budget = Budget(limits, call_timeout_s)
    answers: list[Answer] = []
    status, message, load_error = ExecStatus.OK, "", None
    session: GradingSession | None = None
    try:
        while len(answers) < len(calls):
            if budget.is_spent:
                status, message = ExecStatus.TIMEOUT, budget.message
                break
            if session is None:
                session = GradingSession(client, limits)
                loaded = session.call(sources, entry_point, (), timeout_s=budget.left_s, keep=True)
                budget.left_s -= loaded.seconds
                if loaded.status is not ExecStatus.OK or loaded.load_error is not None:
                    status, load_error = loaded.status, loaded.load_error
                    message = budget.explain(loaded.message)
                    break
                if budget.is_spent:
                    continue
            reply = session.call((), entry_point, [calls[len(answers)]], timeout_s=budget.next_s(), keep=True)
            budget.left_s -= reply.seconds
            if reply.status is ExecStatus.SANDBOX_DIED:
                status, message = reply.status, reply.message
                break
            answers.append(_answer(reply))
            if reply.status is not ExecStatus.OK:
                session.close()
                session = None
            if stop_at_error and answers[-1].error is not None:
                break
    finally:
        if session is not None:
            session.close()
    return FunctionAnswers(
        status=status, message=message, load_error=load_error, answers=tuple(answers), seconds=budget.spent_s
    )


def _answer(reply: CallsReply) -> Answer:
    if reply.status is ExecStatus.OK and reply.answers:
        return replace(reply.answers[0], seconds=reply.seconds)
    error = reply.load_error or reply.message or "no answer"
    status = ExecStatus.ERROR if reply.status is ExecStatus.OK else reply.status
    return Answer(error=error, status=status, seconds=reply.seconds)

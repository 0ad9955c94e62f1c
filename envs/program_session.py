"""An agent's session over one episode: which programs make up its state, and which of them have really run.

The first program of a fresh session may be answered from memory; it then runs only if another one follows, so that the
session's state is always what it would have been. After a failure of infrastructure everything runs again in a fresh
session.
"""

from __future__ import annotations

from collections.abc import Hashable

from ..core.tasks import Task
from .input_answers import case_of, read_input, wants_input
from .program_memory import ProgramMemory
from .program_runner import Runner, RunReport, TestShare, Verdict


class ProgramSession:
    """Runs and grades programs of one environment.

    Args:
        runner: What executes programs.
        runs: Memory of first runs, shared by all environments of a process; None = every program runs.
        verdicts: Memory of verdicts, or None.
        shares: Memory of shares of visible tests, or None.
        source: Where fixed tasks come from; part of what makes a task the same task.
    """

    def __init__(
        self,
        runner: Runner,
        runs: ProgramMemory[RunReport] | None = None,
        verdicts: ProgramMemory[Verdict] | None = None,
        shares: ProgramMemory[TestShare] | None = None,
        source: Hashable = None,
    ) -> None:
        self._runner, self._source = runner, source
        reusable = runner.scope is not None
        self._runs, self._verdicts, self._shares = (runs, verdicts, shares) if reusable else (None, None, None)
        self._scope = (runner.scope, source)
        self._state: list[str] = []
        """Programs that made the session's state, in order."""
        self._prelude: list[str] = []
        """What a fresh session is told before the first program."""
        self._unsent: list[str] = []
        """Programs, the prelude among them, that the runner has not seen yet."""

    def start(self, prelude: str = "") -> None:
        """Begins an episode; touches no sandbox until a program runs.

        Args:
            prelude: The task's own source, which the agent's programs may use.
        """
        self._runner.reset()
        self._prelude = [prelude] if prelude else []
        self._state, self._unsent = [], list(self._prelude)

    def recover(self) -> None:
        """After a failure of infrastructure: the next program finds a fresh session in the state that was lost."""
        self._runner.reset()
        self._unsent = [*self._prelude, *self._state]

    def fork(self, n: int) -> list[ProgramSession]:
        """Gives `n` independent copies; raises `SandboxDied` like the runner."""
        memories = (self._runs, self._verdicts, self._shares)
        copies = [ProgramSession(runner, *memories, self._source) for runner in self._runner.fork(n)]
        for copy in copies:
            copy._prelude, copy._state, copy._unsent = self._prelude, list(self._state), list(self._unsent)
        return copies

    def run(self, task: Task, program: str) -> RunReport:
        """Runs a program and the visible tests; raises `SandboxDied` like the runner, and can then be called again."""
        key = (self._scope, task.task_id, program)
        known = self._runs.get(key) if self._runs is not None and not self._state else None
        if known is not None:
            report = known
            self._unsent = [*self._prelude, program]
        else:
            self._catch_up(task)
            report = self._send(task, program)
            if self._runs is not None and not self._state and report.repeatable:
                self._runs.put(key, report)
        self._state.append(program)
        if report.session_lost:
            self._state, self._unsent = [], list(self._prelude)
        return report

    def grade(self, task: Task, program: str) -> Verdict:
        """Grades a program with the hidden tests; the agent's session has no part in it."""
        key = (self._scope, task.task_id, program)
        verdict = self._verdicts.get(key) if self._verdicts is not None else None
        if verdict is None:
            verdict = self._judge(task, program)
            if self._verdicts is not None and verdict.repeatable:
                self._verdicts.put(key, verdict)
        return verdict

    def share_passed(self, task: Task, program: str) -> TestShare:
        """Grades a program with the visible tests; the agent's session has no part in it. Raises `SandboxDied`."""
        public = task.public
        if wants_input(task) or not public["tests"]:
            return TestShare(share=0.0)
        key = (self._scope, task.task_id, program)
        known = self._shares.get(key) if self._shares is not None else None
        if known is None:
            known = self._runner.share_passed(
                program, public["entry_point"], public["tests"], public.get("prelude", "")
            )
            if self._shares is not None and known.repeatable:
                self._shares.put(key, known)
        return known

    def close(self) -> None:
        """Ends the runner's session; may be called twice."""
        self._runner.close()

    def _catch_up(self, task: Task) -> None:
        for earlier in self._unsent:
            self._send(task, earlier)
        self._unsent = []

    def _judge(self, task: Task, program: str) -> Verdict:
        public, tests, prelude = task.public, task.secret.get("tests", []), task.public.get("prelude", "")
        value = read_input(program) if wants_input(task) else None
        if value is not None:
            program, tests, prelude = prelude, [case_of(public, value)], ""
        return self._runner.grade(program, public["entry_point"], tests, prelude)

    def _send(self, task: Task, program: str) -> RunReport:
        public, tests = task.public, task.public["tests"]
        value = read_input(program) if wants_input(task) else None
        if value is not None:  # the task's own function again, whatever the agent made of its name
            program, tests = public["prelude"], [case_of(public, value)]
        return self._runner.run(program, public["entry_point"], tests)

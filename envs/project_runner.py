"""Runs a repository's visible tests, grades it with hidden ones, and runs shell commands in it.

`RepositoryRunner` does so in sandboxes: tests in a fresh session each time, hidden ones too, commands in the episode's
own session. `InProcessRepositoryRunner` runs them in this very process: it is for demonstrations alone, whose code our
own templates wrote, and no keyword reaches it.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from types import CodeType
from typing import Any, Protocol

from ..core.errors import SandboxDied
from ..rewards.execution import grade_code
from ..sandboxes.base import ExecStatus, Limits, SandboxConfig
from ..sandboxes.jail.values import same
from ..sandboxes.opening import open_runner
from .first_start import FirstStart
from .program_runner import REPEATABLE, Verdict, is_repeatable
from .project_testing import HARNESS, TestsReport, installed, paths_of_tests, python_files, read_report
from .project_workspace import CommandReport, Workspace

Files = Mapping[str, str]
Case = Mapping[str, Any]
"""`{"args": [module, function, arguments], "expected": value}`."""


class ProjectRunner(Protocol):
    """What an environment needs to run a repository of one episode."""

    @property
    def scope(self) -> Hashable | None:
        """Equal for runners that give equal reports; None when reports must not be reused."""
        ...

    def test(self, files: Files) -> TestsReport:
        """Runs the test files; raises `SandboxDied` when infrastructure failed."""
        ...

    def grade(self, files: Files, cases: Sequence[Case]) -> Verdict:
        """Gives the verdict of hidden tests; raises `SandboxDied` when infrastructure failed."""
        ...

    def command(self, command: str, files: Files) -> CommandReport:
        """Runs a shell command in the repository; raises `SandboxDied` when infrastructure failed."""
        ...

    def fork(self, n: int) -> Sequence[ProjectRunner]:
        """Gives `n` runners with copies of the session that commands run in."""
        ...

    def reset(self) -> None:
        """Forgets the session that commands run in."""
        ...

    def close(self) -> None:
        """Ends that session; may be called twice."""
        ...


class RepositoryRunner:
    """Repositories in a sandbox.

    Args:
        config: Which sandbox.
        limits: Of each run of the tests, and of each command. A grading may use `timeout_s` of CPU time (and twice that
            of wall-clock time), so that a slow machine changes no verdict.
    """

    def __init__(self, config: SandboxConfig, limits: Limits) -> None:
        self._config, self._limits = config, limits
        self._grading_limits = replace(limits, cpu_s=limits.cpu_s or limits.timeout_s, timeout_s=2 * limits.timeout_s)
        self._workspace = Workspace(config, limits)
        self._start = FirstStart()

    @property
    def scope(self) -> Hashable | None:
        """See `ProjectRunner.scope`."""
        return self._config, self._limits

    def test(self, files: Files) -> TestsReport:
        """See `ProjectRunner.test`; one round trip."""
        arguments = [python_files(files), paths_of_tests(files)]
        with self._start.guarded():
            given = open_runner(self._config, self._limits).call_function([HARNESS], "run_tests", [arguments])
        if given.status is ExecStatus.SANDBOX_DIED:
            raise SandboxDied(given.message or "the sandbox died")
        answer = given.answers[0] if given.answers else None
        if given.status is ExecStatus.OK and answer is not None and answer.error is None:
            return read_report(answer.value)
        said = given.message or given.load_error or (answer.error if answer and answer.error else "")
        stopped = f"error: {said or 'the tests did not report'}"
        return TestsReport(stopped=stopped[:200], repeatable=given.status in REPEATABLE)

    def grade(self, files: Files, cases: Sequence[Case]) -> Verdict:
        """See `ProjectRunner.grade`."""
        with self._start.guarded():
            report = grade_code(
                installed(files),
                cases,
                entry_point="call",
                limits=self._grading_limits,
                sandbox=self._config,
                stop_at_first_failure=True,
            )
        return Verdict(passed=report.passed, repeatable=is_repeatable(report))

    def command(self, command: str, files: Files) -> CommandReport:
        """See `ProjectRunner.command`."""
        with self._start.guarded():
            return self._workspace.run(command, files)

    def fork(self, n: int) -> list[RepositoryRunner]:
        """See `ProjectRunner.fork`; a session that was not opened yet is opened by each copy for itself."""
        copies = [RepositoryRunner(self._config, self._limits) for _ in range(n)]
        with self._start.guarded():
            workspaces = self._workspace.fork(n)
        for copy, workspace in zip(copies, workspaces, strict=True):
            copy._workspace, copy._start = workspace, FirstStart(has_worked=self._start.has_worked)
        return copies

    def reset(self) -> None:
        """See `ProjectRunner.reset`."""
        self.close()

    def close(self) -> None:
        """See `ProjectRunner.close`."""
        self._workspace.close()


class InProcessRepositoryRunner:
    """Runs repositories that our own templates wrote in this process; never give it a model's."""

    scope: Hashable | None = None

    def __init__(self) -> None:
        self._names: dict[str, Any] = {}
        exec(HARNESS, self._names)
        self._compile = self._names["compiled"]
        self._names["compiled"] = self._compiled

    def test(self, files: Files) -> TestsReport:
        """See `ProjectRunner.test`."""
        return read_report(self._names["run_tests"](python_files(files), paths_of_tests(files)))

    def grade(self, files: Files, cases: Sequence[Case]) -> Verdict:
        """See `ProjectRunner.grade`."""
        try:
            answers = self.call(files, [case["args"] for case in cases])
        except Exception:
            return Verdict(passed=False)
        return Verdict(passed=all(same(got, case["expected"]) for got, case in zip(answers, cases, strict=True)))

    def call(self, files: Files, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """What functions of a repository give; each call is `[module, function, arguments]`."""
        with self._names["Repository"](python_files(files)):
            return [self._names["call"](*arguments) for arguments in calls]

    def command(self, command: str, files: Files) -> CommandReport:
        """Not possible: shell commands belong into a sandbox."""
        raise NotImplementedError("shell commands do not run in this process")

    def fork(self, n: int) -> Sequence[ProjectRunner]:
        """Gives runners like this one: it keeps nothing."""
        return [InProcessRepositoryRunner() for _ in range(n)]

    def reset(self) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to close."""

    def _compiled(self, text: str, place: str, asserts: Any = None) -> CodeType:
        return _compiled(text, place) if asserts is None else self._compile(text, place, asserts)


@functools.lru_cache(maxsize=10_000)
def _compiled(text: str, place: str) -> CodeType:
    return compile(text, place, "exec")

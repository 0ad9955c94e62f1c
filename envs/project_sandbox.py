"""`ProjectSandbox-v0`: mend a small repository whose tests fail.

The repository is a set of texts that the environment holds. Tests run in fresh sandbox sessions, shell commands in one
of the episode's own, from which changed files come back. What decides are hidden tests in sessions that no other code
shares: they call functions of the agent's modules and compare the answers outside. Test files have no part in that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import ConfigError
from ..core.tasks import Task
from ..rewards.base import Grade
from ..sandboxes.base import Limits, SandboxConfig
from .actions import ParseError
from .base import ToolEnv
from .line_edits import numbered, replaced, replaced_by_number, shortened
from .options import EnvOptions
from .program_memory import ProgramMemory
from .program_runner import Verdict
from .project_runner import InProcessRepositoryRunner, ProjectRunner, RepositoryRunner
from .project_testing import TestsReport, is_test_file
from .project_workspace import MAX_FILE_BYTES, MAX_FILES
from .tasks.project import FAMILIES
from .tasks.project.experts import EXPERTS, TAKES_OVER_AT
from .tasks.project.null_agents import null_actions
from .tools import tool

MAX_MATCHES = 20
"""Lines that a search shows."""
FAILURES_SHOWN = {"full": 5, "compact": 1}
_PATH = re.compile(r"(?:\w[\w.-]*/)*\w[\w.-]*")
_REPORTS: ProgramMemory[TestsReport] = ProgramMemory()
_VERDICTS: ProgramMemory[Verdict] = ProgramMemory()


class ProjectSandboxEnv(ToolEnv):
    """Repositories with mistakes in them, and hidden tests.

    Args:
        families: `project`.
        levels: Levels to draw from; one that is listed twice is drawn twice as often. None: all.
        split: `"train"`, `"validation"` or `"heldout"`.
        sandbox: `"local"` or `"docker"`.
        isolation: `"auto"`, or a mode by name; see `palaestra.sandboxes.SandboxConfig`.
        image: Container image, for `sandbox="docker"`.
        runtime: Container runtime, for `sandbox="docker"`, such as `"runsc"`.
        limits: Fields of `palaestra.sandboxes.Limits`, such as `{"memory_mib": 256}`.
        max_turns: Actions per episode; when they run out, the repository as it stands is graded.
        max_chars: Greatest length of one action, in characters.
        parser: `"auto"`, `"tool_call"`, `"fenced"` or `"plain"`.
        prompt_style: `"full"` teaches the tools and the budget; `"compact"` shows the task's sentence alone.
        on_failure: `"raise"` or `"info"`.
        reuse_results: Remember what tests gave on equal files (see `palaestra.envs.program_memory`).
        render_mode: None or `"ansi"`.

    Raises:
        ConfigError: A keyword is wrong; one line says what to write instead.
        SandboxUnavailable: On the first use: this machine has no such sandbox; the message says what to change.
    """

    can_fork = True
    experts = EXPERTS
    takes_over_at = TAKES_OVER_AT

    def __init__(
        self,
        *,
        families: Sequence[str] = (),
        levels: Sequence[int] | None = None,
        split: str = "train",
        sandbox: str = "local",
        isolation: str = "auto",
        image: str | None = None,
        runtime: str | None = None,
        limits: Mapping[str, Any] | None = None,
        max_turns: int = 30,
        max_chars: int = 100_000,
        parser: str = "auto",
        prompt_style: str = "full",
        on_failure: str = "raise",
        reuse_results: bool = True,
        render_mode: str | None = None,
    ) -> None:
        options = EnvOptions(
            families=families,
            levels=() if levels is None else levels,
            split=split,
            max_turns=max_turns,
            max_chars=max_chars,
            parser=parser,
            prompt_style=prompt_style,
            on_failure=on_failure,
            render_mode=render_mode,
        )
        config = SandboxConfig(backend=sandbox, isolation=isolation, image=image, runtime=runtime)
        if not isinstance(limits, Mapping | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"limits={limits!r}: must be fields of Limits, such as {{'timeout_s': 4}}")
        super().__init__(options, FAMILIES)
        self._runner: ProjectRunner = RepositoryRunner(config, Limits.from_mapping(limits or {}))
        self._reuse = reuse_results
        self._files: dict[str, str] = {}

    def use_runner(self, runner: ProjectRunner) -> None:
        """Replaces what runs repositories, for tests."""
        self._runner.close()
        self._runner = runner

    def trust_programs(self) -> None:
        """Runs repositories in this process from now on: for demonstrations, which are of our own code alone."""
        self.use_runner(InProcessRepositoryRunner())

    # ------------------------------------------------------------------------------------------------ tools
    @tool
    def bash(self, command: str) -> str:
        """Run a shell command in the repository.

        Args:
            command: What to run.
        """
        report = self._runner.command(command, self._files)
        self._files = dict(report.files)
        return shortened(report.output) or "(no output)"

    @tool
    def run_tests(self) -> str:
        """Run all tests of the repository."""
        key = (self._runner.scope, "tests", self._state_name())
        report = _REPORTS.get(key) if self._remembers else None
        if report is None:
            report = self._runner.test(self._files)
            if self._remembers and report.repeatable:
                _REPORTS.put(key, report)
        shown = shortened(report.shown(FAILURES_SHOWN[self.options.prompt_style]))
        return "\n".join(part for part in (shortened(report.output.strip("\n")), shown) if part)

    @tool
    def read(self, path: str) -> str:
        """Show a file, its lines numbered.

        Args:
            path: Which one.
        """
        text = self._file(path).rstrip("\n")
        return shortened(numbered(text)) if text else "(empty)"

    @tool
    def edit(self, path: str, old: str, new: str) -> str:
        """Replace one line (or one unique passage) of a file.

        Args:
            path: Which file.
            old: The line as it stands, or its number.
            new: The line to put in its place; the indentation stays.
        """
        text = self._file(path)
        is_number = old.strip().isdecimal()
        edited = replaced_by_number(text, int(old.strip()[:9]), new) if is_number else replaced(text, old, new)
        if edited is None:
            raise ParseError(f"error: no such line in {path}")
        self._files[path] = edited
        return "ok"

    @tool
    def write(self, path: str, content: str) -> str:
        """Write a whole file, a new one or in place of another.

        Args:
            path: Where, such as `rates.py`.
            content: Its text.
        """
        if not _PATH.fullmatch(path) or len(path) > 100 or ".." in path:
            raise ParseError(f"error: {path[:40]!r} is no path; write one such as rates.py")
        if len(content.encode("utf-8", "replace")) > MAX_FILE_BYTES:
            raise ParseError(f"error: a file has at most {MAX_FILE_BYTES} bytes")
        if path not in self._files and len(self._files) >= MAX_FILES:
            raise ParseError(f"error: there are {MAX_FILES} files already")
        self._files[path] = content.strip("\n") + "\n"
        return "ok"

    @tool
    def list(self) -> str:
        """Show the names of all files."""
        return "\n".join(sorted(self._files)) or "(no files)"

    @tool
    def search(self, text: str) -> str:
        """Show the lines of all files that have a text in them.

        Args:
            text: What to look for, as it is written.
        """
        if not text.strip():
            raise ParseError("error: say what to search for")
        found = [
            f"{path}:{number}: {line.strip()}"
            for path in sorted(self._files)
            for number, line in enumerate(self._files[path].split("\n"), 1)
            if text.strip() in line
        ]
        more = [f"[... {len(found) - MAX_MATCHES} more]"] if len(found) > MAX_MATCHES else []
        return shortened("\n".join([*found[:MAX_MATCHES], *more])) or "not found"

    @tool
    def submit(self) -> str:
        """Hand in the repository as it stands; hidden tests decide and the episode ends."""
        grade = self._grade()
        self._submit(grade)
        return "passed the hidden tests" if grade.success else "failed the hidden tests"

    # -------------------------------------------------------------------------------------------- who can play
    def oracle_actions(self) -> Sequence[str]:
        """Writes the modules as they should be, and submits."""
        fixed: Mapping[str, str] = self.task.secret["files"]
        return [*(f"write\n{path}\n---\n{text}" for path, text in fixed.items()), "submit"]

    def null_actions(self) -> Mapping[str, Sequence[str]]:
        """See `palaestra.envs.tasks.project.null_agents`."""
        return null_actions(self.task.public["files"])

    # ---------------------------------------------------------------------------------------------- ToolEnv
    def _start(self, task: Task) -> None:
        self._runner.reset()
        self._files = dict(task.public["files"])

    def _recover(self) -> None:
        self._runner.reset()

    def _fork_into(self, copies: Sequence[Any]) -> None:
        for copy, runner in zip(copies, self._runner.fork(len(copies)), strict=True):
            copy.use_runner(runner)
            copy._files = dict(self._files)

    def _grade(self) -> Grade:
        """Grades the repository as it stands, also when the turns run out: it is there, handed in or not."""
        files = {path: text for path, text in self._files.items() if not is_test_file(path)}
        key = (self._runner.scope, self.task.task_id, _name_of(files))
        verdict = _VERDICTS.get(key) if self._remembers else None
        if verdict is None:
            verdict = self._runner.grade(files, self.task.secret["tests"])
            if self._remembers and verdict.repeatable:
                _VERDICTS.put(key, verdict)
        passed = verdict.passed
        return Grade(reward=float(passed), success=passed, components={"hidden_tests": float(passed)})

    def _anchor(self, observation: str) -> str:
        """The files as they stand and what was read last; what else is in the session of commands is not looked at."""
        return _name_of({"": observation, **self._files})

    def _instructions(self, task: Task) -> str:
        return (
            "Modules import each other from the repository's root. The tests in test_*.py show what is wrong; hidden "
            "tests of the same functions decide, and do not look at changes of the test files."
        )

    def close(self) -> None:
        """Closes the sandbox session."""
        self._runner.close()
        super().close()

    # -------------------------------------------------------------------------------------------- internals
    @property
    def _remembers(self) -> bool:
        return self._reuse and self._runner.scope is not None

    def _state_name(self) -> str:
        return _name_of(self._files)

    def _file(self, path: str) -> str:
        if path not in self._files:
            known = " ".join(sorted(self._files)[:MAX_MATCHES])
            raise ParseError(f"error: no file {path[:40]!r}; there are {known}")
        return self._files[path]


def _name_of(files: Mapping[str, str]) -> str:
    """Equal for equal files, and no other."""
    return hashlib.blake2b(json.dumps(sorted(files.items())).encode(), digest_size=16).hexdigest()

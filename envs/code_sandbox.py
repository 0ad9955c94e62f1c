"""`CodeSandbox-v0`: write, run, repair and submit Python in an isolated sandbox.

The agent's programs run in a session of its own, whose state is kept between runs; visible tests run there too. What
is submitted is graded against hidden tests in other sessions, which the agent's code never shares.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.tasks import Task
from ..rewards.base import Grade
from ..sandboxes.base import Limits, SandboxConfig
from .actions import ParseError
from .base import ToolEnv
from .input_answers import INSTRUCTIONS, NO_INPUT, read_input, wants_input
from .line_edits import replaced, shortened
from .options import EnvOptions
from .program_memory import ProgramMemory
from .program_runner import InProcessRunner, Runner, RunReport, SandboxRunner, TestShare, Verdict
from .program_session import ProgramSession
from .tasks.code import FAMILIES
from .tasks.code.files import file_version, load_code_tasks
from .tools import tool

PROGRAM_WANTED = "Write a program that reads standard input and prints its answer."
_RUNS: ProgramMemory[RunReport] = ProgramMemory()
_VERDICTS: ProgramMemory[Verdict] = ProgramMemory()
_SHARES: ProgramMemory[TestShare] = ProgramMemory()


class CodeSandboxEnv(ToolEnv):
    """Programming tasks with hidden tests.

    Args:
        families: `compose` (default), `repair`, `trace`.
        levels: Levels to draw from; one that is listed twice is drawn twice as often. None: all.
        split: `"train"`, `"validation"` or `"heldout"`.
        tasks: Path of a JSON-lines file of your own: `{"prompt", "entry_point", "tests", "hidden_tests"}` per line, or
            rows of HumanEval, MBPP or APPS as they are; see `palaestra.envs.tasks.code.files`.
        split_tasks: Deal tasks of a file that names no splits out to them: eight tenths to train on, a tenth each for
            validation and held out. Without it every split has all of them. Training does it by itself.
        skip_wrong_tasks: Leave wrong lines of that file out, with a warning that names them, instead of raising.
        sandbox: `"local"` or `"docker"`.
        isolation: `"auto"`, or a mode by name; see `palaestra.sandboxes.SandboxConfig`.
        image: Container image, for `sandbox="docker"`, with what your tasks need installed.
        runtime: Container runtime, for `sandbox="docker"`, such as `"runsc"`.
        setup: Shell command that runs in the empty workspace before an episode's first program.
        limits: Fields of `palaestra.sandboxes.Limits`, such as `{"memory_mib": 256}`.
        max_turns: Actions per episode.
        max_chars: Greatest length of one action, in characters.
        parser: `"auto"`, `"tool_call"`, `"fenced"` or `"plain"`.
        prompt_style: `"full"` teaches the tools and the budget; `"compact"` shows the task's sentence alone.
        on_failure: `"raise"` or `"info"`.
        shaping: Reward progress, the share of visible tests that the program passes: fields of
            `palaestra.rewards.shaping.Shaping`, such as `{"weight": 0.5}`. None: the outcome alone.
        reuse_results: Remember what identical programs gave on the same task (see `palaestra.envs.program_memory`).
        render_mode: None or `"ansi"`.

    Raises:
        ConfigError: A keyword is wrong; one line says what to write instead.
        SandboxUnavailable: On the first use: this machine has no such sandbox; the message says what to change.
    """

    can_fork = True
    has_potential = True

    def __init__(
        self,
        *,
        families: Sequence[str] = (),
        levels: Sequence[int] | None = None,
        split: str = "train",
        tasks: str | None = None,
        split_tasks: bool = False,
        skip_wrong_tasks: bool = False,
        sandbox: str = "local",
        isolation: str = "auto",
        image: str | None = None,
        runtime: str | None = None,
        setup: str | None = None,
        limits: Mapping[str, Any] | None = None,
        max_turns: int = 10,
        max_chars: int = 100_000,
        parser: str = "auto",
        prompt_style: str = "full",
        on_failure: str = "raise",
        shaping: Mapping[str, Any] | None = None,
        reuse_results: bool = True,
        render_mode: str | None = None,
    ) -> None:
        options = EnvOptions(
            families=families,
            levels=() if levels is None else levels,
            split=split,
            tasks=tasks,
            split_tasks=split_tasks,
            max_turns=max_turns,
            max_chars=max_chars,
            parser=parser,
            prompt_style=prompt_style,
            on_failure=on_failure,
            shaping=shaping,
            render_mode=render_mode,
        )
        config = SandboxConfig(backend=sandbox, isolation=isolation, image=image, runtime=runtime, setup=setup)
        if not isinstance(limits, Mapping | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"limits={limits!r}: must be fields of Limits, such as {{'timeout_s': 4}}")
        super().__init__(options, FAMILIES, functools.partial(load_code_tasks, skip_wrong=skip_wrong_tasks))
        runner = SandboxRunner(config, Limits.from_mapping(limits or {}))
        memories = (_RUNS, _VERDICTS, _SHARES) if reuse_results else (None, None, None)
        source = None if tasks is None else file_version(Path(tasks))
        self._session = ProgramSession(runner, *memories, source=source)
        self._program: str | None = None

    def use_runner(self, runner: Runner) -> None:
        """Replaces what runs programs, for tests; its results are not remembered."""
        self._session.close()
        self._session = ProgramSession(runner)

    def trust_programs(self) -> None:
        """Runs programs in this process from now on: for demonstrations, whose programs our own templates wrote."""
        self.use_runner(InProcessRunner())

    # ------------------------------------------------------------------------------------------------ tools
    @tool
    def run(self, code: str) -> str:
        """Run Python code in your session and check it against the visible tests.

        Args:
            code: The program.
        """
        report = self._session.run(self.task, code)
        self._program = code
        return self._shown(report)

    @tool
    def edit(self, old: str, new: str) -> str:
        """Replace one line (or one unique passage) of your last program, then run it.

        Args:
            old: The line as it stands, without its indentation.
            new: The line to put in its place.
        """
        if self._program is None:
            raise ParseError("error: there is no program yet; run one first")
        edited = replaced(self._program, old, new)
        if edited is None:
            raise ParseError(f"error: no such line\n{self._program}")
        report = self._session.run(self.task, edited)
        self._program = edited
        text = self._shown(report)
        return text if report.passed else f"{edited}\n{text}"

    @tool
    def submit(self, code: str = "") -> str:
        """Hand in your last program, or the given one; hidden tests decide and the episode ends.

        Args:
            code: A program to hand in instead of the last one.
        """
        program = code or self._program
        if not program:
            raise ParseError("error: there is no program yet; run one, or submit one")
        if wants_input(self.task) and read_input(program) is None:
            raise ParseError(NO_INPUT)
        passed = self._session.grade(self.task, program).passed
        self._program = program
        self._submit(_hidden_tests_grade(passed))
        return "passed the hidden tests" if passed else "failed the hidden tests"

    # ---------------------------------------------------------------------------------------------- ToolEnv
    def _start(self, task: Task) -> None:
        self._session.start(task.public.get("prelude", ""))
        self._program = task.public.get("program")

    def _recover(self) -> None:
        self._session.recover()

    def _fork_into(self, copies: Sequence[Any]) -> None:
        for copy, session in zip(copies, self._session.fork(len(copies)), strict=True):
            copy._session.close()
            copy._session, copy._program = session, self._program

    def _grade(self) -> Grade:
        return _hidden_tests_grade(False)  # submitting ends the episode, so nothing stands when turns run out

    def _potential(self) -> float:
        """The share of the visible tests that the program passes, graded like a submission: outside its session."""
        return 0.0 if self._program is None else self._session.share_passed(self.task, self._program).share

    def _anchor(self, observation: str) -> str:
        """The program that stands and what was read last; variables and files of the session are not looked at."""
        state = json.dumps([self._program, observation])  # escapes half a surrogate pair, which programs may print
        return hashlib.blake2b(state.encode(), digest_size=8).hexdigest()

    def _instructions(self, task: Task) -> str:
        if wants_input(task):
            return INSTRUCTIONS
        entry_point = task.public["entry_point"]
        name = f"The function is called {entry_point}." if entry_point else PROGRAM_WANTED
        tests = list(task.public["tests"])
        return f"{name} Visible tests: {json.dumps(tests, separators=(',', ':'))}" if tests else name

    def close(self) -> None:
        """Closes the sandbox session."""
        self._session.close()
        super().close()

    def _shown(self, report: RunReport) -> str:
        """A report as the agent reads it: what was printed, then the failure or the verdict of the visible tests."""
        full = self.options.prompt_style == "full"
        failure = (report.traceback if full else "") or report.error
        notice = "the next run starts in a fresh session" if report.session_lost else ""
        parts = (shortened(report.output), shortened(failure), notice, report.verdict)
        return "\n".join(part for part in parts if part) or "(no output)"


def _hidden_tests_grade(passed: bool) -> Grade:
    return Grade(reward=float(passed), success=passed, components={"hidden_tests": float(passed)})

"""`CodeSandbox-v0`: write, run, repair and submit Python in an isolated sandbox.

The agent's programs run in a session of its own, whose state is kept between runs; visible tests run there too. What
is submitted is graded against hidden tests in other sessions, which the agent's code never shares.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, TaskError
from ..core.tasks import Task
from ..rewards.base import Grade
from ..sandboxes.base import Limits
from .actions import ParseError
from .base import EnvOptions, ToolEnv
from .program_runner import Runner, SandboxRunner
from .tasks.code import FAMILIES
from .tools import tool

MEMORY = 20_000
"""Verdicts and first runs that one environment process remembers."""


class ProgramMemory:
    """What identical programs on identical tasks gave before; a GRPO group repeats many of them.

    Only pure results are kept: verdicts, which come from fresh sessions, and the first run of a program in a fresh
    session. A program that draws random numbers gives the remembered result instead of a new draw, which is what a
    seeded episode should do.
    """

    def __init__(self, size: int = MEMORY) -> None:
        self._size = size
        self._results: OrderedDict[tuple[str, str, str], Any] = OrderedDict()

    def recall(self, kind: str, task_id: str, program: str, compute: Callable[[], Any]) -> Any:
        """Gives the remembered result, or computes and remembers it."""
        key = (kind, task_id, program)
        if key in self._results:
            self._results.move_to_end(key)
            return self._results[key]
        result = self._results[key] = compute()
        if len(self._results) > self._size:
            self._results.popitem(last=False)
        return result


_MEMORY = ProgramMemory()


class CodeSandboxEnv(ToolEnv):
    """Programming tasks with hidden tests.

    Args:
        families: `compose` (default), `repair`.
        levels: Levels to draw from; one that is listed twice is drawn twice as often. None: all.
        split: `"train"`, `"validation"` or `"heldout"`.
        tasks: Path of a JSON-lines file of your own: `{"prompt", "entry_point", "tests", "hidden_tests"}` per line.
        sandbox: `"local"` or `"docker"`.
        isolation: `"auto"`, or a mode by name; see `palaestra.sandboxes`.
        image: Container image, for `sandbox="docker"`.
        limits: Fields of `palaestra.sandboxes.Limits`, such as `{"memory_mib": 256}`.
        max_turns: Actions per episode.
        max_chars: Greatest length of one action, in characters.
        parser: `"auto"`, `"tool_call"`, `"fenced"` or `"plain"`.
        prompt_style: `"full"` teaches the tools and the budget; `"compact"` shows the task's sentence alone.
        on_failure: `"raise"` or `"info"`.
        reuse_results: Remember what identical programs gave on the same task (see `ProgramMemory`).
        render_mode: None or `"ansi"`.

    Raises:
        ConfigError: A keyword is wrong; one line says what to write instead.
    """

    def __init__(
        self,
        *,
        families: Sequence[str] = (),
        levels: Sequence[int] | None = None,
        split: str = "train",
        tasks: str | None = None,
        sandbox: str = "local",
        isolation: str = "auto",
        image: str | None = None,
        limits: Mapping[str, Any] | None = None,
        max_turns: int = 10,
        max_chars: int = 100_000,
        parser: str = "auto",
        prompt_style: str = "full",
        on_failure: str = "raise",
        reuse_results: bool = True,
        render_mode: str | None = None,
    ) -> None:
        options = EnvOptions(
            families=families,
            levels=tuple(levels or ()),
            split=split,
            tasks=tasks,
            max_turns=max_turns,
            max_chars=max_chars,
            parser=parser,
            prompt_style=prompt_style,
            on_failure=on_failure,
            render_mode=render_mode,
        )
        if sandbox not in ("local", "docker"):
            raise ConfigError(f"sandbox={sandbox!r}: must be 'local' or 'docker'")
        super().__init__(options, FAMILIES, load_code_tasks)
        self._runner: Runner = SandboxRunner(sandbox, isolation, image, Limits.from_mapping(limits or {}))
        self._memory = _MEMORY if reuse_results else None
        self._program: str | None = None
        self._ran: list[str] = []
        self._unsent: list[str] = []

    def use_runner(self, runner: Runner) -> None:
        """Replaces what runs programs: tests and demonstrations inject one; results are not remembered across."""
        self._runner.close()
        self._runner, self._memory = runner, None

    # ------------------------------------------------------------------------------------------------ tools
    @tool
    def run(self, code: str) -> str:
        """Run Python code in your session and check it against the visible tests.

        Args:
            code: The program.
        """
        self._program = code
        return self._execute(code)

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
            return f"error: no such line\n{self._program}"
        self._program = edited
        text = self._execute(edited)
        return text if text == "ok" else f"{edited}\n{text}"

    @tool
    def submit(self, code: str = "") -> str:
        """Hand in your last program, or the given one; hidden tests decide and the episode ends.

        Args:
            code: A program to hand in instead of the last one.
        """
        program = code or self._program
        if not program:
            raise ParseError("error: there is no program yet; run one, or submit one")
        task = self.task
        passed = self._recalled(
            "grade",
            program,
            lambda: self._runner.grade(
                program, task.public["entry_point"], task.secret["tests"], task.public.get("prelude", "")
            ),
        )
        self._submit(Grade(reward=float(passed), success=passed, components={"hidden_tests": float(passed)}))
        return "passed the hidden tests" if passed else "failed the hidden tests"

    # ---------------------------------------------------------------------------------------------- ToolEnv
    def _start(self, task: Task) -> None:
        self._runner.reset()
        self._program = task.public.get("program")
        self._ran, self._unsent = [], []

    def _recover(self) -> None:
        """A fresh session, into which everything that ran so far is run again."""
        self._runner.reset()
        self._unsent = list(self._ran)

    def _instructions(self, task: Task) -> str:
        shown = json.dumps(list(task.public["tests"]), separators=(",", ":"))
        return f"The function is called {task.public['entry_point']}. Visible tests: {shown}"

    def close(self) -> None:
        """Closes the sandbox session."""
        self._runner.close()
        super().close()

    # -------------------------------------------------------------------------------------------- internals
    def _execute(self, program: str) -> str:
        """Runs a program; the first one of an episode may be remembered and is then run only if another follows."""
        if not self._ran and self._memory is not None:
            text = self._recalled("run", program, lambda: self._send(program))
            if not self._sent(program):
                self._unsent.append(program)
        else:
            for earlier in self._unsent:
                self._run_in_session(earlier)
            self._unsent = []
            text = self._run_in_session(program)
        self._ran.append(program)
        return text

    def _send(self, program: str) -> str:
        self._last_sent = program
        return self._run_in_session(program)

    def _sent(self, program: str) -> bool:
        sent, self._last_sent = self._last_sent, None
        return sent == program

    _last_sent: str | None = None

    def _run_in_session(self, program: str) -> str:
        return self._runner.run(program, self.task.public["entry_point"], self.task.public["tests"])

    def _recalled(self, kind: str, program: str, compute: Callable[[], Any]) -> Any:
        if self._memory is None:
            return compute()
        return self._memory.recall(kind, self.task.task_id, program, compute)


def replaced(program: str, old: str, new: str) -> str | None:
    """The program with one line replaced (its indentation is kept), or one unique passage; None if `old` is not there."""
    if not old.strip():
        return None
    lines = program.split("\n")
    for number, line in enumerate(lines):
        if line.strip() == old.strip():
            indent = line[: len(line) - len(line.lstrip())]
            first, *others = new.strip("\n").split("\n")
            lines[number] = "\n".join([indent + first.strip(), *others])
            return "\n".join(lines)
    return program.replace(old, new, 1) if program.count(old) == 1 else None


def load_code_tasks(path: Path) -> list[Task]:
    """Reads a user's own tasks, one JSON object a line.

    Raises:
        TaskError: The file cannot be read, or a line is wrong; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TaskError(f"cannot read tasks {path}: {error.strerror}") from error
    tasks = [_code_task(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not tasks:
        raise TaskError(f"{path} holds no tasks")
    return tasks


def _code_task(path: Path, number: int, line: str) -> Task:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise TaskError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise TaskError(f"{path}, line {number}: expected a JSON object")
    for name in ("prompt", "entry_point", "tests"):
        if name not in row:
            raise TaskError(f"{path}, line {number}: {name!r} is missing")
    hidden = row.get("hidden_tests", row["tests"])
    visible = row["tests"] if isinstance(row["tests"], list) else []
    return Task(
        task_id=str(row.get("task_id", f"{path.stem}:{number}")),
        family=str(row.get("family", path.stem)),
        split="train",
        level=int(row.get("level", 1)),
        prompt=str(row["prompt"]),
        public={"entry_point": str(row["entry_point"]), "tests": visible, "prelude": str(row.get("prelude", ""))},
        secret={"tests": hidden, "reference": row.get("reference", "")},
    )

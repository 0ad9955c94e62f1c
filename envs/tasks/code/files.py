"""A user's own programming tasks, one JSON object a line.

    {"prompt": "Double x.", "entry_point": "double", "tests": [{"args": [2], "expected": 4}],
     "hidden_tests": [{"args": [5], "expected": 10}]}

`prompt`, `entry_point` and `tests` are required. `tests` are shown to the agent and `hidden_tests` decide; where there
are no hidden tests, `tests` decide and none are shown, so that their answers cannot be copied. Tests are data, or one
text of Python asserts (which is never shown). Optional: `prelude` (source that is loaded before a submission),
`program` (what the agent starts from), `reference` (a solution, for the oracle), `task_id`, `family`, `level`.
"""

from __future__ import annotations

import ast
import functools
import json
import keyword
import warnings
from pathlib import Path
from typing import Any, cast

from ....core.errors import TaskError
from ....core.tasks import Task

REQUIRED = ("prompt", "entry_point", "tests")
TEXTS = ("prompt", "entry_point", "prelude", "program", "reference", "task_id", "family")
SOURCES = ("prelude", "reference", "tests", "hidden_tests")
"""What must be Python where it is a text; an agent may well start from a `program` that is not."""


def load_code_tasks(path: Path) -> list[Task]:
    """Reads a task file; environments of one process share what an unchanged file gave.

    Raises:
        TaskError: The file cannot be read, or a line is wrong; the message names the line.
    """
    return list(_loaded(*file_version(path)))


def file_version(path: Path) -> tuple[Path, int, int]:
    """What tells one version of a file from another: its place, time (ns) and size (bytes).

    Raises:
        TaskError: There is no such file, or it cannot be reached.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise TaskError(f"cannot read tasks {path}: {error.strerror}") from error
    return path.resolve(), state.st_mtime_ns, state.st_size


@functools.lru_cache(maxsize=16)
def _loaded(path: Path, mtime_ns: int, size: int) -> tuple[Task, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise TaskError(f"cannot read tasks {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"cannot read tasks {path}: not UTF-8 text") from error
    tasks: dict[str, Task] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            task = _task(where, f"{path.stem}:{number}", path.stem, line)
            if task.task_id in tasks:
                raise TaskError(f"{where}: task_id {task.task_id!r} is there twice")
            tasks[task.task_id] = task
    if not tasks:
        raise TaskError(f"{path} holds no tasks")
    return tuple(tasks.values())


def _task(where: str, task_id: str, family: str, line: str) -> Task:
    row = _row(where, line)
    tests, hidden = row["tests"], row.get("hidden_tests")
    visible: Any = [] if hidden is None or isinstance(tests, str) else tests
    public: dict[str, Any] = {"entry_point": row["entry_point"], "tests": visible, "prelude": row.get("prelude", "")}
    if row.get("program"):
        public["program"] = row["program"]
    return Task(
        task_id=row.get("task_id", task_id),
        family=row.get("family", family),
        split="train",
        level=row.get("level", 1),
        prompt=row["prompt"],
        public=public,
        secret={"tests": tests if hidden is None else hidden, "reference": row.get("reference", "")},
    )


def _row(where: str, line: str) -> dict[str, Any]:
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise TaskError(f"{where}: expected a JSON object")
    row = cast(dict[str, Any], data)
    for name in REQUIRED:
        if name not in row:
            raise TaskError(f"{where}: {name!r} is missing")
    for name in TEXTS:
        if not isinstance(row.get(name, ""), str):
            raise TaskError(f"{where}: {name!r} must be a text")
    if not row["entry_point"].isidentifier() or keyword.iskeyword(row["entry_point"]):
        raise TaskError(f"{where}: 'entry_point' must be the name of a function, not {row['entry_point']!r}")
    if type(row.get("level", 1)) is not int or row.get("level", 1) < 1:
        raise TaskError(f"{where}: 'level' must be a whole number from 1")
    if row.get("hidden_tests") is not None:
        _check_tests(where, "hidden_tests", row["hidden_tests"])
    if row["tests"] != [] or row.get("hidden_tests") is None:
        _check_tests(where, "tests", row["tests"])
    for name in SOURCES:
        if isinstance(row.get(name), str):
            _check_source(where, name, row[name])
    return row


def _check_source(where: str, name: str, source: str) -> None:
    """A text that is no Python would fail every submission, whatever it is."""
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        said = f"{error.msg} in its line {error.lineno}" if isinstance(error, SyntaxError) else str(error)
        raise TaskError(f"{where}: {name!r} is no Python ({said})") from error


def _check_tests(where: str, name: str, tests: Any) -> None:
    if isinstance(tests, str) and tests.strip():
        return
    if not isinstance(tests, list) or not tests:
        raise TaskError(f'{where}: {name!r} must be a list of {{"args": [...], "expected": ...}}, or a text of asserts')
    for index, case in enumerate(cast(list[Any], tests)):
        fields = cast(dict[str, Any], case) if isinstance(case, dict) else {}
        if not isinstance(fields.get("args"), list) or "expected" not in fields:
            raise TaskError(f'{where}: {name}[{index}] must be {{"args": [...], "expected": ...}}')

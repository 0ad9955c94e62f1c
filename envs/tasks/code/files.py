"""A user's own programming tasks, one JSON object a line.

    {"prompt": "Double x.", "entry_point": "double", "tests": [{"args": [2], "expected": 4}],
     "hidden_tests": [{"args": [5], "expected": 10}]}

`prompt`, `entry_point` and `tests` are required. `tests` are shown to the agent and `hidden_tests` decide; where there
are no hidden tests, `tests` decide and none are shown, so that their answers cannot be copied. Tests are data, one text
of Python asserts (which is never shown), or inputs of a whole program, which needs no `entry_point`:
`[{"stdin": "2", "stdout": "4"}]`, each with an optional `tolerance` for numbers. Optional: `prelude` (source that is
loaded before the agent's programs), `program` (what the agent starts from), `reference` (a solution, for the oracle),
`task_id`, `family` (whose experts can solve it), `level`, `split` ("train", "validation", or "heldout" or "test"; where
some rows are not to train on, each split has its own, and without `split` a row is to train on).

Rows of HumanEval, MBPP and APPS are taken as they are; see `rows`. Files may mix shapes and be gzipped (`.gz`). A file
with wrong lines is one error that names each of them; with `skip_wrong` a warning does, and the other lines are used.
"""

from __future__ import annotations

import functools
import gzip
import json
import keyword
import math
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ....core.errors import TaskError
from ....core.tasks import SPLITS, Task
from .rows import is_program_tests, own_row, parsed

REQUIRED = ("prompt", "entry_point", "tests")
TEXTS = ("prompt", "entry_point", "prelude", "program", "reference", "task_id", "family")
SOURCES = ("prelude", "reference", "tests", "hidden_tests")
"""What must be Python where it is a text; an agent may well start from a `program` that is not."""
OTHER_SPLITS = {"test": "heldout"}
"""What files call our splits."""
MAX_NAMED = 20
"""Wrong lines that one message tells in full."""


@dataclass(frozen=True, slots=True)
class _TaskFile:
    """What a file holds."""

    tasks: tuple[Task, ...]
    wrong: tuple[str, ...]
    """`"line 3: what is wrong"` for each line that is no task."""


def load_code_tasks(path: Path, skip_wrong: bool = False) -> list[Task]:
    """Reads a task file; environments of one process share what an unchanged file gave.

    Args:
        path: The file.
        skip_wrong: Leave wrong lines out, and warn, instead of raising.

    Raises:
        TaskError: The file cannot be read, holds no tasks, or lines are wrong; the message names each of them.
    """
    found = _loaded(*file_version(path))
    said = "; ".join(found.wrong[:MAX_NAMED])
    if len(found.wrong) > MAX_NAMED:
        said += f"; and {len(found.wrong) - MAX_NAMED} more"
    if found.wrong and (not skip_wrong or not found.tasks):
        fine = f" (the other {len(found.tasks)} lines are fine)" if len(found.wrong) > 1 else ""
        raise TaskError(f"{path}, {said}{fine}")
    if found.wrong:
        warnings.warn(f"{path}: left out {len(found.wrong)} of its tasks, {said}", stacklevel=2)
    return list(found.tasks)


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
def _loaded(path: Path, mtime_ns: int, size: int) -> _TaskFile:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, zlib.error) as error:
        said = (error.strerror if isinstance(error, OSError) else None) or error
        raise TaskError(f"cannot read tasks {path}: {said}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"cannot read tasks {path}: not UTF-8 text") from error
    tasks: dict[str, Task] = {}
    wrong: list[str] = []
    name = path.name.partition(".")[0]
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                task = _task(f"{name}:{number}", name, line)
                if task.task_id in tasks:
                    raise TaskError(f"task_id {task.task_id!r} is there twice")
            except TaskError as error:
                wrong.append(f"line {number}: {error}")
            else:
                tasks[task.task_id] = task
    if not tasks and not wrong:
        raise TaskError(f"{path} holds no tasks")
    return _TaskFile(tuple(tasks.values()), tuple(wrong))


def _task(task_id: str, family: str, line: str) -> Task:
    row = _row(line)
    tests, hidden = row["tests"], row.get("hidden_tests")
    visible: Any = [] if hidden is None or isinstance(tests, str) else tests
    entry_point = row.get("entry_point", "")
    public: dict[str, Any] = {"entry_point": entry_point, "tests": visible, "prelude": row.get("prelude", "")}
    if row.get("program"):
        public["program"] = row["program"]
    return Task(
        task_id=row.get("task_id", task_id),
        family=row.get("family", family),
        split=row.get("split", "train"),
        level=row.get("level", 1),
        prompt=row["prompt"],
        public=public,
        secret={"tests": tests if hidden is None else hidden, "reference": row.get("reference", "")},
    )


def _row(line: str) -> dict[str, Any]:
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"not JSON ({error})") from error
    if not isinstance(data, dict):
        raise TaskError("expected a JSON object")
    fields = cast(dict[str, Any], data)
    row = own_row(fields)
    if "split" in fields:
        said: Any = fields["split"]
        row["split"] = OTHER_SPLITS.get(str(said), said)
        if row["split"] not in SPLITS:
            raise TaskError(f"'split' must be one of {', '.join(map(repr, SPLITS))}, not {said!r}")
    tests, hidden = row.get("tests"), row.get("hidden_tests")
    of_program = is_program_tests(hidden or tests)
    for name in REQUIRED:
        if name not in row and not (of_program and name == "entry_point"):
            raise TaskError(f"{name!r} is missing")
    for name in TEXTS:
        if not isinstance(row.get(name, ""), str):
            raise TaskError(f"{name!r} must be a text")
    entry_point = row.get("entry_point", "")
    if not of_program and (not entry_point.isidentifier() or keyword.iskeyword(entry_point)):
        raise TaskError(f"'entry_point' must be the name of a function, not {entry_point!r}")
    if of_program and row.get("prelude"):
        raise TaskError("'prelude' goes with tests of a function, not of whole programs")
    if type(row.get("level", 1)) is not int or row.get("level", 1) < 1:
        raise TaskError("'level' must be a whole number from 1")
    if hidden is not None:
        _check_tests("hidden_tests", hidden, of_program)
    if tests != [] or hidden is None:
        _check_tests("tests", tests, of_program)
    for name in SOURCES:
        if isinstance(row.get(name), str):
            parsed(name, row[name])
    return row


def _check_tests(name: str, tests: Any, of_program: bool) -> None:
    if isinstance(tests, str) and tests.strip():
        return
    if not isinstance(tests, list) or not tests:
        raise TaskError(f'{name!r} must be a list of {{"args": [...], "expected": ...}}, or a text of asserts')
    wanted = '{"stdin": "...", "stdout": "..."}' if of_program else '{"args": [...], "expected": ...}'
    for index, case in enumerate(cast(list[Any], tests)):
        fields = cast(dict[str, Any], case) if isinstance(case, dict) else {}
        if not (_is_program_test(fields) if of_program else _is_call(fields)):
            raise TaskError(f"{name}[{index}] must be {wanted}")


def _is_call(fields: dict[str, Any]) -> bool:
    return isinstance(fields.get("args"), list) and "expected" in fields


def _is_program_test(fields: dict[str, Any]) -> bool:
    tolerance: Any = fields.get("tolerance", 0)
    is_number = type(tolerance) in (int, float) and 0 <= tolerance < math.inf
    return isinstance(fields.get("stdin"), str) and isinstance(fields.get("stdout"), str) and is_number

"""Rows of well-known data sets of programming tasks, rewritten as rows of our own (see `files`).

A shape is known by its keys:

- HumanEval: `prompt`, `entry_point`, `test`; `canonical_solution`. A prompt that is Python and defines the function is
  the prelude too, because tests and submissions may need its imports and helpers.
- MBPP: `text` or `prompt`, `test_list`; `code`, `test_setup_code` or `test_imports`, `challenge_test_list`,
  `entry_point`. Which function is under test follows from what the tests call. The first of several asserts is shown,
  as the text alone does not say how the function is called; all of them decide.
- Standard input and output: `question` or `prompt`, and `input_output` (an object or its JSON text with `inputs` and
  `outputs`, as in APPS) or `tests` of `{"stdin", "stdout"}`; `solutions` (a list or its JSON text).

Values are checked afterwards, as those of all rows are.
"""

from __future__ import annotations

import ast
import builtins
import json
import warnings
from collections.abc import Mapping
from typing import Any, cast

from ....core.errors import TaskError

Row = dict[str, Any]
_KEPT = ("task_id", "family", "level", "program")
"""Optional keys of our own that rows of any shape may have."""


def own_row(row: Row) -> Row:
    """Gives the row in our own shape.

    Raises:
        TaskError: A key that its shape needs is missing or wrong; the message does not name the line.
    """
    if "test_list" in row:
        return _of_mbpp(row)
    if "input_output" in row:
        return _of_program(row, _program_tests(row["input_output"]))
    if "test" in row and "tests" not in row:
        return _of_human_eval(row)
    if is_program_tests(row.get("tests")):
        return _of_program(row, row["tests"])
    return row


def is_program_tests(tests: Any) -> bool:
    """Whether tests are inputs of a whole program and its outputs."""
    if not isinstance(tests, list) or not tests:
        return False
    first = cast(list[Any], tests)[0]
    return isinstance(first, dict) and bool({"stdin", "stdout"} & cast(Row, first).keys())


def parsed(name: str, source: str) -> ast.Module:
    """Gives the syntax tree of a text.

    Raises:
        TaskError: It is no Python: it would fail every submission, whatever that is.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        said = f"{error.msg} in its line {error.lineno}" if isinstance(error, SyntaxError) else str(error)
        raise TaskError(f"{name!r} is no Python ({said})") from error


def _of_human_eval(row: Row) -> Row:
    prompt, entry_point, tests = _text(row, "prompt"), _text(row, "entry_point"), _text(row, "test")
    solution = _text(row, "canonical_solution", "")
    begins = _defines(prompt, entry_point)
    return {
        **_kept(row),
        "prompt": prompt,
        "entry_point": entry_point,
        "tests": tests,
        "prelude": row.get("prelude", prompt if begins else ""),
        "reference": row.get("reference", prompt + solution if begins and solution else solution),
    }


def _defines(source: str, name: str) -> bool:
    try:
        body = parsed("prompt", source).body
    except TaskError:
        return False
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in body)


def _of_mbpp(row: Row) -> Row:
    prompt, code = _text(row, "text" if "text" in row else "prompt"), _text(row, "code", "")
    asserts = _texts(row, "test_list") + _texts(row, "challenge_test_list")
    if not asserts:
        raise TaskError("'test_list' is empty")
    tests = "\n".join(asserts)
    example = f"\n{asserts[0].strip()}" if len(asserts) > 1 else ""
    return {
        **_kept(row),
        "prompt": prompt + example,
        "entry_point": _text(row, "entry_point", "") or _tested_function(code, tests),
        "tests": tests,
        "prelude": "\n".join([*_texts(row, "test_imports"), _text(row, "test_setup_code", "")]).strip(),
        "reference": row.get("reference", code),
    }


def _tested_function(code: str, tests: str) -> str:
    """The one function that the tests call and the code defines; without code, the one that nobody else defines."""
    called = [
        node.func.id
        for node in ast.walk(parsed("test_list", tests))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    defined = [node.name for node in parsed("code", code).body if isinstance(node, ast.FunctionDef)]
    known = [name for name in dict.fromkeys(called) if (name in defined if code else name not in vars(builtins))]
    if len(known) != 1:
        said = f"the tests call {', '.join(known)}" if known else "the tests call no function of its own"
        raise TaskError(f"{said}: 'entry_point' must name the function under test")
    return known[0]


def _of_program(row: Row, tests: Any) -> Row:
    hidden = row.get("hidden_tests")
    return {
        **_kept(row),
        "prompt": _text(row, "question" if "question" in row else "prompt"),
        "tests": tests,
        **({} if hidden is None else {"hidden_tests": hidden}),
        "prelude": row.get("prelude", ""),
        "reference": row.get("reference") or _first_solution(row),
    }


def _program_tests(data: Any) -> list[dict[str, str]]:
    value: Any = _of_json("input_output", data) if isinstance(data, str) else data
    fields = cast(Row, value) if isinstance(value, dict) else {}
    if fields.get("fn_name"):
        raise TaskError("'input_output' has 'fn_name': write 'entry_point' and 'tests' of {\"args\", \"expected\"}")
    inputs, outputs = fields.get("inputs"), fields.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise TaskError("'input_output' must be an object with the lists 'inputs' and 'outputs', or its JSON text")
    given, wanted = cast(list[Any], inputs), cast(list[Any], outputs)
    if len(given) != len(wanted) or not given:
        raise TaskError(f"'input_output' has {len(given)} inputs and {len(wanted)} outputs")
    return [
        {"stdin": _lines(f"input_output.inputs[{i}]", stdin), "stdout": _lines(f"input_output.outputs[{i}]", stdout)}
        for i, (stdin, stdout) in enumerate(zip(given, wanted, strict=True))
    ]


def _lines(name: str, value: Any) -> str:
    """A text, which may be given as a list of lines."""
    if isinstance(value, list) and all(isinstance(line, str) for line in cast(list[Any], value)):
        return "\n".join(cast(list[str], value))
    if not isinstance(value, str):
        raise TaskError(f"{name!r} must be a text")
    return value


def _first_solution(row: Row) -> str:
    data: Any = row.get("solutions") or []
    value: Any = _of_json("solutions", data) if isinstance(data, str) else data
    if not isinstance(value, list) or not all(isinstance(text, str) for text in cast(list[Any], value)):
        raise TaskError("'solutions' must be a list of texts, or its JSON text")
    return cast(list[str], value)[0] if value else ""


def _of_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{name!r} is not JSON ({error})") from error


def _kept(row: Row) -> Row:
    kept = {name: row[name] for name in _KEPT if name in row}
    if type(kept.get("task_id")) is int:
        kept["task_id"] = str(kept["task_id"])
    return kept


def _text(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if value is None and default is None:
        raise TaskError(f"{name!r} is missing")
    if not isinstance(value, str):
        raise TaskError(f"{name!r} must be a text")
    return value


def _texts(row: Mapping[str, Any], name: str) -> list[str]:
    value: Any = row.get(name) or []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in cast(list[Any], value)):
        raise TaskError(f"{name!r} must be a list of texts")
    return cast(list[str], value)

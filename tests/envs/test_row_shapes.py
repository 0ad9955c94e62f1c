"""Rows of well-known data sets through `tasks=FILE`: each is solved by its own solution and by nothing wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from palaestra.core.tasks import Task
from palaestra.envs.registration import make_env
from palaestra.envs.tasks.code.files import load_code_tasks

ROWS: dict[str, dict[str, Any]] = {
    row["shape"]: row
    for row in map(json.loads, (Path(__file__).parents[1] / "rewards" / "task_rows.jsonl").read_text().splitlines())
}
HALVES = {
    "prompt": "Print half of each number.",
    "tests": [{"stdin": "2\n4\n", "stdout": "1\n2\n"}, {"stdin": "6", "stdout": "3"}],
    "hidden_tests": [{"stdin": "3", "stdout": "1.5", "tolerance": 1e-6}],
}
HALVE = "import sys\nfor line in sys.stdin:\n    print({}, end='\\n\\n' if line == '0' else '\\n')"


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def loaded(folder: Path, row: dict[str, Any]) -> Task:
    return load_code_tasks(written(folder, row))[0]


@pytest.mark.parametrize("shape", ["human_eval", "mbpp", "apps"])
def test_a_row_is_solved_by_its_own_solution_and_by_no_wrong_one(tmp_path: Path, shape: str) -> None:
    row = ROWS[shape]
    env = make_env("CodeSandbox-v0", tasks=str(written(tmp_path, row)))
    env.reset(seed=0)
    reference = env.unwrapped.task.secret["reference"]
    begin = row["prompt"] if shape == "human_eval" else ""
    for program, reward in [
        (reference, 1.0),
        ("pass", 0.0),
        *((begin + wrong, 0.0) for wrong in row["wrong"] if wrong),
    ]:
        env.reset(seed=0)
        assert env.step(f"submit\n{program}")[1] == reward, program
    env.close()


def test_texts_and_objects_and_lists_of_lines_are_the_same_program_tests(tmp_path: Path) -> None:
    data = ROWS["apps"]["input_output"]
    lines = {name: [text.split("\n") for text in texts] for name, texts in data.items()}
    tests = [{"stdin": i, "stdout": o} for i, o in zip(data["inputs"], data["outputs"], strict=True)]
    for changes in ({}, {"input_output": json.dumps(data)}, {"input_output": lines}):
        task = loaded(tmp_path, ROWS["apps"] | changes)
        assert (task.secret["tests"], task.public["tests"]) == (tests, [])
    row = {"question": "q", "tests": tests, "solutions": json.dumps(["print(1)"])}
    task = loaded(tmp_path, row)
    assert (task.secret, task.prompt) == ({"tests": tests, "reference": "print(1)"}, "q")


def test_mbpp_shows_one_assert_and_finds_the_function_and_the_imports(tmp_path: Path) -> None:
    tests = ["assert twice(half(4)) == 4", "assert twice(3) == 6"]
    row = {"prompt": "Double x.", "test_list": tests, "test_imports": ["import math"], "task_id": 11}
    task = loaded(tmp_path, row | {"code": "def half(x): ...\ndef twice(x): return 2 * x", "entry_point": "twice"})
    assert task.prompt == "Double x.\nassert twice(half(4)) == 4"
    assert (task.task_id, task.public["prelude"], task.public["entry_point"]) == ("11", "import math", "twice")
    alone = loaded(tmp_path, {"text": "Double x.", "test_list": tests[1:]})
    assert (alone.prompt, alone.public["entry_point"]) == ("Double x.", "twice")


def test_the_helpers_of_a_prompt_are_there_when_a_program_runs(tmp_path: Path) -> None:
    """In the session too, after a program that ended it, and when the first run is remembered."""
    row = ROWS["human_eval"]
    env = make_env("CodeSandbox-v0", tasks=str(written(tmp_path, row)))
    for _ in range(2):
        env.reset(seed=0)
        assert env.step("run\ndef f(x: List[int]): ...\nprint(is_even(4))")[0] == "True"
        assert env.step("run\nprint(is_even(5))")[0] == "False"
        assert "fresh session" in env.step("run\nimport os\nos._exit(1)")[0]
        assert env.step("run\nprint(is_even(6))")[0] == "True"
    (copy,) = env.unwrapped.fork(1)
    assert copy.step("run\nprint(is_even(7))")[0] == "False"
    copy.close()
    env.close()


def test_plain_words_with_test_code_have_no_prelude(tmp_path: Path) -> None:
    task = loaded(tmp_path, {"prompt": "Double x.", "entry_point": "f", "test": "assert f(2) == 4"})
    assert (task.public["prelude"], task.secret["reference"]) == ("", "")
    assert task.secret["tests"] == "assert f(2) == 4"


def test_programs_run_on_the_visible_inputs_and_hidden_ones_decide(tmp_path: Path) -> None:
    env = make_env("CodeSandbox-v0", tasks=str(written(tmp_path, HALVES)))
    observation, _ = env.reset(seed=0)
    assert "Write a program that reads standard input" in observation
    assert '{"stdin":"6","stdout":"3"}' in observation
    assert "1.5" not in observation
    wrong = env.step(f"run\n{HALVE.format('int(line)')}")[0]
    assert wrong == "stdin '2\\n4\\n'\nline 1 of the output differs\ngot '2\\n4\\n'\nwant '1\\n2\\n'"
    assert "ZeroDivisionError" in env.step("run\n1 / 0")[0]
    assert env.step(f"run\n{HALVE.format('int(line) // 2')}")[0] == "ok"
    assert env.step("submit")[1] == 0.0
    env.reset(seed=0)
    assert env.step(f"submit\n{HALVE.format('int(line) / 2')}")[1] == 1.0
    env.close()

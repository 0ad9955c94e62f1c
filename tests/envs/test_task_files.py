"""A user's own tasks: every wrong line is named by its number, in one line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from palaestra.core.errors import ConfigError, TaskError
from palaestra.core.tasks import Task
from palaestra.envs.registration import make_env
from palaestra.envs.tasks.code.files import load_code_tasks

GOOD: dict[str, Any] = {
    "prompt": "Double x.",
    "entry_point": "double",
    "tests": [{"args": [2], "expected": 4}],
    "hidden_tests": [{"args": [5], "expected": 10}],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.jsonl"


def line(**changes: Any) -> str:
    return json.dumps(GOOD | changes)


WRONG = {
    "not JSON": ["{", "[" * 100_000, line() + line()],
    "expected a JSON object": ["[1]", "3", "null"],
    "'prompt' is missing": ['{"entry_point": "f", "tests": []}'],
    "'prompt' must be a text": [line(prompt=3)],
    "'program' must be a text": [line(program=[1])],
    "'entry_point' must be the name of a function": [line(entry_point="a b"), line(entry_point="class")],
    "'split' must be one of 'train', 'validation', 'heldout', not 'dev'": [line(split="dev")],
    "'level' must be a whole number": [line(level=0), line(level=True), line(level=1.5)],
    "'tests' must be a list": [line(tests=" "), line(tests=None), line(tests=[], hidden_tests=None)],
    "'hidden_tests' must be a list": [line(hidden_tests=[]), line(hidden_tests={})],
    "tests[0] must be": [line(tests=[1]), line(tests=[{"args": 2, "expected": 1}]), line(tests=[{"args": [2]}])],
    "'tests' is no Python ('(' was never closed in its line 1)": [line(tests="assert (")],
    "'hidden_tests' is no Python": [line(hidden_tests="assert 1\x00"), line(hidden_tests="if")],
    "'prelude' is no Python": [line(prelude="x = (")],
    "'reference' is no Python": [line(reference="def")],
    "is there twice": [line(task_id="mine:1")],
    'hidden_tests[0] must be {"stdin"': [line(tests=[{"stdin": "", "stdout": ""}], hidden_tests=[{"stdin": "1"}])],
    'tests[1] must be {"stdin"': [
        json.dumps({"prompt": "p", "tests": [{"stdin": "", "stdout": ""}, wrong]})
        for wrong in ({"stdin": "", "stdout": 3}, {"stdin": "", "stdout": "", "tolerance": -1}, 5)
    ],
    "'prelude' goes with tests of a function": [
        json.dumps({"prompt": "p", "prelude": "import math", "tests": [{"stdin": "", "stdout": ""}]})
    ],
    "'test' must be a text": [json.dumps({"prompt": "p", "entry_point": "f", "test": ["assert f(1)"]})],
    "'canonical_solution' must be a text": [
        json.dumps({"prompt": "p", "entry_point": "f", "test": "assert f(1)", "canonical_solution": 1})
    ],
    "'test_list' is empty": [json.dumps({"text": "p", "code": "", "test_list": []})],
    "'test_list' must be a list of texts": [json.dumps({"text": "p", "test_list": "assert f(1)"})],
    "'code' is no Python": [json.dumps({"text": "p", "code": "def", "test_list": ["assert f(1)"]})],
    "the tests call f, g: 'entry_point' must name": [json.dumps({"text": "p", "test_list": ["assert f(g(1))"]})],
    "the tests call no function of its own": [json.dumps({"text": "p", "test_list": ["assert len([]) == 0"]})],
    "'input_output' is not JSON": [json.dumps({"question": "q", "input_output": "{"})],
    "'input_output' must be an object": [json.dumps({"question": "q", "input_output": data}) for data in ([], {}, "3")],
    "'input_output' has 1 inputs and 0 outputs": [
        json.dumps({"question": "q", "input_output": {"inputs": [""], "outputs": []}})
    ],
    "'input_output.outputs[0]' must be a text": [
        json.dumps({"question": "q", "input_output": {"inputs": [["1", "2"]], "outputs": [3]}})
    ],
    "'input_output' has 'fn_name'": [json.dumps({"question": "q", "input_output": {"fn_name": "f", "inputs": []}})],
    "'solutions' must be a list": [
        json.dumps({"question": "q", "input_output": {"inputs": [""], "outputs": [""]}, "solutions": "3"})
    ],
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_line_is_named(path: Path, said: str) -> None:
    for text in WRONG[said]:
        path.write_text(f"{line()}\n\n{text}\n{line()}\n")
        with pytest.raises(TaskError) as caught:
            make_env("CodeSandbox-v0", tasks=str(path))
        assert str(caught.value).startswith(f"{path}, line 3: ")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_wrong_lines_are_named_together_or_left_out_with_a_warning(path: Path) -> None:
    lines = [line(), "{", line(), line(level=0), *["3"] * 30]
    path.write_text("\n".join(lines))
    with pytest.raises(TaskError) as caught:
        load_code_tasks(path)
    said = str(caught.value)
    assert said.startswith(f"{path}, line 2: not JSON (")
    assert "; line 4: 'level' must be a whole number from 1; line 5: expected a JSON object; " in said
    assert said.endswith("; and 12 more (the other 2 lines are fine)")
    for _ in range(2):  # said again by each environment that leaves them out
        with pytest.warns(UserWarning, match="left out 32 of its tasks, line 2: not JSON .*; line 4: 'level' must be"):
            env = make_env("CodeSandbox-v0", tasks=str(path), skip_wrong_tasks=True)
        assert [task.task_id for task in env.unwrapped.task_set.fixed] == ["mine:1", "mine:3"]
    path.write_text("{")
    with pytest.raises(TaskError, match="line 1"):
        load_code_tasks(path, skip_wrong=True)


def test_gzipped_files_are_read(path: Path) -> None:
    zipped = path.with_name("mine.jsonl.gz")
    zipped.write_bytes(gzip.compress(line().encode()))
    assert [task.task_id for task in load_code_tasks(zipped)] == ["mine:1"]
    for data in (b"no gzip", gzip.compress(line().encode())[:-12]):
        zipped.write_bytes(data)
        with pytest.raises(TaskError, match="cannot read tasks"):
            load_code_tasks(zipped)


def test_files_that_cannot_be_read_are_one_line(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"\xff\xfe")
    for wrong, said in ((path, "not UTF-8"), (tmp_path / "no.jsonl", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(TaskError, match=said):
            load_code_tasks(wrong)
    path.write_text("\n\n")
    with pytest.raises(TaskError, match="holds no tasks"):
        load_code_tasks(path)


def test_what_an_agent_starts_from_need_not_be_python_and_other_keys_are_fine(path: Path) -> None:
    path.write_text(line(program="def double(x:", source="mine") + "\r\n" + line(prompt="a\u2028b") + "\r\n")
    first, second = load_code_tasks(path)
    assert first.public["program"] == "def double(x:"
    assert (first.task_id, second.task_id, second.prompt) == ("mine:1", "mine:2", "a\u2028b")


def test_a_changed_file_is_read_again_and_its_verdicts_are_not_those_of_the_old_one(path: Path) -> None:
    for factor in (2, 3):
        path.write_text(line(hidden_tests=[{"args": [5], "expected": 5 * factor}]) + " " * factor)
        env = make_env("CodeSandbox-v0", tasks=str(path))
        env.reset(seed=0)
        assert env.step("submit\ndef double(x):\n    return 2 * x")[1] == float(factor == 2)
        env.close()


def test_the_oracle_solves_a_file_of_its_own(path: Path) -> None:
    reference = "def double(x):\n    return x + x"
    path.write_text("\n".join([line(reference=reference), line(reference=reference, tests="assert double(3) == 6")]))
    for seed in range(2):
        env = make_env("CodeSandbox-v0", tasks=str(path))
        env.reset(seed=seed)
        assert env.step(f"submit\n{env.unwrapped.task.secret['reference']}")[1] == 1.0
        env.close()


def given(path: Path, split: str, **keywords: Any) -> list[Task]:
    """The tasks of a split."""
    return list(make_env("CodeSandbox-v0", tasks=str(path), split=split, **keywords).unwrapped.task_set.fixed)


def test_rows_say_which_split_they_are_for(path: Path) -> None:
    splits: list[dict[str, Any]] = [{}, {"split": "train"}, {"split": "heldout"}, {"split": "test"}]
    path.write_text("\n".join(line(prompt=f"p{number}", **split) for number, split in enumerate(splits)))
    assert [task.prompt for task in given(path, "train")] == ["p0", "p1"]
    assert [task.prompt for task in given(path, "heldout")] == ["p2", "p3"]
    assert given(path, "heldout", split_tasks=True) == given(path, "heldout")
    with pytest.raises(TaskError, match="none of the 4 given tasks is for split 'validation': give some"):
        given(path, "validation")
    env = make_env("CodeSandbox-v0", tasks=str(path))
    drawn = {env.reset(seed=seed, options={"split": "heldout"})[1]["task_id"] for seed in range(9)}
    assert drawn == {"mine:3", "mine:4"}
    with pytest.raises(TaskError, match="did you mean 'heldout'"):
        env.reset(options={"split": "held-out"})


def test_rows_that_name_no_split_are_dealt_out_for_training(path: Path) -> None:
    prompts = [f"Task {number}." for number in range(300)]

    def dealt(prompts: list[str]) -> dict[str, list[str]]:
        path.write_text("\n".join(line(prompt=prompt) for prompt in prompts))
        tasks = {split: given(path, split, split_tasks=True) for split in ("train", "validation", "heldout")}
        assert all(task.split == split for split, found in tasks.items() for task in found)
        return {split: [task.prompt for task in found] for split, found in tasks.items()}

    found = dealt(prompts)
    assert sorted(prompt for dealt_to in found.values() for prompt in dealt_to) == sorted(prompts)
    assert 15 <= len(found["heldout"]) <= 45
    assert 15 <= len(found["validation"]) <= 45
    others = dealt([*prompts[::-1], "Another."])
    assert set(others["heldout"]) - {"Another."} == set(
        found["heldout"]
    )  # whatever is added, tasks stay where they are
    assert len(given(path, "heldout")) == 301
    with pytest.raises(ConfigError, match="split_tasks=1: must be True or False"):
        make_env("CodeSandbox-v0", split_tasks=1)

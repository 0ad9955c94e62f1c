"""The task family `project`: what its repositories promise, and who can solve them."""

import subprocess
import sys

import pytest

from palaestra.agents.evaluation import EvalOptions, evaluate_scripted
from palaestra.core.tasks import SPLITS, TaskSet
from palaestra.envs.line_edits import numbered
from palaestra.envs.project_runner import InProcessRepositoryRunner
from palaestra.envs.tasks.project import FAMILIES
from palaestra.envs.tasks.project.generation import probes
from palaestra.envs.tasks.project.layout import SHAPES
from palaestra.envs.tasks.project.mistakes import mistakes_in
from palaestra.envs.tasks.project.reading import read_task
from palaestra.envs.tasks.project.templates import TEMPLATES

FAMILY = FAMILIES["project"]
RUNNER = InProcessRepositoryRunner()


def tasks(n: int, level: int = 0, split: str = "train", seed: int = 4):
    return TaskSet(split=split, families=(FAMILY,), levels=(level,) if level else ()).tasks(n, seed)  # type: ignore[arg-type]


def right_files(task) -> dict[str, str]:
    return {**task.public["files"], **task.secret["files"]}


def passes_hidden(task, files: dict[str, str]) -> bool:
    return RUNNER.grade(files, task.secret["tests"]).passed


def functions(task) -> str:
    """A program without its constants and readings: which template, and which parts in which order."""
    wish = read_task(task.prompt)
    return "|".join([wish.template.name, *(choice.part.name for choice in wish.choices)])


def outputs(task, files: dict[str, str] | None = None) -> str:
    """What a program does: what it gives on inputs of its kind."""
    module, function, _ = task.secret["tests"][0]["args"]
    calls = [[module, function, [value]] for value in probes(TEMPLATES[module].kind)]
    return repr(RUNNER.call(files or right_files(task), calls))


@pytest.mark.parametrize("n", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_the_oracle_solves_every_task_in_the_real_sandbox(n: int) -> None:
    result = evaluate_scripted("oracle", "ProjectSandbox-v0", EvalOptions(n=n, seed=5))
    assert (result.success, result.n, result.failures) == (1.0, n, 0)


@pytest.mark.parametrize("level", FAMILY.levels)
def test_repositories_fail_their_tests_and_the_right_one_passes_all(level: int) -> None:
    for task in tasks(60, level):
        files = task.public["files"]
        report = RUNNER.test(files)
        assert report.failures, "each mistake shows in a visible test"
        assert not passes_hidden(task, files)
        assert RUNNER.test(right_files(task)).passed
        assert passes_hidden(task, right_files(task))
        assert len(files) == SHAPES[level].modules + 1
        assert len(task.secret["kinds"]) == SHAPES[level].bugs


def test_a_failing_test_is_of_another_module_than_the_mistake() -> None:
    for task in tasks(100):
        main = task.secret["tests"][0]["args"][0]
        assert set(task.secret["files"]) - {f"{main}.py"}
        assert f"from {main} import" in task.public["files"][f"test_{main}.py"]


@pytest.mark.parametrize("level", [4, 6, 7])
def test_mending_one_of_several_mistakes_is_not_enough(level: int) -> None:
    for task in tasks(40, level):
        broken, fixed = task.public["files"], task.secret["files"]
        for path, text in fixed.items():
            wrong, right = broken[path].split("\n"), text.split("\n")
            for number, (old, new) in enumerate(zip(wrong, right, strict=True)):
                if old != new:
                    lines = [*wrong[:number], new, *wrong[number + 1 :]]
                    files = {**broken, path: "\n".join(lines)}
                    assert not passes_hidden(task, files)
                    assert RUNNER.test(files).failures


def test_a_wrong_change_to_a_line_does_not_pass_unless_it_does_the_same() -> None:
    lucky = tried = 0
    for task in tasks(40, 3, seed=9):
        wish, broken = read_task(task.prompt), task.public["files"]
        right = outputs(task)
        for path, text in broken.items():
            for line in wish.lines(path, numbered(text)):
                for other in (*line.right, *(wrong for _, wrong in mistakes_in(line.text))):
                    files = {**broken, path: text.replace(line.text, other, 1)}
                    if other == line.text or files == right_files(task) or not passes_hidden(task, files):
                        tried += other != line.text
                        continue
                    lucky += outputs(task, files) != right
    assert tried > 500
    assert lucky <= 0.002 * tried


@pytest.mark.parametrize("level", FAMILY.levels)
def test_equal_seeds_give_equal_tasks_and_ids_find_them_again(level: int) -> None:
    known = TaskSet(split="validation", families=(FAMILY,))
    for seed in range(5):
        task = FAMILY.generate(seed, "validation", level)
        assert task == FAMILY.generate(seed, "validation", level) == known.by_id(task.task_id)
        assert task.level == level


def test_tasks_are_the_same_in_another_process() -> None:
    code = "from palaestra.envs.tasks.project import FAMILIES\nprint(FAMILIES['project'].generate(11, 'train', 4))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == repr(FAMILY.generate(11, "train", 4))


def test_splits_share_no_sequence_of_several_parts_and_no_function() -> None:
    shapes: dict[str, set[str]] = {}
    behaviours: dict[str, set[str]] = {}
    for split in SPLITS:
        drawn = [*tasks(150, 1, split), *tasks(150, 2, split), *tasks(150, 0, split)]
        shapes[split] = {functions(task) for task in drawn if task.level > 1}
        behaviours[split] = {outputs(task) for task in drawn}
        assert {task.split for task in drawn} == {split}
        assert len(behaviours[split]) > 150
    for seen in (shapes, behaviours):
        assert seen["train"].isdisjoint(seen["heldout"])
        assert seen["train"].isdisjoint(seen["validation"])
        assert seen["validation"].isdisjoint(seen["heldout"])


def test_all_templates_and_all_kinds_of_mistakes_come_up() -> None:
    drawn = tasks(300)
    assert {task.secret["tests"][0]["args"][0] for task in drawn} == set(TEMPLATES)
    kinds = {kind for task in drawn for kind in task.secret["kinds"]}
    assert kinds == {
        "bound", "condition", "constant", "operator", "arguments", "result", "key", "slice", "reading",
    }  # fmt: skip


def test_hidden_inputs_are_not_the_visible_ones() -> None:
    shared = 0
    for task in tasks(100):
        main = task.secret["tests"][0]["args"][0]
        tests = task.public["files"][f"test_{main}.py"]
        shared += any(f"({case['args'][2][0]!r})" in tests for case in task.secret["tests"])
    assert shared <= 3


@pytest.mark.parametrize("level", FAMILY.levels)
def test_every_sentence_can_be_read_and_contradicts_exactly_the_lines_that_are_wrong(level: int) -> None:
    for task in tasks(40, level):
        wish = read_task(task.prompt)
        known = {*wish.files} if wish.files else {*task.public["files"]}
        assert known == {*task.public["files"]}
        for path, text in right_files(task).items():
            assert not [line for line in wish.lines(path, numbered(text)) if line.is_wrong], task.task_id
        contradicted = [
            line
            for path, text in task.public["files"].items()
            for line in wish.lines(path, numbered(text))
            if line.is_wrong
        ]
        readings = task.secret["kinds"].count("reading")
        assert len(contradicted) == len(task.secret["kinds"]) - readings, task.task_id

import ast
import builtins
import random
import subprocess
import sys

import pytest

from palaestra.agents.evaluation import EvalOptions, evaluate_scripted
from palaestra.agents.scripted import null_agent_names
from palaestra.core.seeding import derive_seed
from palaestra.core.tasks import SPLITS, TaskError, TaskSet
from palaestra.envs.program_runner import InProcessRunner
from palaestra.envs.tasks.code import FAMILIES
from palaestra.envs.tasks.code.operations import draw_inputs, outputs

RUNNER = InProcessRunner()
FAMILY_LEVELS = [(name, level) for name, family in FAMILIES.items() for level in family.levels]


def program_of(task) -> str:
    """What a task's function does: the reference, or the function that an input is asked for."""
    return task.public["prelude"] if task.family == "trace" else task.secret["reference"]


def shape_of(task) -> str:
    """A task's sequence of operations and reduction, without constants and readings."""
    text = program_of(task) if task.family == "trace" else task.prompt.split("Take x, ")[1].split(".")[0]
    return "".join(letter for letter in text if not letter.isdigit())


def graded(task, program: str) -> bool:
    return RUNNER.grade(program, task.public["entry_point"], task.secret["tests"], "").passed


@pytest.mark.parametrize("name", FAMILIES)
def test_the_oracle_solves_every_one_of_2000_tasks_in_the_real_sandbox(name: str) -> None:
    result = evaluate_scripted("oracle", "CodeSandbox-v0", EvalOptions(n=2000, seed=5, families=(name,)))
    assert (result.success, result.n, result.failures) == (1.0, 2000, 0)


def test_every_injected_bug_fails_hidden_tests() -> None:
    for task in TaskSet(split="train", families=(FAMILIES["repair"],)).tasks(500, seed=7):
        assert not graded(task, task.public["program"])
        assert task.public["program"] in task.prompt


@pytest.mark.parametrize(("name", "level"), FAMILY_LEVELS)
def test_equal_seeds_give_equal_tasks_and_ids_find_them_again(name: str, level: int) -> None:
    family = FAMILIES[name]
    tasks = TaskSet(split="validation", families=(family,))
    for seed in range(5):
        task = family.generate(seed, "validation", level)
        assert task == family.generate(seed, "validation", level) == tasks.by_id(task.task_id)
        assert task.level == level


def test_tasks_are_the_same_in_another_process() -> None:
    code = (
        "from palaestra.envs.tasks.code import FAMILIES\nfor f in FAMILIES.values(): print(f.generate(11, 'train', 3))"
    )
    printed = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(printed) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_splits_share_no_program(name: str) -> None:
    """What tells two tasks apart is their sequence of operations, whatever the constants and readings are."""
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        tasks = TaskSet(split=split, families=(FAMILIES[name],)).tasks(1000, seed=1)
        seen[split] = {shape_of(task) for task in tasks}
    assert not seen["train"] & seen["heldout"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["heldout"]


def test_splits_of_all_families_share_no_function() -> None:
    """What a program gives on a hundred inputs of the tasks' own kind stands for what it does."""
    inputs = draw_inputs(random.Random(5), 100, 6)
    seen: dict[str, set[int]] = {}
    for split in SPLITS:
        for family in FAMILIES.values():
            for task in TaskSet(split=split, families=(family,)).tasks(300, seed=1):
                lines = [line[4:] for line in program_of(task).split("\n")[1:]]
                seen.setdefault(split, set()).add(derive_seed(str(outputs(lines, inputs))))
    assert seen["heldout"].isdisjoint(seen["train"])
    assert seen["validation"].isdisjoint(seen["train"])
    assert seen["heldout"].isdisjoint(seen["validation"])


class Renamed(ast.NodeTransformer):
    """Names every variable by the place where it is first written or read."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def visit_Name(self, node: ast.Name) -> ast.Name:
        if node.id in vars(builtins):
            return node
        return ast.Name(self.names.setdefault(node.id, f"v{len(self.names)}"), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(self.names.setdefault(node.arg, f"v{len(self.names)}"))


def test_no_program_of_one_split_is_a_renamed_one_of_another() -> None:
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        for family in FAMILIES.values():
            for task in TaskSet(split=split, families=(family,)).tasks(250, seed=8):
                seen.setdefault(split, set()).add(ast.dump(Renamed().visit(ast.parse(program_of(task)))))
    assert seen["train"].isdisjoint(seen["heldout"])
    assert seen["train"].isdisjoint(seen["validation"])
    assert seen["validation"].isdisjoint(seen["heldout"])


def test_compose_has_exactly_the_ambiguous_phrases_of_its_level_and_cannot_be_guessed() -> None:
    family = FAMILIES["compose"]
    for level, (depth, ambiguous) in {1: (1, 1), 3: (2, 2), 5: (3, 2), 7: (4, 3)}.items():
        task = family.generate(3, "train", level)
        assert (task.public["depth"], task.public["ambiguous"]) == (depth, ambiguous)
        assert task.prompt.count(", ") == depth + 1


def test_hidden_inputs_are_not_the_visible_ones() -> None:
    for name, family in FAMILIES.items():
        if name == "trace":
            continue  # it has no tests: any input that gives the wanted value is right
        shared = 0
        for task in TaskSet(split="train", families=(family,)).tasks(200, seed=2):
            visible = [case["args"] for case in task.public["tests"] if case["args"] != [[]]]
            shared += any(case["args"] in visible for case in task.secret["tests"])
        assert shared <= 4, name


@pytest.mark.parametrize("name", FAMILIES)
def test_null_agents_score_at_most_two_percent(name: str) -> None:
    """In the real environment: the test reader looks through the memory of the process that it is graded in."""
    for agent in null_agent_names(name):
        options = EvalOptions(n=150, seed=9, families=(name,))
        assert evaluate_scripted(agent, "CodeSandbox-v0", options).success <= 0.02, agent


def test_bad_levels_and_ids_are_named() -> None:
    tasks = TaskSet(split="train", families=(FAMILIES["compose"],))
    with pytest.raises(TaskError, match=r"levels=9.*1\.\.7"):
        TaskSet(split="train", families=(FAMILIES["compose"],), levels=(9,))
    with pytest.raises(TaskError, match="did you mean 'compose'"):
        tasks.by_id("compse:train:1:3")
    with pytest.raises(TaskError, match="write 'family:split:level:seed'"):
        tasks.by_id("nonsense")

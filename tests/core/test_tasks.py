"""Task sets: draws by seed, lookup by id, errors that name the fix. Driven with a family of three lines."""

from collections import Counter
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palaestra.core.errors import TaskError
from palaestra.core.tasks import SPLITS, Split, Task, TaskSet, fixed_task_set, task_id_of


class Sums:
    """Adds two numbers; a level is a number of digits."""

    name = "sums"
    levels = (1, 2, 3)

    def generate(self, seed: int, split: Split, level: int) -> Task:
        task_id = task_id_of(self.name, split, level, seed)
        return Task(task_id=task_id, family=self.name, split=split, level=level, prompt=f"{seed} + {level}")


class Products(Sums):
    """Multiplies them."""

    name = "products"
    levels = (1, 2, 3, 4)


SET = TaskSet(split="train", families=(Sums(), Products()))
FIXED = [
    Task(task_id=name, family="mine", split="validation", level=1, prompt=name) for name in ("a", "odd id/7", "mine:1")
]


@given(st.integers(0, 2**63 - 1))
def test_a_seed_gives_one_task_which_its_id_finds_again(seed: int) -> None:
    task = SET.task(seed)
    assert task == SET.task(seed) == SET.by_id(task.task_id)
    assert task.split == "train"


def test_families_and_listed_levels_are_drawn_by_their_share() -> None:
    tasks = TaskSet(split="train", families=(Sums(), Products()), levels=(1, 2, 2, 3)).tasks(4000)
    levels, families = Counter(task.level for task in tasks), Counter(task.family for task in tasks)
    assert abs(levels[2] / 4000 - 1 / 2) < 0.04
    assert abs(levels[1] / 4000 - 1 / 4) < 0.04
    assert abs(families["sums"] / 4000 - 1 / 2) < 0.04
    both = Counter((task.family, task.level) for task in tasks)
    assert abs(both["sums", 2] / 4000 - 1 / 4) < 0.04, "level and family must be drawn independently"


def test_a_list_of_tasks_depends_on_its_seed_alone() -> None:
    assert SET.tasks(20, seed=1) == SET.tasks(30, seed=1)[:20]
    assert len({task.task_id for task in SET.tasks(50, seed=1) + SET.tasks(50, seed=2)}) == 100


def test_fixed_tasks_keep_their_order_and_are_found_by_id() -> None:
    fixed = fixed_task_set(FIXED, "validation")
    assert [task.task_id for task in fixed.tasks(4)] == ["a", "odd id/7", "mine:1", "a"]
    assert fixed.task(4).task_id == "odd id/7"
    assert fixed.by_id("odd id/7") is FIXED[1]
    with pytest.raises(TaskError, match="not among the 3 given tasks"):
        fixed.by_id("sums:train:1:1")


@pytest.mark.parametrize(
    ("task_id", "text"),
    [
        ("nonsense", "family:split:level:seed"),
        ("sums:train:1:-1", "family:split:level:seed"),
        ("summs:train:1:1", "did you mean 'sums'"),
        ("sums:tran:1:1", "did you mean 'train'"),
        ("sums:train:4:1", "levels 1..3"),
        ("sums:train:1:1\n", "family:split:level:seed"),
        ("sums:train:\uff11:1", "family:split:level:seed"),
        ("sums:train:1:" + "9" * 5000, "family:split:level:seed"),
        (None, "must be a text"),
    ],
)
def test_a_wrong_id_says_what_is_wrong(task_id: str, text: str) -> None:
    with pytest.raises(TaskError, match=text):
        SET.by_id(task_id)


def test_a_wrong_set_says_what_is_wrong() -> None:
    with pytest.raises(TaskError, match="did you mean 'heldout'"):
        TaskSet(split="held-out", families=(Sums(),))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TaskError, match=r"levels=4: family 'sums' has levels 1\.\.3"):
        TaskSet(split="train", families=(Products(), Sums()), levels=(4,))
    with pytest.raises(TaskError, match="at least one"):
        TaskSet(split="train")


def test_splits_are_the_three_of_the_field_and_tasks_are_frozen() -> None:
    assert SPLITS == ("train", "validation", "heldout")
    with pytest.raises(FrozenInstanceError):
        FIXED[0].prompt = "other"  # pyright: ignore[reportAttributeAccessIssue]

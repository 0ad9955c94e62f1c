"""Tasks, families that generate them, and task sets with splits.

A family is a pure function from (seed, split, level) to a task: infinitely many tasks, no files, and splits that are
disjoint by construction. A task's `public` part may be shown to the agent; its `secret` part is for graders and oracles
alone and never enters an agent's process.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

from .errors import TaskError, did_you_mean
from .seeding import derive_seed

Split = Literal["train", "validation", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)
_TASK_ID = re.compile(r"(?P<family>[\w.-]+):(?P<split>\w+):(?P<level>[0-9]{1,9}):(?P<seed>[0-9]{1,40})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem to solve.

    Example::

        Task(task_id="compose:train:2:17", family="compose", split="train", level=2,
             prompt="Take x, drop 2 items, then sum it.",
             public={"entry_point": "f", "tests": [{"args": [[1, 2, 3]], "expected": 3}]},
             secret={"tests": [...], "reference": "def f(x): ..."})
    """

    task_id: str
    family: str
    split: Split
    level: int
    """Difficulty, counted from 1; each family says what its levels are."""
    prompt: str
    """What the agent reads."""
    public: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """JSON data that the agent may see."""
    secret: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """JSON data for graders and oracles only: hidden tests, the reference solution."""


class TaskFamily(Protocol):
    """A generator of tasks; its name and its levels are ordinary attributes."""

    @property
    def name(self) -> str:
        """What task ids begin with."""
        ...

    @property
    def levels(self) -> tuple[int, ...]:
        """Difficulties, from the least."""
        ...

    def generate(self, seed: int, split: Split, level: int) -> Task:
        """Gives the one task of this seed; equal arguments give equal tasks in every process."""
        ...


def task_id_of(family: str, split: Split, level: int, seed: int) -> str:
    """The id under which `TaskSet.by_id` finds a generated task again."""
    return f"{family}:{split}:{level}:{seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSet:
    """Tasks of one split, drawn by seed from families (or from a fixed list).

    A level that is listed twice is drawn twice as often: `levels=(1, 2, 2, 3)`.
    """

    split: Split
    families: tuple[TaskFamily, ...] = ()
    levels: tuple[int, ...] = ()
    """Levels to draw from; empty means every level of the family."""
    fixed: tuple[Task, ...] = ()
    """Tasks given one by one (a file, say); when present, families are not used."""

    def __post_init__(self) -> None:
        _check_split(self.split)
        if not self.families and not self.fixed:
            raise TaskError("a task set needs at least one family or one task")
        for family in self.families:
            for level in self.levels:
                if level not in family.levels:
                    raise TaskError(
                        f"levels={level}: family {family.name!r} has levels {family.levels[0]}..{family.levels[-1]}"
                    )

    def task(self, seed: int) -> Task:
        """Gives the task of this seed: family and level are drawn by the seed too."""
        if self.fixed:
            return self.fixed[seed % len(self.fixed)]
        family = self.families[derive_seed(seed, "family") % len(self.families)]
        levels = self.levels or family.levels
        return family.generate(seed, self.split, levels[derive_seed(seed, "level") % len(levels)])

    def by_id(self, task_id: str) -> Task:
        """Gives the task with this id.

        Raises:
            TaskError: The id is malformed, of an unknown family, or not in the fixed list.
        """
        if not isinstance(task_id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TaskError(f"task_id={task_id!r}: must be a text")
        for task in self.fixed:
            if task.task_id == task_id:
                return task
        if not self.families:
            raise TaskError(f"task_id={task_id!r}: not among the {len(self.fixed)} given tasks")
        match = _TASK_ID.fullmatch(task_id)
        if match is None:
            raise TaskError(f"task_id={task_id!r}: write 'family:split:level:seed', such as 'compose:train:2:17'")
        by_name = {family.name: family for family in self.families}
        if match["family"] not in by_name:
            raise TaskError(f"task_id={task_id!r}: unknown family{did_you_mean(match['family'], by_name)}")
        split = match["split"]
        if split not in SPLITS:
            raise TaskError(f"task_id={task_id!r}: unknown split{did_you_mean(split, SPLITS)}")
        family, level = by_name[match["family"]], int(match["level"])
        if level not in family.levels:
            raise TaskError(f"task_id={task_id!r}: {family.name} has levels {family.levels[0]}..{family.levels[-1]}")
        return family.generate(int(match["seed"]), split, level)

    def tasks(self, n: int, seed: int = 0) -> list[Task]:
        """Gives `n` tasks drawn with consecutive derived seeds; fixed lists are given in order."""
        if self.fixed:
            return [self.fixed[i % len(self.fixed)] for i in range(n)]
        return [self.task(derive_seed(seed, "tasks", i)) for i in range(n)]


def fixed_task_set(tasks: Sequence[Task], split: Split, *, deal: bool = False) -> TaskSet:
    """A task set over a given list of tasks.

    Where tasks are of several splits, it has those of `split`. Where all are of one, it has all of them; with `deal`
    its share, by a hash of their prompts: a tenth for validation, a tenth held out, the rest to train on.

    Raises:
        TaskError: No task is left for this split, or there is no such split.
    """
    _check_split(split)
    if len({task.split for task in tasks}) > 1:
        chosen = [task for task in tasks if task.split == split]
    elif deal:
        dealt = [task for task in tasks if _dealt(task) == split]
        chosen = [task if task.split == split else replace(task, split=split) for task in dealt]
    else:
        chosen = list(tasks)
    if tasks and not chosen:
        raise TaskError(f'none of the {len(tasks)} given tasks is for split {split!r}: give some "split": "{split}"')
    return TaskSet(split=split, fixed=tuple(chosen))


def _check_split(split: object) -> None:
    if split not in SPLITS:
        raise TaskError(f"split={split!r}{did_you_mean(str(split), SPLITS)}")


def _dealt(task: Task) -> Split:
    tenth = zlib.crc32(task.prompt.encode()) % 10
    return "heldout" if tenth == 0 else "validation" if tenth == 1 else "train"

"""Tasks are found again by id, are not in two splits, and keep their secrets."""

from __future__ import annotations

import json

from .bench import Bench, Skip, check, content, expect, plain, shown

SECRET_LENGTH = 12
"""Characters from which on a secret is looked for in what the agent sees; a shorter one may well occur by chance."""
SPLIT_TASKS = 200


@check("Name tasks with task_id_of(family, split, level, seed), and make generate() a pure function of these.")
def _finds_tasks_by_id(bench: Bench) -> None:
    for family in bench.families():
        with bench.family(family) as env:
            observation, info = env.reset(seed=5)
            for _ in range(2):
                try:
                    again, other = env.reset(seed=6, options={"task_id": info["task_id"]})
                except ValueError as error:
                    expect(False, f"reset(options={{'task_id': {info['task_id']!r}}}) raised {error}")
                    return
                expect(other["task_id"] == info["task_id"], f"task {info['task_id']!r} came as {other['task_id']!r}")
                expect(again == observation, f"options task_id={info['task_id']!r} gave another task")


@check("Let the split decide what is drawn (disjoint words, programs, sums), not the seed alone.")
def _keeps_splits_apart(bench: Bench) -> None:
    for family in bench.families():
        seen: dict[str, str] = {}
        for split in ("train", "validation", "heldout"):
            with bench.family(family, split=split) as env:
                tasks = plain(env).task_set
                if tasks.fixed:
                    raise Skip("the tasks come from a file")
                drawn = tasks.tasks(SPLIT_TASKS)
            for task in drawn:
                expect(task.split == split, f"split={split!r} gave {task.task_id!r}, whose split is {task.split!r}")
                other = seen.setdefault(content(task), task.task_id)
                expect(f":{split}:" in other, f"{task.task_id!r} is the same as {other!r}")


@check("Put into prompt, public and info nothing from which the secret part can be read.")
def _keeps_secrets(bench: Bench) -> None:
    for family in bench.families():
        with bench.family(family) as env:
            for seed in range(5):
                observation, info = env.reset(seed=seed)
                in_info = json.dumps(info, default=str)
                for name, value in plain(env).task.secret.items():
                    text = value if isinstance(value, str) else json.dumps(value)
                    if len(text) < SECRET_LENGTH:
                        continue
                    leaks = text in observation or json.dumps(text)[1:-1] in in_info
                    expect(not leaks, f"task {info['task_id']} shows its secret {name!r}: {shown(text)}")


CHECKS = (_finds_tasks_by_id, _keeps_splits_apart, _keeps_secrets)

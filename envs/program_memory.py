"""What identical programs on identical tasks gave before; a GRPO group repeats many of them.

Only results of fresh sessions are kept: verdicts, and the first run of a session. They are a function of task and
program, up to randomness that the program draws itself: such a program gets the first draw again. What depends on the
machine's load (a time-out, say) is never kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Result = TypeVar("Result")
SIZE = 20_000
"""Results that one process remembers of each kind."""


class ProgramMemory(Generic[Result]):
    """A bounded map from (scope, task, program) to a result; the one that was not asked for longest is forgotten first.

    Args:
        size: Greatest number of results.
    """

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._results: OrderedDict[Hashable, Result] = OrderedDict()
        self._lock = threading.Lock()  # environments of one vector share a memory and step in threads

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: Hashable) -> Result | None:
        """Gives what is remembered, or None."""
        with self._lock:
            result = self._results.get(key)
            if result is not None:
                self._results.move_to_end(key)
            return result

    def put(self, key: Hashable, result: Result) -> None:
        """Remembers a result."""
        with self._lock:
            self._results[key] = result
            if len(self._results) > self._size:
                self._results.popitem(last=False)

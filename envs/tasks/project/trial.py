"""Runs programs that are made of blocks of our own, in this process; used to make tasks, never for an agent's code."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from types import CodeType
from typing import Any

from .layout import Block

RAISED = "raised "


class Trial:
    """A program whose blocks can be replaced one by one.

    Args:
        blocks: All functions and constants; names are unique in all modules together.
        function: The main one.
    """

    def __init__(self, blocks: Sequence[Block], function: str) -> None:
        self._names: dict[str, Any] = {}
        self._function = function
        for block in blocks:
            self.put(block)

    def put(self, block: Block) -> None:
        """Defines a block, instead of what it was."""
        exec(_compiled("\n".join(block.lines)), self._names)

    def output(self, value: Any) -> Any:
        """What the program gives for an input; text that begins with `RAISED` for an exception."""
        try:
            return self._names[self._function](value)
        except Exception as error:
            return RAISED + type(error).__name__


@functools.lru_cache(maxsize=50_000)
def _compiled(text: str) -> CodeType:
    return compile(text, "block", "exec")


def as_json(value: Any) -> Any:
    """A value as it is once it has crossed as JSON: tuples are lists."""
    return json.loads(json.dumps(value))

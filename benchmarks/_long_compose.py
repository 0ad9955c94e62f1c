"""`LongCompose-v0`: `compose` tasks that take ten turns and more, for `horizon.py`.

    level 7    4 operations, 3 ambiguous phrases     a careful expert takes 5 turns on average
    level 8    5 operations, 4 ambiguous phrases     8
    level 9    6 operations, 5 ambiguous phrases     15, up to 40

Every ambiguous phrase has two readings, which only running can tell apart, and the tests tell little of a program with
two wrong ones: reading after reading has to be tried, and nothing handed in before. Level 7 is `compose`'s own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from palaestra.core.tasks import TaskSet
from palaestra.envs.code_sandbox import CodeSandboxEnv
from palaestra.envs.tasks.code.compose import SHAPES, ComposeFamily


class LongCompose(ComposeFamily):
    """`compose` with more operations and more ambiguous phrases."""

    shapes = {7: SHAPES[7], 8: (5, 4), 9: (6, 5)}  # noqa: RUF012
    levels = tuple(shapes)


class LongComposeEnv(CodeSandboxEnv):
    """`CodeSandbox-v0` with these tasks."""

    def __init__(
        self, *, families: Sequence[str] = (), levels: Sequence[int] | None = None, split: Any = "train", **more: Any
    ) -> None:
        super().__init__(split=split, **more)
        family = LongCompose()
        self._families = {family.name: family}
        self.task_set = TaskSet(split=split, families=(family,), levels=tuple(levels or ()))


if "LongCompose-v0" not in gym.registry:
    gym.register(id="LongCompose-v0", entry_point=LongComposeEnv, disable_env_checker=True, order_enforce=False)

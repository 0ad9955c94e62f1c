"""An environment that any text can please, for models that have learned nothing: it counts letters, for three turns."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from palaestra.core.tasks import Split, Task, task_id_of
from palaestra.envs.base import ToolEnv
from palaestra.envs.options import EnvOptions
from palaestra.envs.tools import tool
from palaestra.rewards.base import Grade


class Letters:
    """Which letters please."""

    name, levels = "letters", (1,)

    def generate(self, seed: int, split: Split, level: int) -> Task:
        letters = "abcdefghijklmnopqrstuvwxyz"
        wanted = letters[seed % 5 :: 3]
        return Task(
            task_id=task_id_of(self.name, split, level, seed),
            family=self.name,
            split=split,
            level=level,
            prompt=f"say {wanted}",
            secret={"wanted": wanted},
        )


class ListeningEnv(ToolEnv):
    """The reward is the share of wanted letters in everything that was said."""

    def __init__(self, **keywords: Any) -> None:
        keywords.setdefault("prompt_style", "compact")
        super().__init__(EnvOptions(**{"max_turns": 3, **keywords}), {"letters": Letters()})

    @tool
    def say(self, words: str) -> str:
        """Say something.

        Args:
            words: What to say.
        """
        return words

    def _start(self, task: Task) -> None:
        self.said = ""

    def _perform(self, action: str) -> tuple[str, str | None]:
        self.said += action
        return f"heard {len(action)}", None

    def _grade(self) -> Grade:
        letters = [letter for letter in self.said.lower() if letter.isascii() and letter.isalpha()]
        share = sum(letter in self.task.secret["wanted"] for letter in letters) / max(1, len(letters))
        return Grade(reward=share, success=share > 0.5)


if "Listening-v0" not in gym.registry:
    gym.register(id="Listening-v0", entry_point=ListeningEnv, disable_env_checker=True, order_enforce=False)

"""A small environment of our own, made with ToolEnv: say the word that belongs to a colour."""

from __future__ import annotations

import random
from typing import Any

import gymnasium as gym

from palaestra.core.seeding import derive_seed
from palaestra.core.tasks import Split, Task, task_id_of
from palaestra.envs.base import ToolEnv
from palaestra.envs.options import EnvOptions
from palaestra.envs.tools import tool
from palaestra.rewards.base import Grade

COLOURS = ("red", "green", "blue", "white", "black", "grey", "pink", "brown")
WORDS = ("stone", "river", "cloud", "tiger")


class Words:
    """Each colour belongs to one word; the second half of the prompt is noise that splits keep apart."""

    name = "words"
    levels = (1,)

    def generate(self, seed: int, split: Split, level: int) -> Task:
        rng = random.Random(derive_seed("words", split, seed))
        colour = rng.choice(COLOURS)
        noise = rng.choice("abc" if split == "train" else "xyz")
        return Task(
            task_id=task_id_of(self.name, split, level, seed),
            family=self.name,
            split=split,
            level=level,
            prompt=f"{colour} {noise}",
            secret={"word": WORDS[COLOURS.index(colour) % len(WORDS)]},
        )


class WordEnv(ToolEnv):
    """One turn is enough; the reward is 1 for the right word."""

    def __init__(self, *, split: str = "train", on_failure: str = "raise", **more: Any) -> None:
        super().__init__(
            EnvOptions(split=split, on_failure=on_failure, prompt_style="compact", **more), {"words": Words()}
        )

    @tool
    def say(self, word: str) -> str:
        """Say a word; the episode ends.

        Args:
            word: The word.
        """
        right = word.strip() == self.task.secret["word"]
        self._submit(Grade(reward=float(right), success=right))
        return "right" if right else "wrong"

    def _start(self, task: Task) -> None:
        """There is no state."""


if "Words-v0" not in gym.registry:
    gym.register(id="Words-v0", entry_point=WordEnv, disable_env_checker=True, order_enforce=False)

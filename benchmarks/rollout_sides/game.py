"""The game that both sides play: guess a code of twelve digits. It never ends early: turns are as many as asked for.

A call guesses one code, or several, each after its letter: so episodes of the same length can have few turns or many.
Here are the rules, once, and what each side makes of them: a `ToolEnv` for Palaestra, a class with a `reset` and a
tool for TRL's `environment_factory`. Prompt, tool schema and answers are equal, token by token.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import string
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym

from palaestra.envs import EnvOptions, Grade, Split, Task, ToolEnv, task_id_of, tool

ID = "rollout_sides.game:Codebreaker-v0"
DIGITS = 12
PROMPT = (
    "There is a secret code of twelve digits. Guess it, {pace}, and use what you are told about each "
    "guess. The sum of its digits is {sum}, and the first of them are {start}."
)


def prompt_of(secret: str, codes: int = 1) -> str:
    """The task: guess this secret, with so many codes in every call."""
    pace = (
        "one call at a time" if codes == 1 else f"with the codes a to {string.ascii_lowercase[codes - 1]} in each call"
    )
    return PROMPT.format(pace=pace, sum=sum(map(int, secret)), start=" ".join(secret[:4]))


def draw_secret(rng: random.Random) -> str:
    return "".join(rng.choice("0123456789") for _ in range(DIGITS))


def answer(secret: str, code: str) -> str:
    """What is said about a call: about its code, or about each of its codes, after its letter."""
    several = re.findall("([a-z])([0-9]*)", code)
    if several:
        return "; ".join(f"{letter}: {answer(secret, digits)}" for letter, digits in several)
    right = matching(secret, code)
    place = right.index(False) + 1 if False in right else len(right)
    return f"{sum(right)} of {DIGITS} digits are right, and digit number {place} is the first that is not"


def matching(secret: str, code: str) -> list[bool]:
    return [a == b for a, b in zip(secret, code, strict=False)]


def share(secret: str, code: str) -> float:
    """Share of the secret that a call's best code has right."""
    return max(matching(secret, digits).count(True) / DIGITS for digits in re.split("[a-z]", code))


def guess_of(codes: Sequence[str]) -> str:
    """The argument of a call."""
    if len(codes) == 1:
        return codes[0]
    return "".join(letter + code for letter, code in zip(string.ascii_lowercase, codes, strict=False))


def call_text(code: str) -> str:
    """How a model of the Qwen3 family writes a call."""
    return f"<tool_call>\n{json.dumps({'name': 'guess', 'arguments': {'code': code}})}\n</tool_call>"


# -- Palaestra ------------------------------------------------------------------------------------------------------


class Codes:
    """The task family."""

    name = "codes"
    levels = (1,)

    def __init__(self, codes: int) -> None:
        self._codes = codes

    def generate(self, seed: int, split: Split, level: int) -> Task:
        """Gives the task of this seed."""
        secret = draw_secret(random.Random(f"{seed} {split}"))
        return Task(
            task_id=task_id_of(self.name, split, level, seed), family=self.name, split=split, level=level,
            prompt=prompt_of(secret, self._codes), secret={"code": secret},
        )  # fmt: skip


class CodebreakerEnv(ToolEnv):
    """The game as an environment of Palaestra; `tool_s` is how long a call takes (seconds), `codes` what it guesses."""

    def __init__(self, *, tool_s: float = 0.0, codes: int = 1, **keywords: Any) -> None:
        super().__init__(EnvOptions(**{"parser": "tool_call", **keywords}), {"codes": Codes(codes)})
        self._tool_s = tool_s

    def _start(self, task: Task) -> None:
        self._best = 0.0

    @tool
    def guess(self, code: str) -> str:
        """Guess the secret code.

        Args:
            code: Twelve digits, or several such codes, each after its letter.
        """
        if self._tool_s:
            time.sleep(self._tool_s)
        secret = self.task.secret["code"]
        self._best = max(self._best, share(secret, code))
        return answer(secret, code)

    def _grade(self) -> Grade:
        return Grade(reward=self._best, success=self._best == 1.0, components={"digits": self._best})

    def oracle_actions(self) -> Iterator[str]:
        """Guesses the code."""
        yield call_text(self.task.secret["code"])


gym.register(id="Codebreaker-v0", entry_point=CodebreakerEnv)


# -- TRL ------------------------------------------------------------------------------------------------------------


def trl_factory(tool_s: float, asynchronous: bool) -> type:
    """The game as TRL's `environment_factory` wants it."""

    class Codebreaker:
        def reset(self, secret: str, **_: Any) -> None:
            self.secret, self.best = secret, 0.0

        def get_reward(self) -> float:
            return self.best

    def answered(self: Any, code: str) -> str:
        self.best = max(self.best, share(self.secret, code))
        return answer(self.secret, code)

    if asynchronous:

        async def guess(self: Any, code: str) -> str:
            await asyncio.sleep(tool_s)
            return answered(self, code)
    else:

        def guess(self: Any, code: str) -> str:
            if tool_s:
                time.sleep(tool_s)
            return answered(self, code)

    guess.__doc__ = CodebreakerEnv.guess.__doc__
    guess.__annotations__ = {"code": str}  # without "return", which would be in the schema
    Codebreaker.guess = guess  # type: ignore[attr-defined]
    return Codebreaker

"""An environment of one's own: ask for prices, then pay the exact sum. Two tools, a state and a grader.

From this folder:

    palaestra check own_environment:Market-v0          # does it keep the contract?
    palaestra envs  own_environment:Market-v0          # tools, families, keywords
    palaestra demos own_environment:Market-v0 -n 100 -o market.jsonl
    palaestra eval  own_environment:Market-v0 --agent hasty
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import gymnasium as gym

from palaestra.envs import EnvOptions, Grade, ParseError, Script, Split, Task, ToolEnv, task_id_of, tool

GOODS = ("apple", "bread", "cheese", "eggs", "honey", "milk", "salt", "tea")
RESIDUES = {"train": 0, "validation": 1, "heldout": 2}


class Baskets:
    """Level = number of goods. The sum modulo 3 tells the splits apart, so that no answer is in two of them."""

    name = "baskets"
    levels = (1, 2, 3)

    def generate(self, seed: int, split: Split, level: int) -> Task:
        """Gives the task of this seed."""
        rng = random.Random(f"{seed} {split} {level}")
        prices = {name: rng.randint(10, 99) for name in rng.sample(GOODS, level)}
        while sum(prices.values()) % 3 != RESIDUES[split]:
            prices[next(iter(prices))] = rng.randint(10, 99)
        return Task(
            task_id=task_id_of(self.name, split, level, seed), family=self.name, split=split, level=level,
            prompt=f"Buy {', '.join(prices)}. Ask for prices, then pay the exact sum.", secret={"prices": prices},
        )  # fmt: skip


class MarketEnv(ToolEnv):
    """A market stall."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(EnvOptions(**keywords), {"baskets": Baskets()})

    def _start(self, task: Task) -> None:
        self._asked: set[str] = set()

    @tool
    def price(self, name: str) -> str:
        """Ask what something costs.

        Args:
            name: One of the goods.
        """
        prices = self.task.secret["prices"]
        if name not in prices:
            raise ParseError(f"error: we have no {name[:20]!r}; ask for {' or '.join(prices)}")
        self._asked.add(name)
        return f"{name} costs {prices[name]}, {len(prices) - len(self._asked)} to ask for"

    @tool
    def pay(self, amount: int) -> str:
        """Pay; the episode ends.

        Args:
            amount: The sum of all prices.
        """
        exact = amount == sum(self.task.secret["prices"].values())
        self._submit(Grade(reward=float(exact), success=exact, components={"exact": float(exact)}))
        return "thank you" if exact else "that is not the sum"

    # Who can play it: the oracle sees the answer, experts see observations only. For checks and demonstrations.
    def oracle_actions(self) -> Iterator[str]:
        """Pays the sum."""
        yield f"pay {sum(self.task.secret['prices'].values())}"


def careful(observation: str, rng: random.Random) -> Script:
    """Asks for every price."""
    total = 0
    for name in re.findall(r"Buy (.+?)\.", observation)[0].split(", "):
        answer = yield f"price {name}"
        total += int(re.findall(r"costs (\d+)", answer)[0])
    yield f"pay {total}"


def hasty(observation: str, rng: random.Random) -> Script:
    """Pays a guess."""
    yield f"pay {rng.randint(10, 99)}"


MarketEnv.experts = {"careful": careful, "hasty": hasty}
gym.register(id="Market-v0", entry_point=MarketEnv)

"""Environments that are wrong on purpose, each in one way; their ids are `BrokenNAME-v0`. A test finds them all out."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from own_environment import Baskets, MarketEnv

from palaestra.core.errors import EnvironmentFailure, SandboxDied
from palaestra.envs import EnvOptions, Grade, Script, Task, ToolEnv, tool


class Plain(gym.Env[int, int]):
    """Is no ToolEnv."""

    observation_space = action_space = gym.spaces.Discrete(2)


class Families(ToolEnv):
    """The market with another family of tasks."""

    family: Any = Baskets()
    _start, price, pay, oracle_actions = (
        MarketEnv._start, MarketEnv.price, MarketEnv.pay, MarketEnv.oracle_actions
    )  # fmt: skip

    def __init__(self, **keywords: Any) -> None:
        super().__init__(EnvOptions(**keywords), {"baskets": self.family})


class Stubborn(MarketEnv):
    """Has its own idea of how many turns there are."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**{**keywords, "max_turns": 7})


class Permissive(MarketEnv):
    """Swallows every keyword."""

    def __init__(self, **keywords: Any) -> None:
        shared = EnvOptions.__dataclass_fields__
        super().__init__(**{name: value for name, value in keywords.items() if name in shared})


class Undocumented(MarketEnv):
    """Has a tool whose argument nobody explains."""

    @tool
    def weigh(self, thing: str) -> str:
        """Put something on the scales."""
        return f"{thing} has no weight"


class ClosesOnce(MarketEnv):
    def close(self) -> None:
        assert not hasattr(self, "gone")
        self.gone = True


class Dice(MarketEnv):
    """Draws its first observation from nowhere."""

    def reset(self, **keywords: Any) -> Any:
        observation, info = super().reset(**keywords)
        return observation + str(random.random()), info


class Clock(MarketEnv):
    """Tells the time in its answers."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        text = f"{observation} [{time.perf_counter_ns()}]"
        return text, reward, terminated, truncated, {**info, "messages": [{"role": "tool", "content": text}]}


class Hashing(MarketEnv):
    """Answers in an order that each process has for itself."""

    @tool
    def goods(self) -> str:
        """List what there is."""
        return " ".join({"apple", "bread", "cheese", "eggs", "honey", "milk", "salt", "tea"})


class Memory(MarketEnv):
    """Never forgets what was asked."""

    asked: set[str]

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.calls = 0

    @tool
    def count(self) -> str:
        """Count the calls of this tool."""
        self.calls += 1
        return f"{self.calls} calls"


class Shared(MarketEnv):
    """Keeps its state in the class."""

    calls = 0

    def _start(self, task: Task) -> None:
        super()._start(task)
        Shared.calls = 0

    @tool
    def count(self) -> str:
        """Count the calls of this tool."""
        Shared.calls += 1
        return f"{Shared.calls} calls"


class OneTask(Families):
    """Has the same task for every seed."""

    class family(Baskets):  # noqa: N801
        def generate(self, seed: int, split: Any, level: int) -> Task:
            task = super().generate(7, split, 1)
            return replace(task, task_id=f"baskets:{split}:{level}:{seed}", level=level)

    family = family()  # type: ignore[assignment]


class Seeder(MarketEnv):
    """Seeds everybody's randomness."""

    def _start(self, task: Task) -> None:
        super()._start(task)
        random.seed(0)


class NumpySeeder(MarketEnv):
    def _start(self, task: Task) -> None:
        super()._start(task)
        np.random.seed(0)


class Nameless(Families):
    """Has ids under which no task is found again."""

    class family(Baskets):  # noqa: N801
        def generate(self, seed: int, split: Any, level: int) -> Task:
            return replace(super().generate(seed, split, level), task_id=f"basket {seed}")

    family = family()  # type: ignore[assignment]


class Leaky(Families):
    """Has the same tasks in every split."""

    class family(Baskets):  # noqa: N801
        def generate(self, seed: int, split: Any, level: int) -> Task:
            other = super().generate(seed % 50, "train", level)
            return replace(other, task_id=f"baskets:{split}:{level}:{seed}", split=split)

    family = family()  # type: ignore[assignment]


class Blabber(MarketEnv):
    """Tells what is secret."""

    def reset(self, **keywords: Any) -> Any:
        observation, info = super().reset(**keywords)
        return observation, {**info, "hint": str(self.task.secret["prices"]).replace("'", '"')}


class Terse(MarketEnv):
    """Has infos of its own."""

    def step(self, action: str) -> Any:
        *answer, info = super().step(action)
        return *answer, {name: info[name] for name in info if name != "stop_reason"}


class Early(MarketEnv):
    """Says how it went before it is over."""

    def step(self, action: str) -> Any:
        *answer, info = super().step(action)
        return *answer, {**info, "success": bool(info["success"])}


class Doubletongued(MarketEnv):
    """Tells models something else than its callers."""

    def step(self, action: str) -> Any:
        *answer, info = super().step(action)
        return *answer, {**info, "messages": [{"role": "tool", "content": "nothing to say"}]}


class Arrays(MarketEnv):
    """Puts arrays into infos."""

    def step(self, action: str) -> Any:
        *answer, info = super().step(action)
        return *answer, {**info, "scores": np.zeros(3)}


class Aliases(MarketEnv):
    """Gives away a list that it goes on using."""

    def _start(self, task: Task) -> None:
        super()._start(task)
        self.heard: list[str] = []

    def step(self, action: str) -> Any:
        *answer, info = super().step(action)
        self.heard.append("something")
        return *answer, {**info, "heard": self.heard}


class Fragile(MarketEnv):
    """Falls over what agents write."""

    @tool
    def halve(self, amount: int) -> str:
        """Divide.

        Args:
            amount: By what.
        """
        return str(100 // (amount - 1))


class NumpyBools(MarketEnv):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, np.bool_(terminated), truncated, info


class Silent(MarketEnv):
    """Does not say what was wrong."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        text = "?" if info["parse_error"] else observation
        messages = [{"role": "tool", "content": text}]
        return text, reward, terminated, truncated, {**info, "messages": messages}


class Truncating(MarketEnv):
    """Takes the turn budget for a limit from outside."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        late = info["stop_reason"] == "turn_limit"
        return observation, reward, terminated and not late, truncated or late, info


class Twice(MarketEnv):
    """Ends in two ways at once."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, terminated, info


class Limited(MarketEnv):
    """Is registered with a limit of Gymnasium's, which truncates."""

    max_episode_steps = 3


class Undead(MarketEnv):
    """Goes on after its end."""

    def step(self, action: str) -> Any:
        try:
            return super().step(action)
        except gym.error.ResetNeeded:
            return "still here", 0.0, True, False, {}


class Denying(MarketEnv):
    """Makes a zero of a sandbox that died."""

    def step(self, action: str) -> Any:
        try:
            return super().step(action)
        except EnvironmentFailure:
            return "something went wrong", 0.0, True, False, {"success": False}


class Forgiving(MarketEnv):
    """Rewards what died."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, 0.0 if truncated else reward, terminated, truncated, info


class Optimist(MarketEnv):
    """Does not tell that it could not start."""

    def reset(self, **keywords: Any) -> Any:
        observation, info = super().reset(**keywords)
        return observation, {**info, "failure": None}


class NoOracle(MarketEnv):
    oracle_actions = ToolEnv.oracle_actions


class Unsolvable(MarketEnv):
    """Grades what nobody can hand in."""

    def oracle_actions(self) -> Iterator[str]:
        yield "pay 0" if len(self.task.secret["prices"]) == 3 else f"pay {sum(self.task.secret['prices'].values())}"


class Generous(MarketEnv):
    """Pays for good manners."""

    @tool
    def thank(self) -> str:
        """Say thank you."""
        self._submit(Grade(reward=0.3, success=False))
        return "you are welcome"


def lost(observation: str, rng: random.Random) -> Script:
    raise KeyError("no idea")
    yield ""


class LostExpert(MarketEnv):
    experts = {"lost": lost}  # noqa: RUF012


class Inflation(MarketEnv):
    """Rewards more than it says."""

    def step(self, action: str) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, 10 * reward, *rest


class Upside(MarketEnv):
    """Pays failures as well as successes."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        lost = terminated and not info["success"] and info["stop_reason"] == "submitted"
        return observation, 1.0 if lost else reward, terminated, truncated, info


class SharedCopies(MarketEnv):
    """Gives copies that share what was asked."""

    can_fork = True

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**{"levels": [3], **keywords})

    def _fork_into(self, copies: Any) -> None:
        for one in copies:
            one._asked = self._asked


class Slow(MarketEnv):
    def _start(self, task: Task) -> None:
        super()._start(task)
        time.sleep(1.1)


class Sleepy(MarketEnv):
    """Waits in each step for what never comes."""

    def step(self, action: str) -> Any:
        threading.Event().wait()


class Dozing(MarketEnv):
    """Waits so once, and never again."""

    has_dozed = False

    def step(self, action: str) -> Any:
        if not Dozing.has_dozed:
            Dozing.has_dozed = True
            threading.Event().wait()
        return super().step(action)


class Unpicklable(MarketEnv):
    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle this")


class DiesAtOnce(MarketEnv):
    """Cannot be made at all."""

    def __init__(self, **keywords: Any) -> None:
        raise KeyError("MARKET_HOME")


class Swallowing(MarketEnv):
    """Hides failures of infrastructure from ToolEnv."""

    def _retried(self, act: Any) -> Any:
        try:
            return act()
        except SandboxDied:
            return "try again"


for kind in [one for one in list(globals().values()) if isinstance(one, type) and issubclass(one, gym.Env)]:
    if kind.__module__ == __name__:
        gym.register(
            id=f"Broken{kind.__name__}-v0", entry_point=kind, max_episode_steps=getattr(kind, "max_episode_steps", None)
        )

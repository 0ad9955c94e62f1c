"""Many environments side by side, without lockstep: whoever has an answer is heard at once.

`send_reset` / `send` hand work to environments by their number, `recv` gives what has come back. The standard vector
`reset` and `step` are there too; episodes that ended are not reset by themselves (autoreset mode DISABLED), but by
`reset(options={"reset_mask": ...})`.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ..core.tasks import TaskSet

Info = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one environment answered to a reset or a step."""

    id: int
    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: Info


class ToolVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """A vector of environments that step in threads, or in the caller's own thread.

    Args:
        makers: One callable per environment.
        workers: Threads; None = one per environment, at most 32; 0 = work is done inside `send`, which is fastest
            when tools take less than a millisecond.
    """

    def __init__(self, makers: Sequence[Callable[[], Any]], workers: int | None = None) -> None:
        if not makers:
            raise ValueError("num_envs=0: must be at least 1")
        self.envs = [make() for make in makers]
        self.num_envs = len(self.envs)
        self.metadata = {**self.envs[0].metadata, "autoreset_mode": AutoresetMode.DISABLED}
        self.render_mode = self.envs[0].render_mode
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.spec = None
        threads = min(32, self.num_envs) if workers is None else workers
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="palaestra-env") if threads else None
        self._answers: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        self._under_way = 0

    @property
    def task_set(self) -> TaskSet:
        """The tasks that the environments draw from."""
        return self.envs[0].unwrapped.task_set

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools' schemas."""
        return self.envs[0].unwrapped.tools

    # ---------------------------------------------------------------------------------- without lockstep
    def send_reset(
        self,
        ids: Sequence[int],
        seeds: Sequence[int | None] | None = None,
        options: Sequence[dict[str, Any] | None] | None = None,
    ) -> None:
        """Starts an episode in each of these environments."""
        for i, number in enumerate(ids):
            seed, option = seeds[i] if seeds else None, options[i] if options else None
            self._submit(lambda number=number, seed=seed, option=option: self._reset_one(number, seed, option))

    def send(self, actions: Sequence[str], ids: Sequence[int]) -> None:
        """Hands one action to each of these environments."""
        for action, number in zip(actions, ids, strict=True):
            self._submit(lambda action=action, number=number: self._step_one(number, action))

    def recv(self, min_n: int = 1, timeout_s: float | None = None) -> list[Outcome]:
        """Gives at least `min_n` outcomes (fewer when fewer are under way, or when time is up), oldest first.

        Raises:
            Exception: What an environment raised.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        outcomes: list[Outcome] = []
        wanted = min(min_n, self._under_way)
        while len(outcomes) < wanted or not self._answers.empty():
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                answer = self._answers.get(timeout=left) if len(outcomes) < wanted else self._answers.get_nowait()
            except queue.Empty:
                break
            self._under_way -= 1
            if isinstance(answer, BaseException):
                raise answer
            outcomes.append(answer)
        return outcomes

    # --------------------------------------------------------------------------------- Gymnasium's own API
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], Info]:
        """Resets all environments, or those in `options["reset_mask"]`; the others keep their last observation."""
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, dtype=bool)), dtype=bool)
        seeds = (
            [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else list(seed or [None] * self.num_envs)
        )
        ids = [i for i in range(self.num_envs) if mask[i]]
        self.send_reset(ids, [seeds[i] for i in ids], [dict(options) or None for _ in ids])
        answers = {outcome.id: outcome for outcome in self.recv(len(ids))}
        self._last = {**getattr(self, "_last", {}), **{i: answers[i].observation for i in ids}}
        infos = self._infos(answers)
        return tuple(self._last.get(i, "") for i in range(self.num_envs)), infos

    def step(
        self, actions: Sequence[str]
    ) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """Steps all environments in lockstep."""
        self.send(list(actions), range(self.num_envs))
        answers = {outcome.id: outcome for outcome in self.recv(self.num_envs)}
        ordered = [answers[i] for i in range(self.num_envs)]
        self._last = {outcome.id: outcome.observation for outcome in ordered}
        return (
            tuple(outcome.observation for outcome in ordered),
            np.array([outcome.reward for outcome in ordered], dtype=np.float64),
            np.array([outcome.terminated for outcome in ordered], dtype=np.bool_),
            np.array([outcome.truncated for outcome in ordered], dtype=np.bool_),
            self._infos(answers),
        )

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the threads and all environments."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for env in self.envs:
            env.close()

    # ------------------------------------------------------------------------------------------ internals
    def _infos(self, answers: dict[int, Outcome]) -> Info:
        infos: Info = {}
        for number, outcome in answers.items():
            infos = self._add_info(infos, outcome.info, number)
        return infos

    def _submit(self, work: Callable[[], Outcome]) -> None:
        self._under_way += 1
        if self._pool is None:
            self._answer(work)
        else:
            self._pool.submit(self._answer, work)

    def _answer(self, work: Callable[[], Outcome]) -> None:
        try:
            self._answers.put(work())
        except BaseException as error:
            self._answers.put(error)

    def _reset_one(self, number: int, seed: int | None, options: dict[str, Any] | None) -> Outcome:
        observation, info = self.envs[number].reset(seed=seed, options=options)
        return Outcome(id=number, observation=observation, reward=0.0, terminated=False, truncated=False, info=info)

    def _step_one(self, number: int, action: str) -> Outcome:
        observation, reward, terminated, truncated, info = self.envs[number].step(action)
        return Outcome(
            id=number, observation=observation, reward=reward, terminated=terminated, truncated=truncated, info=info
        )

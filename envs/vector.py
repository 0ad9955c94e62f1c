"""Many environments side by side, without lockstep: whoever has an answer is heard at once.

`send_reset` / `send` hand work to environments by their number, `recv` gives what has come back. The standard vector
`reset` and `step` are there too; episodes that ended are not reset by themselves (autoreset mode DISABLED), but by
`reset(options={"reset_mask": ...})`.
"""

from __future__ import annotations

import operator
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ..core.errors import ConfigError
from ..core.tasks import TaskSet

Info = dict[str, Any]
Order = TypeVar("Order", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one environment answered to a reset or a step."""

    id: int
    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: Info


_STATELESS = (gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker)
"""Wrappers that a copy can do without."""


def check_can_fork(env: Any) -> None:
    """Raises unless live episodes of this environment can be copied.

    Raises:
        ConfigError: They cannot; one line says why.
    """
    plain, layer = env.unwrapped, env
    while layer is not plain:
        if not isinstance(layer, _STATELESS):
            raise ConfigError(f"{type(plain).__name__} cannot be forked inside {type(layer).__name__}")
        layer = cast(Any, layer).env
    if not getattr(plain, "can_fork", False):
        raise ConfigError(f"{type(plain).__name__} cannot be forked")


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
        observations, actions = self.envs[0].observation_space, self.envs[0].action_space
        self.single_observation_space, self.single_action_space = observations, actions
        self.observation_space = batch_space(observations, self.num_envs)
        self.action_space = batch_space(actions, self.num_envs)
        self.spec = None
        threads = min(32, self.num_envs) if workers is None else workers
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="palaestra-env") if threads else None
        self._answers: queue.SimpleQueue[Outcome | tuple[int, BaseException]] = queue.SimpleQueue()
        self._busy: set[int] = set()
        """Environments whose answer has not been received yet."""
        self._held: list[Outcome] = []
        """Outcomes that had come when another environment's exception was raised."""
        self._last: dict[int, str] = {}
        """Last observation of each environment, for resets of only some."""

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
        n = len(ids)
        chosen_seeds = [None] * n if seeds is None else seeds
        chosen_options = [None] * n if options is None else options
        for number, seed, option in self._free(zip(ids, chosen_seeds, chosen_options, strict=True)):
            self._submit(number, lambda number=number, seed=seed, option=option: self._reset_one(number, seed, option))

    def send(self, actions: Sequence[str], ids: Sequence[int]) -> None:
        """Hands one action to each of these environments."""
        for number, action in self._free(zip(ids, actions, strict=True)):
            self._submit(number, lambda action=action, number=number: self._step_one(number, action))

    def recv(self, min_n: int = 1, timeout_s: float | None = None) -> list[Outcome]:
        """Gives at least `min_n` outcomes (fewer when fewer are under way, or when time is up), oldest first.

        Raises:
            Exception: What an environment raised, with a note that names it; outcomes that had come by then are given
                by the next call.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        outcomes, self._held = self._held, []
        wanted = min(min_n, len(outcomes) + len(self._busy))
        while len(outcomes) < wanted or not self._answers.empty():
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                answer = self._answers.get(timeout=left) if len(outcomes) < wanted else self._answers.get_nowait()
            except queue.Empty:
                break
            if isinstance(answer, tuple):
                self._busy.discard(answer[0])
                self._held = outcomes
                raise answer[1]
            self._busy.discard(answer.id)
            outcomes.append(answer)
        return outcomes

    # --------------------------------------------------------------------------------------------- copies
    def fork(self, number: int, n: int = 1) -> list[Any]:
        """Gives `n` copies of an environment in the middle of its episode; the caller closes them.

        Raises:
            ConfigError: This environment cannot be forked, or stands in a wrapper, whose state would be lost.
            EnvironmentFailure: Infrastructure failed.
        """
        self._free([(number,)])
        check_can_fork(self.envs[number])
        return self.envs[number].unwrapped.fork(n)

    def exchange(self, number: int, env: Any) -> Any:
        """Puts an environment in the place of another one, and gives that one."""
        self._free([(number,)])
        old, self.envs[number] = self.envs[number], env
        return old

    # --------------------------------------------------------------------------------- Gymnasium's own API
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], Info]:
        """Resets all environments, or those in `options["reset_mask"]`; the others keep their last observation."""
        rest = dict(options or {})
        mask = np.asarray(rest.pop("reset_mask", np.ones(self.num_envs, dtype=bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"reset_mask: must be {self.num_envs} booleans, at least one of them True")
        if seed is None or isinstance(seed, Sequence):
            seeds = list(seed or [None] * self.num_envs)
        else:
            seeds = [operator.index(seed) + i for i in range(self.num_envs)]
        ids = np.flatnonzero(mask).tolist()
        self.send_reset(ids, [seeds[i] for i in ids], [rest or None for _ in ids])
        answers = self._recv_all(ids)
        return tuple(self._last.get(i, "") for i in range(self.num_envs)), self._infos(answers)

    def step(
        self, actions: Sequence[str]
    ) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """Steps all environments in lockstep."""
        ids = range(self.num_envs)
        self.send(list(actions), ids)
        answers = self._recv_all(ids)
        ordered = [answers[i] for i in ids]
        return (
            tuple(outcome.observation for outcome in ordered),
            np.array([outcome.reward for outcome in ordered], dtype=np.float64),
            np.array([outcome.terminated for outcome in ordered], dtype=np.bool_),
            np.array([outcome.truncated for outcome in ordered], dtype=np.bool_),
            self._infos(answers),
        )

    def render(self) -> tuple[Any, ...] | None:
        """What each environment renders."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the threads and all environments; waits for steps that are under way."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for env in self.envs:
            env.close()

    # ------------------------------------------------------------------------------------------ internals
    def _recv_all(self, ids: Sequence[int]) -> dict[int, Outcome]:
        """The outcomes of these environments; when one raised, all the others are waited for first."""
        answers: dict[int, Outcome] = {}
        failure: Exception | None = None
        while self._busy or self._held:
            try:
                answers |= {outcome.id: outcome for outcome in self.recv(len(self._busy) + len(self._held))}
            except Exception as error:
                failure = failure or error
        self._last |= {number: outcome.observation for number, outcome in answers.items()}
        if failure is not None:
            raise failure
        return {number: answers[number] for number in ids}

    def _infos(self, answers: dict[int, Outcome]) -> Info:
        """Gymnasium's form (an array and a mask per key); keys with values of several types get arrays of objects."""
        types: dict[str, set[object]] = {}
        for outcome in answers.values():
            for name, value in outcome.info.items():
                types.setdefault(name, set()).add(cast(object, type(value)))
        infos: Info = {name: np.full(self.num_envs, None, object) for name, kinds in types.items() if len(kinds) > 1}
        mixed = {name: np.zeros(self.num_envs, np.bool_) for name in infos}
        for number, outcome in answers.items():
            infos = self._add_info(infos, {k: v for k, v in outcome.info.items() if k not in mixed}, number)
            for name in mixed.keys() & outcome.info.keys():
                infos[name][number], mixed[name][number] = outcome.info[name], True
        return infos | {f"_{name}": mask for name, mask in mixed.items()}

    def _free(self, orders: Iterable[Order]) -> list[Order]:
        """Checks that no order is for an environment that is busy, unknown or closed; nothing is sent otherwise."""
        if self.closed:
            raise gym.error.ClosedEnvironmentError("the vector environment is closed")
        checked = list(orders)
        seen: set[int] = set()
        for number in (order[0] for order in checked):
            if not 0 <= number < self.num_envs:
                raise ValueError(f"ids: {number} is not in 0..{self.num_envs - 1}")
            if number in self._busy or number in seen:
                raise ValueError(f"ids: environment {number} has an answer that was not received yet")
            seen.add(number)
        return checked

    def _submit(self, number: int, work: Callable[[], Outcome]) -> None:
        self._busy.add(number)
        if self._pool is None:
            self._answer(number, work)
        else:
            self._pool.submit(self._answer, number, work)

    def _answer(self, number: int, work: Callable[[], Outcome]) -> None:
        try:
            self._answers.put(work())
        except Exception as error:
            error.add_note(f"raised by environment {number} of the vector")
            self._answers.put((number, error))
        except BaseException as error:
            if self._pool is None:  # Ctrl-C in the caller's own thread
                self._busy.discard(number)
                raise
            self._answers.put((number, error))

    def _reset_one(self, number: int, seed: int | None, options: dict[str, Any] | None) -> Outcome:
        observation, info = self.envs[number].reset(seed=seed, options=options)
        return Outcome(id=number, observation=observation, reward=0.0, terminated=False, truncated=False, info=info)

    def _step_one(self, number: int, action: str) -> Outcome:
        observation, reward, terminated, truncated, info = self.envs[number].step(action)
        return Outcome(
            id=number, observation=observation, reward=reward, terminated=terminated, truncated=truncated, info=info
        )

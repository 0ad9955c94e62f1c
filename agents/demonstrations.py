"""Synthetic trajectories: scripted experts of mixed quality act in the real environment.

Demonstration i depends on (seed, i) alone, so that any number of processes makes the same ones. Experts' programs come
from our own templates and run in this process (`InProcessRunner`); observations are those that the sandbox would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

from ..core.errors import ConfigError, did_you_mean
from ..core.seeding import derive_seed, generator
from ..core.trajectories import Episode, Trajectory, Turn
from ..envs.registration import make_env
from .scripted import default_mix, expert_names, scripted_agent, takes_over_at

Progress = Callable[[int, int], None]
_NO_EXPERTS = "the environment has no experts: give it some (palaestra.envs.scripts), or leave the stage sft out"
MAX_TRIES = 50
"""With `success_only`, tries per demonstration."""


def generate_demos(
    env_id: str,
    n: int,
    seed: int,
    *,
    mix: Mapping[str, float] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    processes: int = 1,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
    success_only: bool = False,
) -> Iterator[Episode]:
    """Makes demonstrations, in order.

    Args:
        env_id: The environment.
        n: How many, over all shares.
        seed: Decides tasks, experts and their slips.
        mix: Share of each expert, such as `{"careful": 0.2, "hasty": 0.7, "sloppy": 0.1}`; shares are normalised. None:
            the environment's own.
        env_kwargs: Keywords of the environment.
        processes: Worker processes.
        share: `(index, count)`: only every `count`-th demonstration, for data parallelism.
        progress: Called with (done, in all).
        success_only: Try until the submission passes the hidden tests (rejection sampling).

    Raises:
        ConfigError: An expert is unknown, or none succeeds where only successes are wanted.
    """
    numbers = range(share[0], n, share[1])
    maker = (env_id, seed, _mix(env_id, mix, env_kwargs or {}), dict(env_kwargs or {}), success_only)
    for done, episode in enumerate(_made(maker, numbers, processes), 1):
        yield episode
        if progress and (done % 50 == 0 or done == len(numbers)):
            progress(done, len(numbers))


def _mix(env_id: str, mix: Mapping[str, float] | None, env_kwargs: Mapping[str, Any]) -> dict[str, float]:
    """The shares of experts, all of whom the environment knows."""
    with make_env(env_id, **env_kwargs) as env:
        if mix is None:
            return default_mix(env)
        check_experts(mix, env)
    return dict(mix)


def check_experts(mix: Mapping[str, float], env: Any) -> None:
    """Refuses experts that an environment does not have.

    Raises:
        ConfigError: One line that names the nearest valid name.
    """
    known = expert_names(env)
    for name in mix:
        if name not in known:
            raise ConfigError(f"expert {name!r}{did_you_mean(name, known)}" if known else _NO_EXPERTS)


def _made(maker: tuple[Any, ...], numbers: range, processes: int) -> Iterator[Episode]:
    if processes <= 1:
        yield from _make_all(maker, numbers)
        return
    chunks = [numbers[i : i + 250] for i in range(0, len(numbers), 250)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for episodes in pool.map(_make_list, [maker] * len(chunks), chunks):
            yield from episodes


def _make_list(maker: tuple[Any, ...], numbers: range) -> list[Episode]:
    return list(_make_all(maker, numbers))


def _make_all(maker: tuple[Any, ...], numbers: range) -> Iterator[Episode]:
    env_id, seed, mix, env_kwargs, success_only = maker
    env = make_env(env_id, **env_kwargs)
    if hasattr(env.unwrapped, "trust_programs"):
        env.unwrapped.trust_programs()
    try:
        for number in numbers:
            yield _demonstration(env, (seed, number), mix, success_only)
    finally:
        env.close()


def _demonstration(env: Any, name: tuple[int, int], mix: Mapping[str, float], success_only: bool) -> Episode:
    """The demonstration of (seed, number), from the first try that is wanted."""
    seed, number = name
    for attempt in range(MAX_TRIES if success_only else 1):
        episode_seed = derive_seed(seed, "demo", number, attempt) % 2**31
        expert = list(mix)[_drawn(list(mix.values()), episode_seed)]
        episode = demonstrate(env, expert, episode_seed)
        if episode.success or not success_only:
            return episode
    raise ConfigError(f"success_only: no expert of {', '.join(mix)} succeeded in {MAX_TRIES} tries; choose another mix")


def _drawn(weights: list[float], seed: int) -> int:
    rng = generator(seed, "which expert")
    point = rng.random() * sum(weights)
    for i, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return i
    return len(weights) - 1


def demonstrate(env: Any, expert: str, seed: int) -> Episode:
    """One episode of an expert, without tokens; `info` names the expert."""
    observation, info = env.reset(seed=seed)
    first = info
    agent = scripted_agent(expert, info["family"], env)
    agent.reset(observation, info, seed)
    turns: list[Turn] = []
    total, ended = 0.0, False
    while not ended:
        messages = tuple(info["messages"])
        action = agent.act(observation, info)
        observation, reward, terminated, truncated, info = env.step(action)
        total, ended = total + reward, terminated or truncated
        turn = Turn(action=action, observation=observation, messages=messages, reward=reward)
        turns.append(replace(turn, parse_error=info["parse_error"]) if info["parse_error"] else turn)
    return Episode(
        task_id=first["task_id"],
        family=first["family"],
        level=first["level"],
        seed=seed,
        trajectories=(Trajectory(segments=(), turns=tuple(turns), agent=expert, forked_at=takes_over_at(env, expert)),),
        reward=total,
        success=info["success"],
        stop_reason=info["stop_reason"],
        reward_components=info["reward_components"],
        info={"expert": expert},
    )

"""Success of an agent on seeded tasks, with a 95 % interval; failures of infrastructure are counted apart.

It decides nothing about learning: it collects one episode per task and counts. Tasks cycle through families and levels,
so that every level has its exact share of the mix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError, EnvironmentFailure
from ..core.messages import Message
from ..core.seeding import derive_seed
from ..core.tasks import Split, TaskSet, task_id_of
from ..core.trajectories import Episode, Sampling, Trajectory, Turn
from ..envs.registration import make_env, make_vector_env
from .base import Agent
from .scripted import scripted_agent

if TYPE_CHECKING:
    from .llm import LLMPolicy

Progress = Callable[[int, int], None]
NORMAL_975 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """What to evaluate on, and how actions are sampled."""

    n: int = 400
    """Number of tasks, one episode each."""
    seed: int = 0
    split: Split = "heldout"
    families: tuple[str, ...] = ()
    """Empty means the environment's default."""
    levels: tuple[int, ...] = ()
    temperature: float = 1.0
    """0 is greedy decoding."""
    num_envs: int = 128
    """Episodes that run side by side."""
    max_turn_tokens: int = 512
    max_context_tokens: int = 4096
    env_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name in ("n", "num_envs", "max_turn_tokens", "max_context_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.temperature < 0:
            raise ConfigError(f"temperature={self.temperature}: must be at least 0 (0 is greedy)")

    def environment(self) -> dict[str, Any]:
        """Keywords for the environments of this evaluation."""
        chosen: dict[str, Any] = {"split": self.split}
        if self.families:
            chosen["families"] = list(self.families)
        if self.levels:
            chosen["levels"] = list(self.levels)
        return {**chosen, **self.env_kwargs}

    def sampling(self) -> Sampling:
        """How a policy samples in this evaluation."""
        return Sampling(
            temperature=self.temperature,
            max_turn_tokens=self.max_turn_tokens,
            max_context_tokens=self.max_context_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """Counts over episodes. `n` is the number of episodes that were scored; failed ones are only in `failures`."""

    success: float
    interval_low: float
    interval_high: float
    n: int
    mean_turns: float
    failures: int
    parse_error_rate: float
    """Share of turns whose text was no valid action."""
    by_level: Mapping[str, tuple[float, int]]
    """`"family/level"` -> (success, episodes)."""
    stop_reasons: Mapping[str, int]
    episodes: Sequence[Episode]

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON data, without the episodes."""
        return {
            "success": self.success,
            "interval_95": [self.interval_low, self.interval_high],
            "n": self.n,
            "mean_turns": self.mean_turns,
            "failures": self.failures,
            "parse_error_rate": self.parse_error_rate,
            "by_level": {name: {"success": success, "n": n} for name, (success, n) in self.by_level.items()},
            "stop_reasons": dict(self.stop_reasons),
        }


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927); (0, 1) when nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    z2 = NORMAL_975**2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_975 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(episodes: Sequence[Episode]) -> EvalResult:
    """Counts successes, turns, parse errors and failures."""
    scored = [episode for episode in episodes if not episode.failed]
    wins = sum(bool(episode.success) for episode in scored)
    low, high = wilson_interval(wins, len(scored))
    turns = [turn for episode in scored for trajectory in episode.trajectories for turn in trajectory.turns]
    groups: dict[str, list[bool]] = {}
    reasons: dict[str, int] = {}
    for episode in scored:
        groups.setdefault(f"{episode.family}/{episode.level}", []).append(bool(episode.success))
        reasons[episode.stop_reason] = reasons.get(episode.stop_reason, 0) + 1
    return EvalResult(
        success=wins / max(1, len(scored)),
        interval_low=low,
        interval_high=high,
        n=len(scored),
        mean_turns=len(turns) / max(1, len(scored)),
        failures=len(episodes) - len(scored),
        parse_error_rate=sum(turn.parse_error is not None for turn in turns) / max(1, len(turns)),
        by_level={name: (sum(wins) / len(wins), len(wins)) for name, wins in sorted(groups.items())},
        stop_reasons=reasons,
        episodes=list(episodes),
    )


def evaluation_task_ids(task_set: TaskSet, n: int, seed: int) -> list[str]:
    """Ids of `n` tasks; families and levels take turns, so that their shares are exact."""
    if task_set.fixed:
        return [task.task_id for task in task_set.tasks(n)]
    mix = [(family, level) for family in task_set.families for level in task_set.levels or family.levels]
    ids: list[str] = []
    for i in range(n):
        family, level = mix[i % len(mix)]
        task_seed = derive_seed(seed, "evaluation", i) % 2**31
        ids.append(task_id_of(family.name, task_set.split, level, task_seed))
    return ids


def evaluate_policy(
    policy: LLMPolicy,
    env_id: str,
    options: EvalOptions,
    *,
    share: tuple[int, int] = (0, 1),
    on_progress: Progress | None = None,
) -> list[Episode]:
    """Collects one episode per task with a language model and gives them in task order.

    Args:
        policy: The model to evaluate; at temperature 1 its episodes carry log-probabilities.
        env_id: Any id that `gym.make` or `module:Id-v0` knows.
        options: Tasks and sampling.
        share: `(index, count)`: collect only every `count`-th task, for data parallelism.
        on_progress: Called with (episodes done, episodes in all).
    """
    from .rollout import EpisodeSpec, collect

    index, count = share
    with make_env(env_id, **options.environment()) as probe:
        ids = evaluation_task_ids(probe.unwrapped.task_set, options.n, options.seed)
    specs = [
        EpisodeSpec(task_id=task_id, seed=derive_seed(options.seed, "episode", i), replica=0, group=i)
        for i, task_id in enumerate(ids)
    ][index::count]
    envs = make_vector_env(
        env_id, min(options.num_envs, max(1, len(specs))), workers=0, on_failure="info", **options.environment()
    )
    try:
        return collect(
            policy,
            envs,
            specs,
            sampling=options.sampling(),
            seed_parts=(options.seed, "evaluation"),
            on_progress=on_progress,
        )
    finally:
        envs.close()


def evaluate_model(model: str, env_id: str, options: EvalOptions, on_progress: Progress | None = None) -> EvalResult:
    """Loads a transformers folder or hub id and evaluates it.

    Raises:
        ModelError: The model cannot be loaded.
    """
    from .llm import LLMPolicy

    policy = LLMPolicy.load(model)
    return summarise(evaluate_policy(policy, env_id, options, on_progress=on_progress))


def evaluate_scripted(
    agent_name: str, env_id: str, options: EvalOptions, on_progress: Progress | None = None
) -> EvalResult:
    """Evaluates a scripted agent (an expert, the oracle, a null agent) by its name."""
    episodes: list[Episode] = []
    with make_env(env_id, on_failure="raise", **options.environment()) as env:
        ids = evaluation_task_ids(env.unwrapped.task_set, options.n, options.seed)
        for i, task_id in enumerate(ids):
            seed = derive_seed(options.seed, "episode", i) % 2**31
            episodes.append(run_scripted_episode(env, agent_name, task_id, seed))
            if on_progress:
                on_progress(i + 1, options.n)
    return summarise(episodes)


def run_scripted_episode(env: Any, agent_name: str, task_id: str, seed: int) -> Episode:
    """Runs one episode of a scripted agent; a failure of infrastructure is data, not a crash."""
    turns: list[Turn] = []
    reward, success, reason = math.nan, None, "failed"
    failure: dict[str, Any] | None = None
    components: Mapping[str, float] = {}
    terminated = truncated = False
    try:
        observation, info = env.reset(seed=seed, options={"task_id": task_id})
        agent: Agent = scripted_agent(agent_name, info["family"], env)
        agent.reset(observation, info, seed)
        total = 0.0
        while not (terminated or truncated):
            messages: tuple[Message, ...] = tuple(info["messages"])
            action = agent.act(observation, info)
            observation, step_reward, terminated, truncated, info = env.step(action)
            total += step_reward
            turns.append(
                Turn(
                    action=action,
                    observation=observation,
                    messages=messages,
                    reward=step_reward,
                    parse_error=info["parse_error"],
                )
            )
        reward, success, reason = total, bool(info["success"]), info["stop_reason"]
        components = info["reward_components"]
    except EnvironmentFailure as error:
        failure = {"kind": error.kind, "message": error.message, "retryable": error.retryable}
        truncated = True
    task = env.unwrapped.task
    return Episode(
        task_id=task_id,
        family=task.family,
        level=task.level,
        seed=seed,
        trajectories=(Trajectory(segments=(), turns=tuple(turns), agent=agent_name),),
        reward=reward,
        success=success,
        stop_reason=reason,
        terminated=terminated,
        truncated=truncated,
        reward_components=components,
        failure=failure,
    )


def mean_sequence_kl(kl_per_episode: Sequence[float]) -> float:
    """`kl_seq`: the mean over episodes of the summed log-ratio (nats); NaN when there is none."""
    return float(np.mean(kl_per_episode)) if len(kl_per_episode) else math.nan

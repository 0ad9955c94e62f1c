"""Success of an agent on seeded tasks, with a 95 % interval; failures of infrastructure are counted apart.

It decides nothing about learning: it collects one episode per task (or several, its samples) and counts. Tasks cycle
through families and levels, so that every level has its exact share of the mix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError
from ..core.seeding import derive_seed
from ..core.tasks import Split, TaskSet, task_id_of
from ..core.trajectories import Episode, Sampling
from ..envs.registration import make_env, make_vector_env
from .episode_origin import file_sha256
from .evaluation_journal import Attempt, Journal
from .pass_rates import Rate, TaskCount, mean_pass_at_k, mean_pass_hat_k, success_rate
from .scripted import scripted_agent
from .single_episode import run_episode

if TYPE_CHECKING:
    from .llm import LLMPolicy

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """What to evaluate on, and how actions are sampled."""

    n: int = 400
    """Number of tasks; a task file that has fewer is used whole."""
    samples: int = 1
    """Episodes per task."""
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
        for name in ("n", "samples", "num_envs", "max_turn_tokens", "max_context_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.temperature < 0:
            raise ConfigError(f"temperature={self.temperature}: must be at least 0 (0 is greedy)")

    def tasks_sha256(self) -> str | None:
        """The SHA-256 of the task file (`tasks` of the environment), where there is one.

        Raises:
            TaskError: The file cannot be read.
        """
        return file_sha256(self.env_kwargs.get("tasks"))

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
    """The 95 % interval counts tasks, not episodes, as what was sampled; see `pass_rates.success_rate`."""
    interval_high: float
    n: int
    mean_turns: float
    failures: int
    parse_error_rate: float
    """Share of turns whose text was no valid action."""
    by_level: Mapping[str, tuple[float, int]]
    """`"family/level"` -> (success, episodes)."""
    level_intervals: Mapping[str, tuple[float, float]]
    """`"family/level"` -> the 95 % interval of its success."""
    tasks: int
    """Tasks with at least one scored episode."""
    pass_at_k: Mapping[int, Rate]
    """k -> the chance that at least one of k attempts at a task succeeds."""
    pass_hat_k: Mapping[int, Rate]
    """k -> the chance that all of k attempts at a task succeed."""
    usage: Mapping[str, int]
    """Requests, retries and tokens over all episodes of a model behind an endpoint; else empty."""
    stop_reasons: Mapping[str, int]
    episodes: Sequence[Episode]

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON data, without the episodes."""
        by_level = {
            name: {"success": success, "interval_95": list(self.level_intervals[name]), "n": n}
            for name, (success, n) in self.by_level.items()
        }
        return {
            "success": self.success,
            "interval_95": [self.interval_low, self.interval_high],
            "n": self.n,
            "tasks": self.tasks,
            "pass_at_k": {str(k): _rate_to_json(rate) for k, rate in self.pass_at_k.items()},
            "pass_hat_k": {str(k): _rate_to_json(rate) for k, rate in self.pass_hat_k.items()},
            "mean_turns": self.mean_turns,
            "failures": self.failures,
            "parse_error_rate": self.parse_error_rate,
            "by_level": by_level,
            "stop_reasons": dict(self.stop_reasons),
            **({"usage": dict(self.usage)} if self.usage else {}),
        }


def _rate_to_json(rate: Rate) -> dict[str, Any]:
    return {"value": rate.value, "interval_95": [rate.low, rate.high], "tasks": rate.tasks}


def task_counts(episodes: Iterable[Episode]) -> dict[str, TaskCount]:
    """Successes and scored episodes of each task, by its id; tasks that were never scored are not there."""
    wins: dict[str, list[bool]] = {}
    for episode in episodes:
        if not episode.failed:
            wins.setdefault(episode.task_id, []).append(bool(episode.success))
    return {task_id: TaskCount(sum(outcomes), len(outcomes)) for task_id, outcomes in wins.items()}


def summarise(episodes: Sequence[Episode], ks: Sequence[int] = ()) -> EvalResult:
    """Counts successes, turns, parse errors and failures, and estimates pass@k and pass^k for each of `ks`."""
    scored = [episode for episode in episodes if not episode.failed]
    counts = list(task_counts(scored).values())
    rate = success_rate(counts)
    turns = [turn for episode in scored for trajectory in episode.trajectories for turn in trajectory.turns]
    groups: dict[str, list[Episode]] = {}
    reasons: dict[str, int] = {}
    for episode in scored:
        groups.setdefault(f"{episode.family}/{episode.level}", []).append(episode)
        reasons[episode.stop_reason] = reasons.get(episode.stop_reason, 0) + 1
    levels = {name: success_rate(task_counts(group).values()) for name, group in sorted(groups.items())}
    return EvalResult(
        success=sum(bool(episode.success) for episode in scored) / max(1, len(scored)),
        interval_low=rate.low,
        interval_high=rate.high,
        n=len(scored),
        mean_turns=len(turns) / max(1, len(scored)),
        failures=len(episodes) - len(scored),
        parse_error_rate=sum(turn.parse_error is not None for turn in turns) / max(1, len(turns)),
        by_level={
            name: (sum(bool(episode.success) for episode in groups[name]) / len(groups[name]), len(groups[name]))
            for name in levels
        },
        level_intervals={name: (level.low, level.high) for name, level in levels.items()},
        tasks=len(counts),
        pass_at_k={k: mean_pass_at_k(counts, k) for k in ks},
        pass_hat_k={k: mean_pass_hat_k(counts, k) for k in ks},
        usage=_total_usage(episodes),
        stop_reasons=reasons,
        episodes=list(episodes),
    )


def _total_usage(episodes: Iterable[Episode]) -> dict[str, int]:
    total: dict[str, int] = {}
    for episode in episodes:
        for name, count in episode.info.get("usage", {}).items():
            total[name] = total.get(name, 0) + count
    return total


def evaluation_attempts(env_id: str, options: EvalOptions) -> list[Attempt]:
    """The episodes of an evaluation, task by task; more tasks or samples only add to them."""
    with make_env(env_id, **options.environment()) as env:
        ids = evaluation_task_ids(env.unwrapped.task_set, options.n, options.seed)
    return [
        Attempt(task_id=task_id, seed=_attempt_seed(options.seed, i, replica), group=i, replica=replica)
        for i, task_id in enumerate(ids)
        for replica in range(options.samples)
    ]


def _attempt_seed(seed: int, task: int, replica: int) -> int:
    return derive_seed(seed, "episode", task, *([replica] if replica else []))


def evaluation_task_ids(task_set: TaskSet, n: int, seed: int) -> list[str]:
    """Ids of `n` tasks; families and levels take turns, so that their shares are exact. A list is not repeated."""
    if task_set.fixed:
        return [task.task_id for task in task_set.tasks(min(n, len(task_set.fixed)))]
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
    journal: Journal | None = None,
) -> list[Episode]:
    """Collects the episodes of an evaluation with a language model and gives them in task order.

    Args:
        policy: The model to evaluate; at temperature 1 its episodes carry log-probabilities.
        env_id: Any id that `gym.make` or `module:Id-v0` knows.
        options: Tasks and sampling.
        share: `(index, count)`: collect only every `count`-th episode, for data parallelism.
        on_progress: Called with (episodes done, episodes in all).
        journal: Episodes that are there already, and where new ones are kept as they end.
    """
    from .rollout import EpisodeSpec, collect

    index, count = share
    attempts = evaluation_attempts(env_id, options)[index::count]
    journal = journal or Journal()
    todo = journal.missing(attempts)
    if todo:
        envs = make_vector_env(
            env_id, min(options.num_envs, len(todo)), workers=0, on_failure="info", **options.environment()
        )
        try:
            collect(
                policy,
                envs,
                [EpisodeSpec(task_id=a.task_id, seed=a.seed, replica=a.replica, group=a.group) for a in todo],
                sampling=options.sampling(),
                seed_parts=(options.seed, "evaluation"),
                on_progress=_after(len(attempts) - len(todo), on_progress),
                on_episode=journal.add,
            )
        finally:
            envs.close()
    return journal.episodes(attempts)


def _after(before: int, on_progress: Progress | None) -> Progress | None:
    """Counts episodes that were there before as done."""
    return on_progress and (lambda done, total: on_progress(before + done, before + total))


def evaluate_model(
    model: str,
    env_id: str,
    options: EvalOptions,
    on_progress: Progress | None = None,
    *,
    ks: Sequence[int] = (),
    journal: Journal | None = None,
) -> EvalResult:
    """Loads a transformers folder or hub id and evaluates it; see `evaluate_policy` and `summarise`.

    Raises:
        ModelError: The model cannot be loaded.
    """
    from .llm import LLMPolicy

    policy = LLMPolicy.load(model)
    return summarise(evaluate_policy(policy, env_id, options, on_progress=on_progress, journal=journal), ks)


def evaluate_scripted(
    agent_name: str,
    env_id: str,
    options: EvalOptions,
    on_progress: Progress | None = None,
    *,
    ks: Sequence[int] = (),
    journal: Journal | None = None,
) -> EvalResult:
    """Evaluates a scripted agent (an expert, the oracle, a null agent) by its name."""
    attempts = evaluation_attempts(env_id, options)
    journal = journal or Journal()
    todo = journal.missing(attempts)
    with make_env(env_id, on_failure="raise", **options.environment()) as env:
        for done, attempt in enumerate(todo, len(attempts) - len(todo) + 1):
            journal.add(
                run_episode(
                    env,
                    lambda info: scripted_agent(agent_name, info["family"], env),
                    attempt.task_id,
                    attempt.seed % 2**31,
                    name=agent_name,
                    info={"group": attempt.group, "replica": attempt.replica},
                )
            )
            if on_progress:
                on_progress(done, len(attempts))
    return summarise(journal.episodes(attempts), ks)


def mean_sequence_kl(kl_per_episode: Sequence[float]) -> float:
    """`kl_seq`: the mean over episodes of the summed log-ratio (nats); NaN when there is none."""
    return float(np.mean(kl_per_episode)) if len(kl_per_episode) else math.nan

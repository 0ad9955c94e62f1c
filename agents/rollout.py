"""Collects episodes: many environments, one engine, nobody waits for the slowest.

Tokens are recorded as they were sampled. Each episode has randomness of its own, so that its tokens do not depend on
which episodes it shares a batch with. `schedule="fixed"` also makes the batches themselves a function of the specs (and
with them the last bits of every log-probability); `schedule="refill"` takes answers as they come.

Failures of infrastructure are retried once, then recorded with reward NaN; token limits end an episode from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import ConfigError
from ..core.messages import Message, user
from ..core.trajectories import Episode, Sampling
from ..models.engine import Completion, GenerationRequest
from .branching import Branches, ForkAt, episode_generator
from .episode_builder import EpisodeBuilder, EpisodeSpec

if TYPE_CHECKING:
    from .llm import LLMPolicy

Schedule = Literal["refill", "fixed"]
Progress = Callable[[int, int], None]
ATTEMPTS = 2
"""How often an episode is tried before its failure is recorded."""
LINGER_S = 0.005
"""How long an idle engine waits for more outcomes after the first: a turn that is decoded alone costs as many steps as
one that is decoded with all others."""


@dataclass(slots=True)
class CollectorTelemetry:
    """Where a collection's time went, and how much it generated."""

    seconds_generation: float = 0.0
    seconds_environment: float = 0.0
    sampled_tokens: int = 0
    prefilled_tokens: int = 0
    turns: int = 0
    retries: int = 0
    forks: int = 0
    """Live copies of environments that were made at boundaries of trunks."""


def collect(
    policy: LLMPolicy,
    vector_env: Any,
    specs: Sequence[EpisodeSpec],
    *,
    sampling: Sampling,
    seed_parts: tuple[int | str, ...],
    schedule: Schedule = "refill",
    fork_at: ForkAt = "uniform",
    on_progress: Progress | None = None,
    on_episode: Callable[[Episode], None] | None = None,
    telemetry: CollectorTelemetry | None = None,
) -> list[Episode]:
    """Runs one episode per spec and gives them in the order of the specs.

    Args:
        policy: The model that acts, with the weights that it has now.
        vector_env: A `ToolVectorEnv`; its environments are used as slots.
        specs: What to run; members of a group should stand next to each other, so that they share their prompt. Those
            that name a `trunk` go on from the middle of that episode (see `branching`); where it was too short or
            failed, they start afresh.
        sampling: Temperature and token limits. The context limit is also the model's own.
        seed_parts: What makes this collection's randomness its own, such as `(run_seed, "rollout", step)`.
        schedule: `"fixed"` for bit-exact reruns, `"refill"` for speed.
        fork_at: Which boundary of a trunk is forked.
        on_progress: Called with (episodes done, episodes in all).
        on_episode: Called with each episode as soon as it has ended.
        telemetry: Counters to add to.

    Raises:
        ConfigError: A spec names a trunk that is not there, or the environment cannot be forked.
    """
    collector = Collector(policy, vector_env, sampling, seed_parts, schedule, telemetry, fork_at)
    return collector.run(specs, on_progress, on_episode)


class Collector:
    """The state of one collection; see `collect`."""

    def __init__(
        self,
        policy: LLMPolicy,
        vector_env: Any,
        sampling: Sampling,
        seed_parts: tuple[int | str, ...],
        schedule: Schedule = "refill",
        telemetry: CollectorTelemetry | None = None,
        fork_at: ForkAt = "uniform",
    ) -> None:
        if schedule not in ("refill", "fixed"):
            raise ConfigError(f"schedule={schedule!r}: must be 'refill' or 'fixed'")
        self.telemetry = telemetry or CollectorTelemetry()
        self._policy, self._chat = policy, policy.chat
        self._envs, self._sampling, self._seed_parts = vector_env, sampling, seed_parts
        self._schedule = schedule
        self._engine = policy.engine(vector_env.num_envs, sampling.max_context_tokens)
        self._context = min(sampling.max_context_tokens, self._engine.max_context)
        self._running: dict[int, EpisodeBuilder] = {}
        """Slot (environment) -> the episode in it."""
        self._index_of: dict[int, int] = {}
        """Slot -> index of its spec."""
        self._slot_of: dict[Any, int] = {}
        """Engine key -> slot."""
        self._unanswered = 0
        """Orders to environments whose outcomes have not come yet."""
        self._requested = 0
        """Requests to the engine that are not completed yet."""
        self._episodes: dict[int, Episode] = {}
        self._on_episode: Callable[[Episode], None] | None = None
        self._fork_at: ForkAt = fork_at
        self._todo: list[int] = []
        """Indices of the specs that may start, the last one first."""

    def run(
        self,
        specs: Sequence[EpisodeSpec],
        on_progress: Progress | None = None,
        on_episode: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        """Collects one episode per spec."""
        self._on_episode = on_episode
        self._engine.update_weights(self._policy.version)
        before = (self._engine.stats.sampled_tokens, self._engine.stats.prefilled_tokens)
        self._specs, self._branches = specs, Branches(self._envs, specs, self._fork_at, self._seed_parts)
        self._todo = [index for index in range(len(specs)) if specs[index].trunk is None][::-1]
        reported = 0
        try:
            while len(self._episodes) < len(specs):
                self._fill()
                self._receive()
                if on_progress and len(self._episodes) > reported:
                    reported = len(self._episodes)
                    on_progress(reported, len(specs))
                self._act()
        finally:
            for key in self._slot_of:
                self._engine.release(key)
            self._branches.close()
        self.telemetry.sampled_tokens += self._engine.stats.sampled_tokens - before[0]
        self.telemetry.forks += self._branches.forks
        self.telemetry.prefilled_tokens += self._engine.stats.prefilled_tokens - before[1]
        return [self._episodes[index] for index in range(len(specs))]

    # -- environments ---------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Starts what waits in free slots; branches come first."""
        fresh: dict[int, int] = {}
        for slot in range(self._envs.num_envs):
            if slot in self._running or not self._todo:
                continue
            index = self._todo.pop()
            branch = self._branches.enter(index, slot)
            if branch is None:
                fresh[slot] = index
            else:
                self._running[slot], self._index_of[slot] = branch, index
                self._request(slot, branch.context_ids)
        self._start(fresh)

    def _start(self, chosen: Mapping[int, int], attempt: int = 0) -> None:
        """Resets slots for the specs with the given indices."""
        if not chosen:
            return
        for slot, index in chosen.items():
            spec = self._specs[index]
            builder = EpisodeBuilder(spec, episode_generator(self._seed_parts, spec), attempt)
            self._running[slot], self._index_of[slot] = builder, index
            self._branches.begin(index)
        self._reset(list(chosen))

    def _reset(self, slots: list[int]) -> None:
        specs = [self._running[slot].spec for slot in slots]
        options = [{**spec.options, **({} if spec.task_id is None else {"task_id": spec.task_id})} for spec in specs]
        started = time.perf_counter()
        self._envs.send_reset(slots, [spec.seed for spec in specs], options)
        self._unanswered += len(slots)
        self._charge(slots, started)

    def _send(self, slots: list[int], actions: list[str]) -> None:
        started = time.perf_counter()
        self._envs.send(actions, slots)
        self._unanswered += len(slots)
        self._charge(slots, started)

    def _receive(self) -> None:
        """Handles outcomes: under the fixed schedule all that are due, else those that are there."""
        if not self._unanswered:
            return
        started = time.perf_counter()
        if self._schedule == "fixed":
            outcomes: list[Any] = []
            while len(outcomes) < self._unanswered:
                outcomes += self._envs.recv(self._unanswered - len(outcomes))
        elif self._requested:  # the engine has work meanwhile
            outcomes = self._envs.recv(1, 0.0)
        else:  # those that follow at once belong into one batch with the first
            outcomes = self._envs.recv(1)
            if len(outcomes) < self._unanswered:
                outcomes += self._envs.recv(self._unanswered - len(outcomes), LINGER_S)
        self._unanswered -= len(outcomes)
        outcomes = sorted(outcomes, key=lambda outcome: outcome.id)
        self._charge([outcome.id for outcome in outcomes], started)
        self._handle(outcomes)

    def _charge(self, slots: Sequence[int], started: float) -> None:
        """Books time spent on environments, in equal parts on the episodes that it was spent for."""
        seconds = time.perf_counter() - started
        self.telemetry.seconds_environment += seconds
        for slot in slots:
            self._running[slot].environment_s += seconds / len(slots)

    def _handle(self, outcomes: Sequence[Any]) -> None:
        followed: list[tuple[int, Any]] = []
        for outcome in outcomes:
            slot, episode = outcome.id, self._running[outcome.id]
            if outcome.info.get("failure"):
                self._failed(slot, outcome.info["failure"])
            elif episode.conversation is None:
                messages = _messages(outcome)
                prompt = self._chat.start(messages, outcome.info.get("tools") or ())
                episode.begin(outcome.info, messages, prompt)
                self._request(slot, prompt)
            else:
                action = episode.add_answer(outcome.observation, outcome.reward, outcome.info)
                if outcome.terminated or outcome.truncated:
                    ended = (bool(outcome.terminated), bool(outcome.truncated))
                    self._finish(slot, episode.finish(self._sampling, outcome.info, *ended))
                else:
                    followed.append((slot, (episode.conversation, action, _messages(outcome))))
        if not followed:
            return
        extensions = self._chat.extend_batch([item for _, item in followed])
        for (slot, _), extension in zip(followed, extensions, strict=True):
            episode = self._running[slot]
            length = len(extension.token_ids) + (0 if extension.new_segment else episode.context_length)
            if length >= self._context:  # what does not fit is not recorded: learners would feed it to the model
                self._finish(slot, episode.cut_off(self._sampling))
                continue
            if extension.new_segment:
                self._forget(episode)
            episode.extend(extension)
            self._request(slot, extension.token_ids)

    def _failed(self, slot: int, failure: Any) -> None:
        """Retries an episode whose infrastructure failed, or records the failure."""
        episode = self._running[slot]
        record = dict(failure) if isinstance(failure, Mapping) else {"kind": "failure", "message": str(failure)}
        tried = episode.attempt + 1 >= ATTEMPTS or episode.forked_at is not None  # a branch cannot begin again
        if tried or not record.get("retryable", True):
            self._finish(slot, episode.fail(self._sampling, record))
            return
        self.telemetry.retries += 1
        self._forget(episode)
        spent = episode.environment_s
        self._start({slot: self._index_of[slot]}, episode.attempt + 1)
        self._running[slot].environment_s += spent

    def _finish(self, slot: int, record: Episode) -> None:
        self._forget(self._running.pop(slot))
        self._branches.leave(slot)
        index = self._index_of.pop(slot)
        self._keep(index, record)
        ready, lost = self._branches.end(index, record.failed)
        self._todo += reversed(ready)
        for branch in lost:
            self._keep(branch.index, branch.episode.fail(self._sampling, branch.failure))

    def _keep(self, index: int, record: Episode) -> None:
        self._episodes[index] = record
        if self._on_episode:
            self._on_episode(record)

    def _forget(self, episode: EpisodeBuilder) -> None:
        if self._slot_of.pop(episode.key, None) is not None:
            self._engine.release(episode.key)

    # -- the engine -----------------------------------------------------------------------------------------------

    def _request(self, slot: int, new_ids: list[int]) -> None:
        """Asks for the next turn, or ends the episode when its context leaves no room for one."""
        episode = self._running[slot]
        room = self._context - episode.context_length
        if room < 1:
            self._finish(slot, episode.cut_off(self._sampling))
            return
        self._slot_of[episode.key] = slot
        self._requested += 1
        self._engine.submit(
            GenerationRequest(
                key=episode.key,
                token_ids=new_ids,
                generator=episode.generator,
                temperature=self._sampling.temperature,
                max_tokens=min(self._sampling.max_turn_tokens, room),
                end_ids=self._chat.end_ids,
            )
        )

    def _act(self) -> None:
        """Generates until a useful share of the turns is done and hands those to their environments."""
        started = time.perf_counter()
        completed = self._engine.poll()
        self._requested -= len(completed)
        completions: list[Completion] = [completion for completion in completed if completion.failure is None]
        completions.sort(key=lambda completion: self._slot_of[completion.key])
        texts = self._chat.decode_batch([completion.token_ids for completion in completions])
        self.telemetry.seconds_generation += time.perf_counter() - started
        for completion in completed:
            if completion.failure is not None:  # of a server that samples
                self._failed(self._slot_of[completion.key], completion.failure)
        if not completions:
            return
        self.telemetry.turns += len(completions)
        slots = [self._slot_of[completion.key] for completion in completions]
        for slot, completion, text in zip(slots, completions, texts, strict=True):
            self._consider_fork(slot, completion)
            self._running[slot].add_action(completion, text, self._policy.version)
        self._send(slots, texts)

    def _consider_fork(self, slot: int, completion: Completion) -> None:
        started = time.perf_counter()
        self._branches.consider(self._index_of[slot], slot, self._running[slot], completion.logprobs)
        self._charge([slot], started)


def _messages(outcome: Any) -> list[Message]:
    """The new messages of an outcome; environments without any speak as the user."""
    return list(outcome.info.get("messages") or [user(outcome.observation)])

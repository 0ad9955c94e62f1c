"""Branching from the middle of an episode: where a trunk is forked, and what its branches go on from.

Some episodes of a group are trunks. While a trunk runs, one live copy of its environment is kept, made at a boundary
between two turns together with the conversation so far; when the trunk has ended, its branches go on from there, each
with randomness of its own. The tokens before the fork are the trunk's; a branch's record has them too, and
`Trajectory.forked_at` says how many of its turns they are.

Which boundary: only those after at least one turn count, because branches from the very beginning are ordinary members
of the group. `uniform` takes each boundary of the trunk with equal chance, by reservoir sampling (Vitter 1985,
algorithm R with a reservoir of one), as nobody knows how many there will be. `entropy` takes the one before the action
whose tokens surprised most, mean(-log pi), which estimates the policy's entropy there; ARPO (Dong et al. 2025, arXiv
2507.19849) and TreeRL (Hou et al. 2025, arXiv 2506.11902) branch where it is high.

The environment's own random state is copied too: branches of an environment that draws at random meet the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..core.errors import ConfigError, EnvironmentFailure
from ..core.seeding import generator
from ..envs.vector import check_can_fork

if TYPE_CHECKING:
    from .episode_builder import EpisodeBuilder, EpisodeSpec

ForkAt = Literal["uniform", "entropy"]
FORK_AT: tuple[ForkAt, ...] = ("uniform", "entropy")


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchingConfig:
    """How many episodes of a group belong to trees; off by default.

    Example: of a group of eight, `share=0.75, branches=3` makes two trees of three and leaves two episodes on their
    own; each tree is a trunk with two branches.
    """

    share: float = 0.0
    """Share of a group's episodes that are trunks or branches; 0 = no branching. There is at least one tree."""
    branches: int = 3
    """Episodes that go on from a fork, the trunk among them."""
    at: ForkAt = "uniform"
    """`uniform`: any boundary between two turns; `entropy`: before the action whose tokens surprised most."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"rollout.branching.share={self.share}: must be in [0, 1]")
        if self.branches < 2:
            raise ConfigError(f"rollout.branching.branches={self.branches}: must be at least 2, the trunk among them")
        if self.at not in FORK_AT:
            raise ConfigError(f"rollout.branching.at={self.at!r}: must be 'uniform' or 'entropy'")

    def trunks(self, group_size: int) -> list[int | None]:
        """For each member of a group the number of its trunk, or None where it starts afresh; trunks come first.

        Example: `BranchingConfig(share=0.75, branches=3).trunks(8)` is `[None] * 4 + [0, 0, 1, 1]`.

        Raises:
            ConfigError: A group is too small for a tree.
        """
        if not self.share:
            return [None] * group_size
        if self.branches > group_size:
            raise ConfigError(
                f"rollout.branching.branches={self.branches}: must be at most grpo.group_size={group_size}"
            )
        trees = max(1, int(self.share * group_size + 1e-9) // self.branches)  # 0.29 * 100 is a little less than 29
        branches = [trunk for trunk in range(trees) for _ in range(self.branches - 1)]
        return [None] * (group_size - len(branches)) + branches


@dataclass(slots=True)
class Snapshot:
    """A live copy of a trunk at one of its boundaries."""

    env: Any
    episode: EpisodeBuilder
    """The record up to there."""


class ForkPoint:
    """Chooses one boundary of a trunk while it runs, and keeps the copy that was made there.

    Args:
        at: How to choose.
        generator: The trunk's own randomness for this.
    """

    def __init__(self, at: ForkAt, generator: np.random.Generator) -> None:
        self._at: ForkAt = at
        self._generator = generator
        self._boundaries = 0
        self._most = -np.inf
        self.snapshot: Snapshot | None = None

    def wants(self, logprobs: Sequence[float]) -> bool:
        """Whether the copy should be of the present boundary, given the log-probabilities of the action after it."""
        self._boundaries += 1
        if self._at == "uniform":
            return bool(self._generator.random() * self._boundaries < 1)
        surprise = -float(np.mean(logprobs))
        if surprise <= self._most:
            return False
        self._most = surprise
        return True

    def keep(self, snapshot: Snapshot) -> None:
        """Takes a copy, and closes the one that was kept before."""
        self.close()
        self.snapshot = snapshot

    def close(self) -> None:
        """Closes the copy, if there is one; may be called twice."""
        if self.snapshot is not None:
            self.snapshot.env.close()
            self.snapshot = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LostBranch:
    """A branch that infrastructure ended before it began."""

    index: int
    episode: EpisodeBuilder
    """The record up to the fork."""
    failure: dict[str, Any]


class Branches:
    """The trunks and branches of one collection, by the indices of their specs, and their environments.

    Args:
        envs: A `ToolVectorEnv`, in whose slots branches run in copies of their trunk's environment.
        specs: All episodes of the collection.
        at: Which boundary of a trunk is forked.
        seed_parts: The collection's own randomness.

    Raises:
        ConfigError: A spec names a trunk that is not there, or the environment cannot be forked.
    """

    def __init__(self, envs: Any, specs: Sequence[EpisodeSpec], at: ForkAt, seed_parts: tuple[int | str, ...]) -> None:
        self._envs, self._specs, self._seed_parts = envs, specs, seed_parts
        self._at: ForkAt = at
        self._of_trunk = _branches_of(specs)
        if self._of_trunk:
            check_can_fork(envs.envs[0])
        self._points: dict[int, ForkPoint] = {}
        """Trunk -> where it is forked; while it runs."""
        self._starts: dict[int, Snapshot] = {}
        """Branch -> what it goes on from; while it waits for a slot."""
        self._replaced: dict[int, Any] = {}
        """Slot -> the environment whose place a branch's has taken."""
        self.forks = 0
        """Copies that were made."""

    def begin(self, index: int) -> None:
        """Says that an episode starts (again) from its beginning."""
        if index in self._of_trunk:
            self._close_point(index)
            spec = self._specs[index]
            rng = generator(*self._seed_parts, "branching", spec.task_key, spec.replica)
            self._points[index] = ForkPoint(self._at, rng)

    def consider(self, index: int, slot: int, episode: EpisodeBuilder, logprobs: Sequence[float]) -> None:
        """Copies a trunk where that is the boundary to fork; called before its next action is recorded and taken."""
        point = self._points.get(index)
        if point is None or not episode.turn_count or not point.wants(logprobs):
            return
        try:
            (env,) = self._envs.fork(slot)
        except EnvironmentFailure:
            return  # the trunk goes on, and an earlier copy stands
        self.forks += 1
        point.keep(Snapshot(env, episode.branch(episode.spec, episode.generator)))

    def end(self, index: int, failed: bool) -> tuple[list[int], list[LostBranch]]:
        """Says that an episode has ended; gives what may start now, and what never will.

        The branches of a trunk that failed, or that was too short to be forked, start afresh.
        """
        branches = self._of_trunk.get(index, [])
        if failed or not branches or (snapshot := self._points[index].snapshot) is None:
            self._close_point(index)
            return branches, []
        del self._points[index]
        specs = [self._specs[branch] for branch in branches]
        builders = [snapshot.episode.branch(spec, episode_generator(self._seed_parts, spec)) for spec in specs]
        try:
            copies = snapshot.env.unwrapped.fork(len(branches) - 1) if len(branches) > 1 else []
        except EnvironmentFailure as error:
            snapshot.env.close()
            failure = {"kind": error.kind, "message": error.message, "retryable": error.retryable}
            lost = zip(branches, builders, strict=True)
            return [], [LostBranch(index=branch, episode=made, failure=failure) for branch, made in lost]
        self.forks += len(copies)
        for branch, env, builder in zip(branches, [*copies, snapshot.env], builders, strict=True):
            self._starts[branch] = Snapshot(env, builder)
        return branches, []

    def enter(self, index: int, slot: int) -> EpisodeBuilder | None:
        """Puts a branch's environment into a slot and gives its record so far; None for what starts afresh."""
        start = self._starts.pop(index, None)
        if start is None:
            return None
        self._replaced[slot] = self._envs.exchange(slot, start.env)
        return start.episode

    def leave(self, slot: int) -> None:
        """Puts the slot's own environment back after a branch; other episodes leave nothing behind."""
        if slot in self._replaced:
            self._envs.exchange(slot, self._replaced.pop(slot)).close()

    def close(self) -> None:
        """Closes all copies that an interrupted collection leaves."""
        for index in list(self._points):
            self._close_point(index)
        for start in self._starts.values():
            start.env.close()
        for slot, env in self._replaced.items():
            self._envs.envs[slot].close()
            self._envs.envs[slot] = env
        self._starts, self._replaced = {}, {}

    def _close_point(self, index: int) -> None:
        if index in self._points:
            self._points.pop(index).close()


def episode_generator(seed_parts: tuple[int | str, ...], spec: EpisodeSpec) -> np.random.Generator:
    """An episode's own randomness, in the collection that `seed_parts` names."""
    return generator(*seed_parts, spec.task_key, spec.replica)


def _branches_of(specs: Sequence[EpisodeSpec]) -> dict[int, list[int]]:
    """Index of each trunk -> those of its branches, which are of the same task."""
    index_of = {(spec.group, spec.task_key, spec.replica): index for index, spec in enumerate(specs)}
    found: dict[int, list[int]] = {}
    for index, spec in enumerate(specs):
        if spec.trunk is None:
            continue
        trunk = index_of.get((spec.group, spec.task_key, spec.trunk))
        if trunk is None or specs[trunk].trunk is not None:
            raise ConfigError(f"trunk={spec.trunk}: is no episode of group {spec.group} that starts afresh")
        found.setdefault(trunk, []).append(index)
    return found

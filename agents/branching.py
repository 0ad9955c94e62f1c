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
        trees = max(1, int(self.share * group_size) // self.branches)
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
        self._at, self._generator = at, generator
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
class Start:
    """How a branch begins."""

    env: Any = None
    """Its environment; None when there is none, because infrastructure failed."""
    episode: EpisodeBuilder
    """The record up to the fork."""
    failure: dict[str, Any] | None = None


def branch_starts(snapshot: Snapshot, specs: Sequence[EpisodeSpec], generators: Sequence[Any]) -> list[Start]:
    """Gives every branch a copy of the snapshot; the snapshot's own environment serves the last one."""
    builders = [snapshot.episode.branch(spec, rng) for spec, rng in zip(specs, generators, strict=True)]
    copies: list[Any] = []
    failure: dict[str, Any] | None = None
    if len(specs) > 1:
        try:
            copies = snapshot.env.unwrapped.fork(len(specs) - 1)
        except EnvironmentFailure as error:
            failure = {"kind": error.kind, "message": error.message, "retryable": error.retryable}
    if failure is not None:
        snapshot.env.close()
        return [Start(episode=builder, failure=failure) for builder in builders]
    return [Start(env=env, episode=builder) for env, builder in zip([*copies, snapshot.env], builders, strict=True)]

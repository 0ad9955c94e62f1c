"""Who gives rewards: graders inside environments, scorers after collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..core.tasks import Task
from ..core.trajectories import Episode


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """The verdict on one episode.

    Example: `Grade(reward=1.0, success=True, components={"tests": 1.0})`.
    """

    reward: float
    success: bool
    components: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the reward was made of; for logs."""


class Grader(Protocol):
    """Grades one episode inside its environment; deterministic."""

    def grade(self, task: Task, submission: str) -> Grade:
        """Gives the verdict on a submission.

        Raises:
            SandboxDied: Infrastructure failed; there is no verdict.
        """
        ...


class Scorer(Protocol):
    """Scores finished episodes in batches (reward models, judges); never runs inside `step`."""

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Gives one reward per episode."""
        ...

"""All checks with their numbers, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import actions, agents, determinism, ends, failures, forks, infos, making, speed, tasks
from .bench import Check

SUBJECTS: dict[str, tuple[Check, ...]] = {
    "making": making.CHECKS,
    "determinism": determinism.CHECKS,
    "tasks": tasks.CHECKS,
    "infos": infos.CHECKS,
    "actions": actions.CHECKS,
    "ends": ends.CHECKS,
    "failures": failures.CHECKS,
    "agents": agents.CHECKS,
    "forks": forks.CHECKS,
    "speed": speed.CHECKS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """A check with its place in the contract."""

    number: int
    subject: str
    check: Check


def _numbered() -> Iterator[Numbered]:
    number = 0
    for subject, checks in SUBJECTS.items():
        for check in checks:
            number += 1
            yield Numbered(number=number, subject=subject, check=check)


CHECKS: tuple[Numbered, ...] = tuple(_numbered())

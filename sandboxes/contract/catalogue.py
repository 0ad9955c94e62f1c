"""All checks with their numbers, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from . import commands, files, forks, isolation, life, limits, neighbours, output, state, statuses
from .bench import Bench, Check

_SUBJECTS: dict[str, Sequence[Callable[[Bench], None]]] = {
    "state": state.CHECKS,
    "statuses": statuses.CHECKS,
    "limits": limits.CHECKS,
    "output": output.CHECKS,
    "files": files.CHECKS,
    "commands": commands.CHECKS,
    "life": life.CHECKS,
    "neighbours": neighbours.CHECKS,
    "isolation": isolation.CHECKS,
    "forks": forks.CHECKS,
}
_NEEDS = {"forks": "fork"}
"""Subject -> the optional capability that it is about."""
CAPABILITIES = tuple(_NEEDS.values())


def _numbered() -> Iterator[Check]:
    number = 0
    for subject, performers in _SUBJECTS.items():
        for perform in performers:
            number += 1
            name = perform.__name__.strip("_").replace("_", " ")
            yield Check(number=number, subject=subject, name=name, perform=perform, needs=_NEEDS.get(subject))


CHECKS: tuple[Check, ...] = tuple(_numbered())

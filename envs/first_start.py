"""Tells a sandbox that cannot start, which is the user's to fix, from one that worked before and has failed."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass

from ..core.errors import SandboxDied, SandboxUnavailable


@dataclass(slots=True)
class FirstStart:
    """Remembers whether a sandbox has ever started."""

    has_worked: bool = False

    @contextlib.contextmanager
    def guarded(self) -> Generator[None]:
        """Turns `SandboxUnavailable` into `SandboxDied` where the sandbox worked before."""
        try:
            yield
        except SandboxUnavailable as error:
            if self.has_worked:
                raise SandboxDied(str(error)) from error
            raise
        self.has_worked = True

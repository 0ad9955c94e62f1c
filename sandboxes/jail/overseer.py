"""What clocks and forks need of the supervisor that they serve."""

from __future__ import annotations

from typing import Any, Protocol

from .tracked import Family, Session


class Overseer(Protocol):
    """Keeps account of sessions, and speaks to them, to their keepers and to the host."""

    sessions: dict[int, Session]
    running: set[Session]

    def track(self, number: int, limits_number: int, ours: int, outputs: tuple[int, int]) -> Session:
        """Begins to keep account of a session."""
        ...

    def send(self, session: Session, order: dict[str, Any], body: bytes = b"") -> None:
        """Sends a session something to do."""
        ...

    def order(self, kind: bytes, session: Session, text: bytes = b"") -> None:
        """Sends an order about a session to whoever keeps its process."""
        ...

    def ask_for_warden(self, family: Family) -> None:
        """Asks the zygote for the process id of a family's warden."""
        ...

    def watch_output(self, session: Session) -> None:
        """Takes a session's output as it comes."""
        ...

    def kill(self, session: Session, status: str, message: str) -> None:
        """Ends a session for the limit that its call broke."""
        ...

    def end(self, session: Session, cause: str = "") -> None:
        """Kills a session."""
        ...

    def destroy(self, session: Session) -> None:
        """Kills a session if it lives, and forgets it."""
        ...

    def finish(
        self, session: Session, status: str, exit_status: int | None, message: str, body: bytes | None = None
    ) -> None:
        """Answers the host, and ends a session that was for one call."""
        ...

"""Live copies: the supervisor's part, which brings warden and session together.

The warden makes a place for each copy, the session says that it is waiting, and gets the places with new descriptors.
It forks, each copy answers for itself, and the warden adopts each as its child. Only when all have done so is there an
answer for the host; when anything fails, no copy stays.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from . import wire
from .overseer import Overseer
from .tracked import Call, Family, Session, socket_and_pipes

_PER_BATCH = 40
_WAITING = "more"
"""What a session answers when it is ready to read descriptors."""


@dataclass(slots=True, eq=False)
class _Fork:
    """One request for copies while it is being worked on."""

    original: Session
    call: Call
    copies: dict[int, Session]
    theirs: dict[int, list[int]]
    """Number of a copy -> descriptors for it, until they are sent."""
    places: dict[int, list[str]] = field(default_factory=lambda: dict[int, list[str]]())
    rest: list[str] | None = None
    """Where the original is from then on; known when all places are."""
    rest_fds: list[int] = field(default_factory=lambda: list[int]())
    """Rules that it enters then."""
    waits: bool = False
    forked: bool = False
    refusal: str = ""
    """Why there will be no copies, though the session is not to blame."""
    unfinished: set[tuple[str, int]] = field(default_factory=lambda: set[tuple[str, int]]())
    """(who has still to say so, number) for each copy."""


class Forks:
    """The requests for copies of a supervisor's sessions.

    Args:
        supervisor: Whose sessions they are.
    """

    def __init__(self, supervisor: Overseer) -> None:
        self._supervisor = supervisor
        self._forks: dict[Family, _Fork] = {}

    def start(self, session: Session, call: Call) -> None:
        """Begins to make the copies whose numbers the call has."""
        family = session.family
        if family is None:
            self._supervisor.finish(session, "error", 1, "a session without isolation cannot be forked", b"")
            return
        if family in self._forks:
            self._supervisor.finish(session, "error", 1, "another session of its family is being forked", b"")
            return
        numbers: list[int] = call.head["copies"]
        fork = self._forks[family] = _Fork(session, call, {}, {})
        try:
            for number in numbers:
                ours, outputs, fork.theirs[number] = socket_and_pipes()
                copy = fork.copies[number] = self._supervisor.track(number, session.limits_number, ours, outputs)
                copy.family = family
                family.members.add(copy)
        except OSError as error:
            self._supervisor.send(session, {"op": "fork", "id": call.id})
            self._refuse(fork, f"no descriptors left: {error.strerror}")
            return
        fork.unfinished = {(who, number) for who in ("copy", "warden") for number in numbers}
        self._supervisor.order(b"C", session, " ".join(map(str, numbers)).encode())
        self._supervisor.send(session, {"op": "fork", "id": call.id})

    def on_warden(self, family: Family, kind: bytes, number: int, text: bytes, fds: list[int]) -> None:
        """Takes the warden's packets `C`, `D`, `A` and `F`."""
        fork = self._forks.get(family)
        if fork is None:
            for fd in fds:
                os.close(fd)
        elif kind == b"F" and fork.rest is None:
            self._refuse(fork, text.decode(errors="replace"))
        elif kind == b"F":
            self._fail(fork, text.decode(errors="replace"))
        elif kind == b"C":
            fork.places[number] = json.loads(text)
            fork.theirs[number] += fds
        elif kind == b"D":
            fork.rest, fork.rest_fds = json.loads(text), fds
            self._send_places(fork)
        else:
            self._tick_off(fork, ("warden", number))

    def on_session(self, session: Session, head: dict[str, Any]) -> bool:
        """Takes a frame of a session that is being forked, or of a copy; whether it was in its place."""
        fork = self._forks.get(session.family) if session.family is not None else None
        if fork is None or head.get("id") != fork.call.id:
            return False
        if session is not fork.original:
            session.ready = True
            self._tick_off(fork, ("copy", session.number))
            return ("copy", session.number) not in fork.unfinished
        if not fork.waits:
            fork.waits = True
            self._send_places(fork)
            return head.get("s") == _WAITING
        pids = _whole_numbers(head.get("pids"))
        if fork.forked or head.get("s") != "ok" or len(pids) != len(fork.copies):
            return False
        fork.forked = True
        for number, pid in zip(fork.copies, pids, strict=True):
            self._supervisor.order(b"A", fork.copies[number], b"%d" % pid)
        if fork.refusal:
            del self._forks[self._family_of(fork)]
            self._supervisor.finish(session, "error", 1, fork.refusal, b"")
        return True

    def is_forking(self, session: Session) -> bool:
        """Whether the session, or a family member of it, takes part in a fork that is not done yet."""
        fork = self._forks.get(session.family) if session.family is not None else None
        return fork is not None and (session is fork.original or session.number in fork.copies)

    def drop(self, session: Session, reason: str) -> None:
        """Gives up the fork that a session takes part in, because that session has ended."""
        fork = self._forks.get(session.family) if session.family is not None else None
        if fork is not None and (session is fork.original or session.number in fork.copies):
            self._fail(fork, reason, answer=session is not fork.original)

    def _send_places(self, fork: _Fork) -> None:
        if fork.rest is None or not fork.waits:
            return
        numbers = list(fork.copies)
        for at in range(0, len(numbers) or 1, _PER_BATCH):
            batch = numbers[at : at + _PER_BATCH]
            is_last = at + _PER_BATCH >= len(numbers)
            head: dict[str, Any] = {"copies": [fork.places[number] for number in batch]}
            head["fds"] = len(fork.theirs[batch[0]]) if batch else 0
            head["rest"] = fork.rest if is_last else None
            fds = [fd for number in batch for fd in fork.theirs[number]]
            fds += fork.rest_fds if is_last else ()
            try:
                fork.original.channel.send_with(wire.pack(head), fds)
            except OSError as error:
                self._fail(fork, f"the session does not take its copies: {error}")
                return
        self._close(fork.rest_fds)
        for number, fds in fork.theirs.items():
            self._close(fds)
            folders = fork.places[number]
            fork.copies[number].folders = tuple(folders[:2]) if folders[2] else ()

    def _tick_off(self, fork: _Fork, what: tuple[str, int]) -> None:
        fork.unfinished.discard(what)
        if fork.unfinished:
            return
        del self._forks[self._family_of(fork)]
        self._supervisor.finish(fork.original, "ok", 0, "", b"")

    def _refuse(self, fork: _Fork, reason: str) -> None:
        """Gives up before the session has forked: it goes on as if nothing had been asked of it."""
        self._drop_copies(fork)
        fork.refusal, fork.rest = f"cannot be forked: {reason}", []
        self._send_places(fork)

    def _drop_copies(self, fork: _Fork) -> None:
        copies, theirs, fork.copies, fork.theirs = fork.copies, fork.theirs, {}, {}
        for fds in (*theirs.values(), fork.rest_fds):
            self._close(fds)
        for copy in copies.values():
            self._supervisor.destroy(copy)

    def _fail(self, fork: _Fork, reason: str, answer: bool = True) -> None:
        """Gives up when the session may have forked already: it is not to be trusted with its own state any more."""
        del self._forks[self._family_of(fork)]
        self._drop_copies(fork)
        if answer and fork.original.call is fork.call:
            self._supervisor.kill(fork.original, "killed", f"the session cannot be forked: {reason}")

    @staticmethod
    def _family_of(fork: _Fork) -> Family:
        assert fork.original.family is not None
        return fork.original.family

    @staticmethod
    def _close(fds: list[int]) -> None:
        while fds:
            os.close(fds.pop())


def _whole_numbers(said: Any) -> list[int]:
    """What a session sent as a list of whole numbers, or an empty list if that is not one."""
    items: Any = said if hasattr(said, "append") else []
    return items if all(type(item) is int for item in items) else []

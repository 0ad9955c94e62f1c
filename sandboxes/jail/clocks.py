"""The supervisor's clocks: what a session may use while it works, and between its calls."""

from __future__ import annotations

import time

from . import disk, kernel_memory, processes
from .control_groups import ControlGroups
from .overseer import Overseer
from .processes import Table, Usage
from .tracked import Call, Session

_WATCH_EVERY_S = 0.05
_WATCH_IDLE_EVERY_S, _WATCH_BUSY_EVERY_S = 1.0, 0.25
"""How often sessions are looked at between calls: when all rest, and when something goes on in one of them."""
_OUTPUT_EVENTS_AFTER_S = 0.005
"""Output of shorter calls is read when they end; only longer ones wake the loop for each piece."""
_MIB = 1 << 20


class Clocks:
    """Keeps the limits of a supervisor's sessions.

    Args:
        supervisor: Whose sessions they are.
        isolation: The jail's mode.
        groups: Where sessions have control groups, if they do.
    """

    def __init__(self, supervisor: Overseer, isolation: str, groups: ControlGroups | None) -> None:
        self._supervisor = supervisor
        self._isolation = isolation
        self._groups = groups
        self._next_watch = 0.0
        self._next_idle_watch = 0.0

    def until_next(self) -> float | None:
        """Gives the seconds until something is due; None when nothing ever is."""
        running = self._supervisor.running
        now = time.monotonic()
        if not running:
            return max(0.0, self._next_idle_watch - now) if self._supervisor.sessions else None
        earliest = now + _WATCH_EVERY_S
        for session in running:
            call = session.call
            assert call is not None
            earliest = min(earliest, call.deadline)
            if not call.output_watched:
                earliest = min(earliest, call.started + _OUTPUT_EVENTS_AFTER_S)
        return max(0.0, earliest - now)

    def keep(self) -> None:
        """Does what is due."""
        now = time.monotonic()
        if self._supervisor.running:
            self._keep_running(now)
        if self._supervisor.sessions and now >= self._next_idle_watch:
            self._next_idle_watch = now + _WATCH_IDLE_EVERY_S
            if self._watch_idle():
                self._next_idle_watch = now + _WATCH_BUSY_EVERY_S

    def _keep_running(self, now: float) -> None:
        long_running: list[Session] = []
        for session in list(self._supervisor.running):
            call = session.call
            if call is None:  # it ended with another one's
                continue
            if not call.output_watched and now - call.started >= _OUTPUT_EVENTS_AFTER_S:
                call.output_watched = True
                self._supervisor.watch_output(session)
            if now >= call.deadline:
                seconds = call.head.get("timeout_s") or session.limits["timeout_s"]
                self.interrupt(session, call, "timeout", f"timed out after {seconds:g} s")
            elif now - call.started >= _WATCH_EVERY_S:
                long_running.append(session)
        if long_running and now >= self._next_watch:
            self._next_watch = now + _WATCH_EVERY_S
            self._watch(long_running, now)

    def interrupt(self, session: Session, call: Call, status: str, message: str) -> None:
        """Asks a call to stop; a second time, or where nothing is worth keeping, kills its session."""
        if call.interrupted or session.once or call.operation == "fork":
            self._supervisor.kill(session, status, message)
            return
        call.breach = call.breach or (status, message)
        call.interrupted = True
        call.deadline = time.monotonic() + call.grace_s
        self._supervisor.order(b"I", session)

    def on_output(self, session: Session, printer: Session | None = None) -> None:
        """Takes what a working session (or the other one of its call) has printed."""
        printed = (printer or session).drain()
        call = session.call
        if call is not None and printed > session.limits["output_hard_mib"] * _MIB and not call.interrupted:
            message = f"more than {session.limits['output_hard_mib']} MiB of output"
            self.interrupt(session, call, "output_limit", message)

    def _watch(self, sessions: list[Session], now: float) -> None:
        """Checks what the sessions use that have been working for a while."""
        table = processes.process_table()
        for session in sessions:
            call = session.call
            members = [session] if session.partner is None else [session, session.partner]
            members = [member for member in members if not member.dead]
            if call is None or not self._know_pids(members):
                continue
            cpu_s = 0.0
            for member in members:
                roots = self._roots_of(member, table)
                pids = processes.trees_of(roots, table)
                usage = self._usage_of(member, pids, table)
                self._adopt(member, roots, pids, usage, table)
                cpu_s += usage.cpu_s
                oversize = self._oversize(member, pids, usage, table)
                if oversize is not None and not session.dead:
                    self._supervisor.kill(session, *oversize)
            if session.call is call and call.cpu_s is not None and not call.interrupted:
                if call.cpu_before_s is None:  # it may have been busy since the call began
                    call.cpu_before_s = max(0.0, cpu_s - (now - call.started))
                if cpu_s - call.cpu_before_s > call.cpu_s:
                    self.interrupt(session, call, "timeout", f"more than {call.cpu_s:g} s of CPU time")

    def _usage_of(self, session: Session, pids: list[int], table: Table) -> Usage:
        """Gives what a session uses: by what its processes show, and by its control group if it has one."""
        usage = processes.usage_of(pids, table)
        if self._groups is not None:
            usage.cpu_s = max(usage.cpu_s, self._groups.cpu_s(session.number))
            usage.kernel_mib = self._groups.kernel_mib(session.number)
        return usage

    def _adopt(self, session: Session, roots: list[int], pids: list[int], usage: Usage, table: Table) -> None:
        """Sees to it that the kernel counts what a session uses from now on, where it can."""
        if self._groups is None:
            return
        family = session.family
        own, strays = pids, list[int]()
        if family is not None and len(family.members) > 1:
            own = processes.trees_of([root for root in roots if self._inner(root) == session.pid], table)
            strays = [pid for pid in pids if pid not in own]
        self._groups.adopt(session.number, session.limits, own, strays, usage.cpu_s)

    def _inner(self, pid: int) -> int:
        """Gives the id by which a keeper knows a process."""
        return processes.innermost_pid(pid) if self._isolation == "namespaces" else pid

    def _oversize(self, session: Session, pids: list[int], usage: Usage, table: Table) -> tuple[str, str] | None:
        over = processes.oversize(session.limits, pids, usage, table)
        over = over or self.check_memory(session)
        if over is None and self._isolation != "none" and (locks := kernel_memory.too_many_locks(set(pids))):
            over = "memory_limit", locks
        if over is None and session.folders:
            over = disk.oversize(session.limits, session.folders, pids)
        return over

    def forget(self, session: Session) -> None:
        """Takes leave of a session that is closed."""
        if self._groups is not None:
            self._groups.release(session.number)

    def _know_pids(self, sessions: list[Session]) -> bool:
        """Whether the process ids are known that account for sessions; asks for those that are not, for the next look.

        A family's only member is everything that its warden has.
        """
        known = True
        for session in sessions:
            family = session.family
            if family is not None and not family.warden_pid:
                self._supervisor.ask_for_warden(family)
                known = False
            if family is not None and len(family.members) == 1:
                continue
            for member in [session] if family is None else family.members:
                if not member.pid and not member.dead:
                    self._supervisor.order(b"Q", member)
                    known = False
        return known

    def _roots_of(self, session: Session, table: Table) -> list[int]:
        """Gives the processes below which everything is the session's own, by their ids in the jail.

        Of a family, what is nobody's (its parent's end or a trick made it the warden's child) counts for everybody.
        """
        family = session.family
        if family is None:
            return [session.pid]
        others = {member.pid for member in family.members if member is not session}
        roots: list[int] = []
        for pid, (parent, _) in table.items():
            if parent == family.warden_pid and self._inner(pid) not in others:
                roots.append(pid)
        return roots

    def _watch_idle(self) -> bool:
        """Ends sessions whose threads and processes go on working between calls: limits hold there too.

        Returns:
            Whether something goes on in a session, or it is not known yet which processes are its own.
        """
        if self._groups is not None:
            self._groups.sweep()
        resting = [session for session in self._supervisor.sessions.values() if session.ready and not session.call]
        living = [session for session in resting if not session.dead]
        idle = [session for session in living if self._know_pids([session])]
        goes_on = len(idle) < len(living)
        if not idle:
            return goes_on
        table = processes.process_table()
        for session in idle:
            roots = self._roots_of(session, table)
            pids = processes.trees_of(roots, table)
            usage = self._usage_of(session, pids, table)
            if session.idle_cpu_s is None:
                session.idle_cpu_s = usage.cpu_s
            most_cpu_s = session.limits["cpu_s"] or session.limits["timeout_s"]
            oversize = None
            if usage.cpu_s != session.idle_cpu_s or usage.processes > 1:
                goes_on = True
                self._adopt(session, roots, pids, usage, table)
                oversize = self._oversize(session, pids, usage, table)
            if oversize is not None:
                self._supervisor.end(session, f"the session was killed between calls: {oversize[1]}")
            elif usage.cpu_s - session.idle_cpu_s > most_cpu_s:
                cause = f"the session was killed between calls: more than {most_cpu_s:g} s of CPU time"
                self._supervisor.end(session, cause)
        return goes_on

    def check_memory(self, session: Session) -> tuple[str, str] | None:
        """Gives status and message if the kernel has ended processes of a session for its memory."""
        if self._groups is None or not self._groups.ran_out(session.number):
            return None
        return "memory_limit", f"more than {session.limits['memory_mib']} MiB of memory"

    def check_disk(self, session: Session) -> tuple[str, str] | None:
        """Gives status and message if a session's folders hold more than they may; for the end of a call."""
        if not session.folders:
            return None
        return disk.oversize(session.limits, session.folders)

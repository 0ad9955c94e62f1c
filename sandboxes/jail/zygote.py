"""The zygote: a warm interpreter that clones sessions and never sees data.

It is forked off before the first byte of data arrives. The supervisor sends it short orders (packets; `S`pawn,
`I`nterrupt, `K`ill, `R`eap, `W`orkspace, each with a session number) and descriptors; whatever a session inherits by
fork was therefore never secret. The zygote is the parent of all sessions, so that its signals never reach a process
that merely has a recycled id.
"""

from __future__ import annotations

import array
import builtins
import contextlib
import gc
import json
import os
import resource
import signal
import socket
import sys
from typing import Any, NoReturn

from . import kernel, outer, seccomp, session, wire

_NAMESPACES = kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC
_ZYGOTE_FD, _RULESET_FD, _FIRST_FREE_FD = 3, 4, 5
EXTRA_FD = 4
"""Where a session finds its second socket, if it was given one."""
_REAP_EVERY_S = 0.005
_ADDRESS_SPACE_SLACK_MIB = 128
"""Address space beyond `memory_mib`: libraries that are mapped and never touched."""
_MIB = 1 << 20


class Zygote:
    """Clones sessions on order.

    Args:
        orders: Packet socket to the supervisor.
        isolated: False only for `isolation="none"`.
    """

    def __init__(self, orders: socket.socket, isolated: bool) -> None:
        kernel.place(orders.fileno(), _ZYGOTE_FD)
        orders.detach()
        self._orders = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=_ZYGOTE_FD)
        self._isolated = isolated
        self._filter = seccomp.Filter() if isolated else None
        ruleset = kernel.landlock_ruleset() if isolated else -1
        self._landlocked = ruleset >= 0
        kernel.place(ruleset if self._landlocked else 0, _RULESET_FD)
        self._cloner = kernel.Cloner()
        self._running: dict[int, int] = {}  # session number -> process id
        self._dying: dict[int, int | None] = {}  # process id -> session number, if its exit is to be reported
        self._uid, self._gid = os.getuid(), os.getgid()

    def serve(self) -> NoReturn:
        """Takes orders until the supervisor is gone."""
        os.closerange(_FIRST_FREE_FD, 1024)
        _set_common_limits()
        _warm_up()
        while True:
            self._orders.settimeout(_REAP_EVERY_S if self._dying else None)
            try:
                order, ancillary, _, _ = self._orders.recvmsg(4096, socket.CMSG_SPACE(32))
            except TimeoutError:
                self._reap()
                continue
            if not order:
                self._end_all()
            fds = array.array("i")
            for _, _, data in ancillary:
                fds.frombytes(data)
            kind, number, text = order.split(b" ", 2)
            self._obey(kind, int(number), text, list(fds))
            for fd in fds:
                os.close(fd)
            if self._dying:
                self._reap()

    def _obey(self, kind: bytes, number: int, text: bytes, fds: list[int]) -> None:
        pid = self._running.get(number)
        if kind == b"S":
            self._spawn(number, json.loads(text), fds)
        elif pid is None:
            if kind == b"R":
                self._orders.send(b"X %d -9" % number)
            elif kind == b"W":
                self._orders.send(b"W %d" % number)
        elif kind == b"I":
            os.kill(pid, signal.SIGINT)
        elif kind == b"W":
            self._send_workspace(number, pid)
        else:
            self._kill(number, pid, report=kind == b"R")

    def _spawn(self, number: int, limits: dict[str, Any], fds: list[int]) -> None:
        try:
            pid = self._cloner.clone(_NAMESPACES if self._isolated else 0)
        except OSError as error:
            self._orders.send(b"E %d %s" % (number, str(error).encode()))
            return
        if pid == 0:
            self._become_session(limits, fds)
        self._running[number] = pid
        self._orders.send(b"P %d %d" % (number, pid))

    def _kill(self, number: int, pid: int, report: bool) -> None:
        del self._running[number]
        self._dying[pid] = number if report else None
        if not self._isolated:
            _kill_group(pid)
        os.kill(pid, signal.SIGKILL)  # process 1 of its namespace: everything in it dies with it

    def _reap(self) -> None:
        for pid, number in list(self._dying.items()):
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped == 0:
                continue
            del self._dying[pid]
            if number is not None:
                self._orders.send(b"X %d %d" % (number, os.waitstatus_to_exitcode(status)))

    def _send_workspace(self, number: int, pid: int) -> None:
        path = f"/proc/{pid}/root/workspace" if self._isolated else f"/proc/{pid}/cwd"
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            self._orders.send(b"W %d" % number)
            return
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self._orders.sendmsg([b"W %d" % number], ancillary)
        os.close(fd)

    def _end_all(self) -> NoReturn:
        for number, pid in list(self._running.items()):
            self._kill(number, pid, report=False)
        os._exit(0)

    def _become_session(self, limits: dict[str, Any], fds: list[int]) -> NoReturn:
        """In the new process: finish the jail, then serve."""
        try:
            control, out, err = fds[:3]
            if self._isolated:
                kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # so that its own /proc/self can be used
                kernel.map_ids(outer.SESSION_ID, self._uid, self._gid)
                _mount_private(limits)
            else:
                os.setsid()
            os.chdir(limits.get("directory", "/workspace"))
            _set_limits(limits)
            if self._isolated:
                kernel.drop_capabilities()
                if self._landlocked:
                    kernel.landlock_restrict(_RULESET_FD)
                assert self._filter is not None
                self._filter.apply()
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.dup2(control, session.CONTROL_FD, inheritable=False)
            if len(fds) > 3:
                os.dup2(fds[3], EXTRA_FD, inheritable=False)
                os.closerange(EXTRA_FD + 1, 1 << 16)
            else:
                os.closerange(session.CONTROL_FD + 1, 1 << 16)
            self._orders.detach()
        except BaseException as error:
            _report_failure(fds[0], error)
        session.serve()


def _mount_private(limits: dict[str, Any]) -> None:
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    inodes = limits["inodes"]
    for path, size in (("/workspace", limits["workspace_mib"]), ("/tmp", limits["tmp_mib"])):
        kernel.mount("tmpfs", path, "tmpfs", flags, f"size={size}m,nr_inodes={inodes},mode=0700")
    kernel.mount("proc", "/proc", "proc", flags | kernel.MS_NOEXEC)


def _set_limits(limits: dict[str, Any]) -> None:
    address_space = (limits["memory_mib"] + _ADDRESS_SPACE_SLACK_MIB) * _MIB
    file_size = max(limits["workspace_mib"], limits["tmp_mib"]) * _MIB
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if limits["count_processes"]:  # since Linux 5.14 this counts per user namespace
        resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))


def _set_common_limits() -> None:
    """What is the same for every session is set once, here, and inherited."""
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        resource.setrlimit(kind, (value, value))
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")  # when memory runs out, sessions go first
    except OSError:
        pass


def _warm_up() -> None:
    """Runs each path of a session once, so that clones inherit its caches, then hides the jail's own modules."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - for the life of the process
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - for the life of the process
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115 - for the life of the process
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    session.rehearse()
    for name in [name for name in sys.modules if name.partition(".")[0] == "jail"]:
        del sys.modules[name]
    builtins.__dict__.pop("_", None)
    gc.collect()
    gc.freeze()
    gc.disable()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _report_failure(control: int, error: BaseException) -> NoReturn:
    try:
        os.write(control, wire.pack({"fatal": f"{type(error).__name__}: {error}"}))
    finally:
        os._exit(125)

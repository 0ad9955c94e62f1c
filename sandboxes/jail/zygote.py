"""The zygote: a warm interpreter that clones sessions and never sees data.

It is forked off before the first byte of data arrives. The supervisor sends it short orders (packets of a letter, a
number and a text) and descriptors; whatever a session inherits by fork was therefore never secret. The zygote is the
parent of all sessions, so that its signals never reach a process that merely has a recycled id.

    L k {json}   limits number k
    S n k        spawn session n with limits k; three or four descriptors come along
    I n          interrupt session n
    K n, R n     kill session n; R wants to know how it ended: `X n status`
    Q n          which process is session n? `P n pid`
    W n          open the workspace of session n: `W n` and a descriptor

What costs here is memory pages that a clone writes to: a session's whole path is walked once before the first clone,
and everything that can be prepared is.
"""

from __future__ import annotations

import _sitebuiltins
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

from . import kernel, outer, seccomp, session, stub

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from typing import Any, NoReturn

_NAMESPACES = kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS
_ZYGOTE_FD, _RULESET_FD, _FIRST_FREE_FD = 3, 4, 5
_REAP_EVERY_S = 0.005
_ADDRESS_SPACE_SLACK_MIB = 128
"""Address space beyond `memory_mib`: libraries that are mapped and never touched."""
_SIGNALS = 256
_MIB = 1 << 20


class Profile:
    """Limits in the form in which a new session applies them.

    Args:
        limits: The fields of `Limits`, and `count_processes`: whether the kernel counts processes per user namespace.
    """

    def __init__(self, limits: dict[str, Any]) -> None:
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        options = "size={}m,nr_inodes={},mode=0700"
        workspace, tmp, inodes = limits["workspace_mib"], limits["tmp_mib"], limits["inodes"]
        self.mounts = (
            kernel.prepared_mount("tmpfs", "/workspace", "tmpfs", flags, options.format(workspace, inodes)),
            kernel.prepared_mount("tmpfs", "/tmp", "tmpfs", flags, options.format(tmp, inodes)),
            kernel.prepared_mount("proc", "/proc", "proc", flags | kernel.MS_NOEXEC | kernel.MS_RDONLY),
        )
        address_space = (limits["memory_mib"] + _ADDRESS_SPACE_SLACK_MIB) * _MIB
        file_size = max(workspace, tmp) * _MIB
        self.limits = [
            (resource.RLIMIT_AS, (address_space, address_space)),
            (resource.RLIMIT_FSIZE, (file_size, file_size)),
            (resource.RLIMIT_SIGPENDING, (_SIGNALS, _SIGNALS)),  # counted per user, so not among the common limits
        ]
        if limits["count_processes"]:
            self.limits.append((resource.RLIMIT_NPROC, (limits["processes"], limits["processes"])))


class Zygote:
    """Clones sessions on order.

    Args:
        orders: Packet socket to the supervisor.
        directory: Where sessions have folders instead of a jail, for `isolation="none"`; None for namespaces.
    """

    def __init__(self, orders: socket.socket, directory: str | None) -> None:
        kernel.place(orders.fileno(), _ZYGOTE_FD)
        orders.detach()
        self._orders = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=_ZYGOTE_FD)
        self._directory = directory
        self._isolated = isolated = directory is None
        self._confinement: list[kernel.Step] = []
        self._ruleset = kernel.landlock_ruleset() if isolated else -1
        if self._ruleset >= 0:
            kernel.place(self._ruleset, _RULESET_FD)
            self._ruleset = _RULESET_FD
        else:
            os.dup2(0, _RULESET_FD)
        os.closerange(_FIRST_FREE_FD, 1024)
        if isolated:
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # so that sessions, which inherit it, can use their /proc/self
            self._confinement = [kernel.no_capabilities(), seccomp.session_filter()]
            if self._ruleset >= 0:
                self._confinement.insert(1, kernel.landlock(self._ruleset))
            self._id_maps = kernel.IdMaps(outer.SESSION_ID, os.getuid(), os.getgid())
            kernel.perform([seccomp.common_filter()])
        self._cloner = kernel.Cloner()
        self._profiles: dict[bytes, Profile] = {}
        self._running: dict[int, int] = {}  # session number -> process id
        self._dying: dict[int, int | None] = {}  # process id -> session number, if its exit is to be reported

    def serve(self) -> NoReturn:
        """Takes orders until the supervisor is gone."""
        _set_common_limits()
        self._interpreter = _warm_up()
        self._orders.send(b"H")
        space = socket.CMSG_SPACE(32)
        waiting_forever = True
        while True:
            if waiting_forever == bool(self._dying):
                waiting_forever = not waiting_forever
                self._orders.settimeout(None if waiting_forever else _REAP_EVERY_S)
            try:
                order, ancillary, _, _ = self._orders.recvmsg(4096, space)
            except TimeoutError:
                self._reap()
                continue
            if not order:
                self._end_all()
            self._obey(order, ancillary)
            if self._dying:
                self._reap()

    def _obey(self, order: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        kind, number, text = order.split(b" ", 2)
        if kind == b"S":
            fds = array.array("i", ancillary[0][2])
            self._spawn(int(number), self._profiles[text], fds)
            for fd in fds:
                os.close(fd)
        elif kind == b"L":
            self._profiles[number] = Profile(json.loads(text))
        else:
            self._obey_running(kind, int(number))

    def _obey_running(self, kind: bytes, number: int) -> None:
        pid = self._running.get(number, 0)
        if kind == b"W":
            self._send_workspace(number, pid)
        elif kind == b"Q":
            self._orders.send(b"P %d %d" % (number, pid))
        elif not pid:
            if kind == b"R":
                self._orders.send(b"X %d -9" % number)
        elif kind == b"I":
            os.kill(pid, signal.SIGINT)
        else:
            self._kill(number, pid, report=kind == b"R")

    def _spawn(self, number: int, profile: Profile, fds: array.array[int]) -> None:
        try:
            pid = self._cloner.clone(_NAMESPACES if self._isolated else 0)
        except OSError as error:
            self._orders.send(b"E %d %s" % (number, str(error).encode()))
            return
        if pid == 0:
            self._become_session(number, profile, fds)
        self._running[number] = pid

    def _kill(self, number: int, pid: int, report: bool) -> None:
        del self._running[number]
        self._dying[pid] = number if report else None
        if not self._isolated:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
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

    def _become_session(self, number: int, profile: Profile, fds: array.array[int]) -> NoReturn:
        """In the new process: finish the jail, then serve."""
        try:
            if self._isolated:
                self._id_maps.write()
                kernel.perform(profile.mounts)
                os.chdir("/workspace")
                os.setpgid(0, 0)  # a signal to one's own group would reach the zygote's from here
            else:
                os.setsid()
                os.mkdir(f"{self._directory}/{number}")
                os.chdir(f"{self._directory}/{number}")
            for kind, values in profile.limits:
                resource.setrlimit(kind, values)
            kernel.perform(self._confinement)
        except OSError as error:  # the last words on the zygote's own socket, which a session does not have
            self._orders.send(b"E %d %s" % (number, str(error).encode()))
            os._exit(1)
        os.dup2(fds[1], 1)
        os.dup2(fds[2], 2)
        os.dup2(fds[0], session.CONTROL_FD, inheritable=False)
        if len(fds) > 3:
            os.dup2(fds[3], stub.CHANNEL_FD, inheritable=False)
        os.closerange(session.CONTROL_FD + 1 if len(fds) == 3 else stub.CHANNEL_FD + 1, 1 << 16)
        self._orders.detach()
        session.serve(self._interpreter)


def _set_common_limits() -> None:
    """What is the same for every session is set once, here, and inherited."""
    for kind, value in (
        (resource.RLIMIT_CORE, 1),  # 0 does not keep the kernel from starting the host's crash handler; 1 does
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")  # when memory runs out, sessions go first


def _warm_up() -> session.Interpreter:
    """Walks a session's path, so that clones inherit its caches, and hides the jail's own modules."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - kept for good
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    for name in ("exit", "quit"):  # `-S` leaves them out
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D"))
    interpreter = session.prepare()
    with contextlib.suppress(OSError):
        kernel.mount(None, "/nowhere", None)  # refused; it prepares the call
    for name in [name for name in sys.modules if name.partition(".")[0] == "jail"]:
        del sys.modules[name]
    gc.collect()
    _fill_pools()
    gc.freeze()
    gc.disable()
    return interpreter


def _fill_pools() -> None:
    """Fills the gaps in the allocator's used pools, so that clones allocate side by side in fresh ones.

    Otherwise each size class would make a clone copy the pages of an old pool. CPython: pools of 16 KiB, size classes
    in steps of 16 up to 512 bytes; where that is not so, this only costs a little memory.
    """
    pool, header = 16384, sys.getsizeof(b"")
    for size in range(48, 513, 16):
        count, last = 0, 0
        while count < _FILL_BYTES // size or (last % pool) + 2 * size <= pool:
            block = bytes(size - header)
            last = id(block)
            _filler.append(block)
            count += 1


_FILL_BYTES = 1 << 14
_filler: list[bytes] = []

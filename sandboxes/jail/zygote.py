"""The zygote: a warm interpreter that clones sessions and never sees data.

It is forked off before the first byte of data arrives. The supervisor sends it short orders (packets of a letter, a
number and a text) and descriptors; whatever a session inherits by fork was therefore never secret.

    L k {json}   limits number k
    S n k        spawn session n, which runs once, with limits k; its three or four descriptors come along
    F n k        spawn session n with a warden, whose end of a packet socket comes first among the descriptors
    Q n          which process is session n's warden? `P n pid`
    D n          session n's warden is ending: take leave of it

and what every keeper does, for the sessions without a warden. What costs here is memory pages that a clone writes to: a
session's whole path is walked once before the first clone, and everything that can be prepared is.
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
import time

from . import kernel, landlock, seccomp, session, stub, trees
from .confinement import Bare, Landlocked, Namespaces, Users
from .forking import Copying
from .keeper import Keeper
from .profile import Profile
from .warden import Warden

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .confinement import Confinement
    from .places import Place

_ORDERS_FD, _FIRST_FREE_FD = 3, 4
_WARDEN_PATIENCE_S = 5.0


def confinement_of(config: dict[str, Any]) -> Confinement:
    """Gives the mode that the host asks for.

    Raises:
        OSError: This kernel cannot do it.
    """
    isolation, directory = config["isolation"], config["directory"]
    if isolation == "namespaces":
        return Namespaces()
    if isolation == "landlock" or (isolation == "uid" and landlock.version() >= landlock.NEEDED_VERSION):
        in_container = config["host_pid"] is None
        return Landlocked(directory, config["look"], config["names"], config["prefixes"], in_container)
    if isolation == "uid":
        return Users(directory)
    return Bare(directory)


class Zygote(Keeper):
    """Clones sessions on order.

    Args:
        orders: Packet socket to the supervisor.
        config: What the host sent.

    Raises:
        OSError: This kernel cannot isolate sessions as asked for.
    """

    def __init__(self, orders: socket.socket, config: dict[str, Any]) -> None:
        kernel.place(orders.fileno(), _ORDERS_FD)
        orders.detach()
        super().__init__(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=_ORDERS_FD))
        os.closerange(_FIRST_FREE_FD, 1 << 16)
        self._isolated = config["isolation"] != "none"
        self._confinement = confinement_of(config)
        if self._isolated:
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # so that sessions, which inherit it, can use their /proc/self
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
            kernel.perform([seccomp.common_filter()])
        self._cloner = kernel.Cloner()
        self._profiles: dict[bytes, Profile] = {}
        self._wardens: dict[int, int] = {}  # number of the family's first session -> process id
        self._leaving: dict[int, float] = {}  # process id of a warden -> when it must have ended

    def serve(self) -> NoReturn:
        """Takes orders until the supervisor is gone."""
        _set_common_limits()
        self._interpreter = _warm_up()
        self.orders.send(b"H")
        while True:
            received = self.receive()
            if received is None:
                continue
            order, ancillary = received
            if not order:
                self._end_all()
            self._obey(order, ancillary)
            if self.dying:
                self.reap()

    def _obey(self, order: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        kind, number, text = order.split(b" ", 2)
        if kind in (b"S", b"F"):
            fds = array.array("i", ancillary[0][2])
            self._spawn(int(number), self._profiles[text], fds, has_warden=kind == b"F")
            for fd in fds:
                os.close(fd)
        elif kind == b"L":
            profile = self._profiles[number] = Profile(json.loads(text))
            self._confinement.prepare(profile)
        elif kind == b"D":
            self._dismiss(int(number))
        elif kind == b"Q" and int(number) in self._wardens:
            self.orders.send(b"P %s %d" % (number, self._wardens[int(number)]))
        elif kind == b"W":
            self._send_workspace(int(number))
        else:
            self.obey(kind, int(number))

    def _spawn(self, number: int, profile: Profile, fds: array.array[int], has_warden: bool) -> None:
        try:
            pid = self._cloner.clone(self._confinement.clone_flags)
        except OSError as error:
            self.orders.send(b"E %d %s" % (number, str(error).encode()))
            return
        if pid == 0:
            self._become(number, profile, fds, has_warden)
        (self._wardens if has_warden else self.running)[number] = pid

    def end(self, pid: int) -> None:
        """Kills a session without a warden."""
        if not self._isolated:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)  # process 1 of its namespace: everything in it dies with it

    def _dismiss(self, number: int) -> None:
        pid = self._wardens.pop(number, 0)
        if not pid:
            return
        self.dying[pid] = None
        if self._confinement.clone_flags:
            os.kill(pid, signal.SIGKILL)  # process 1, too
        else:
            self._leaving[pid] = time.monotonic() + _WARDEN_PATIENCE_S

    def reap(self) -> None:
        """Does that for wardens, too; one that does not end in time is killed with all that it has."""
        super().reap()
        if not self._leaving:
            return
        now = time.monotonic()
        for pid, latest in list(self._leaving.items()):
            if pid not in self.dying:
                del self._leaving[pid]
            elif now > latest:
                trees.kill_tree(pid)
                trees.kill_strays(adopted={*self.running.values(), *self._wardens.values(), *self.dying})
                del self._leaving[pid]

    def _send_workspace(self, number: int) -> None:
        """For sessions that are not isolated; the others have wardens."""
        try:
            fd = os.open(f"/proc/{self.running.get(number, 0)}/cwd", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            self.orders.send(b"W %d" % number)
            return
        self.send_with(b"W %d" % number, fd)
        os.close(fd)

    def _end_all(self) -> NoReturn:
        """Ends with all sessions; wardens notice by themselves that the supervisor is gone."""
        for pid in self.running.values():
            self.end(pid)
        deadline = time.monotonic() + _WARDEN_PATIENCE_S
        if not self._confinement.clone_flags:
            while trees.children_of(os.getpid()) and time.monotonic() < deadline:
                with contextlib.suppress(ChildProcessError):
                    if os.waitpid(-1, os.WNOHANG)[0] == 0:
                        time.sleep(0.005)
            trees.kill_strays(adopted=())
        os._exit(0)

    # --- in new processes

    def _become(self, number: int, profile: Profile, fds: array.array[int], has_warden: bool) -> NoReturn:
        """In the new process: makes the session's place, and becomes the session or its warden."""
        try:
            place = self._confinement.settle(number, profile)
            if not has_warden:
                self._become_session(place, profile, fds, forkable=False)
            orders, *others = fds
            os.dup2(orders, _ORDERS_FD, inheritable=False)
            os.close(orders)
            fds = array.array("i", others)
            pid = self._cloner.clone(0)
            if pid == 0:
                self._become_session(place, profile, fds, forkable=True)
            for fd in fds:
                os.close(fd)
        except OSError as error:  # the last words on the socket for orders, which a session does not have
            self.orders.send(b"E %d %s" % (number, str(error).encode()))
            os._exit(1)
        try:
            Warden(self.orders, self._confinement, profile, number, pid, place).serve()
        except BaseException as error:
            with contextlib.suppress(OSError):
                self.orders.send(b"E %d the warden failed: %s" % (number, repr(error).encode()))
        finally:
            self._confinement.end_family(place)
            os._exit(1)

    def _become_session(self, place: Place, profile: Profile, fds: array.array[int], forkable: bool) -> NoReturn:
        self._confinement.confine(place, profile, forkable)
        os.dup2(fds[1], 1)
        os.dup2(fds[2], 2)
        self.orders.detach()
        os.dup2(fds[0], session.CONTROL_FD, inheritable=False)
        if len(fds) > 3:
            os.dup2(fds[3], stub.CHANNEL_FD, inheritable=False)
        os.closerange(session.CONTROL_FD + 1 if len(fds) == 3 else stub.CHANNEL_FD + 1, 1 << 16)
        session.serve(self._interpreter, Copying(place))


def _set_common_limits() -> None:
    """What is the same for every session is set once, here, and inherited."""
    for kind, value in (
        (resource.RLIMIT_CORE, 1),  # 0 does not keep the kernel from starting the host's crash handler; 1 does
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        with contextlib.suppress(ValueError):  # gVisor refuses to set the limits that it does not keep
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

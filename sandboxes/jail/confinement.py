"""The modes of isolation: what a session's processes get of their own, and what they give up."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket

from . import kernel, landlock, outer, questions, seccomp, trees
from .places import Place, make_folders
from .profile import Profile, limit

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Confinement(Protocol):
        """A mode of isolation."""

        clone_flags: int
        """The namespaces that a session's first process is cloned into."""
        needs_warden: bool
        """Whether even a session that runs once needs a warden to end all that it leaves behind."""

        def prepare(self, profile: Profile) -> None:
            """Prepares what clones with these limits will do."""
            ...

        def settle(self, number: int, profile: Profile) -> Place:
            """Makes the place of a session; in its warden, if it has one."""
            ...

        def confine(self, place: Place, profile: Profile, forkable: bool) -> None:
            """Gives up what untrusted code must not have: a session's last step before it serves."""
            ...

        def listener(self) -> int:
            """In the warden, once the session is being made: gives the descriptor with the kernel's questions about
            modes and times (see `modes_and_times`); -1 where there are none."""
            ...

        def rules(self, folders: Sequence[int], pid: int) -> int:
            """Gives a ruleset of Landlock that parts a session, or its copy, from the others of its family; -1 where
            the kernel has none of use. The warden makes it, because sessions cannot.

            Args:
                folders: Descriptors of what it may change.
                pid: Its process; 0 for a copy that is not born yet.
            """
            ...

        def end_family(self, place: Place) -> None:
            """Kills all of a family, from its warden."""
            ...


_PROCESSES_OF_ALL = 512
_NICENESS = 10
"""Where sessions share a user, the kernel counts the processes of all together. This is how many they may have, and how
far they give way, so that a fork bomb does not keep the supervisor from ending it. In containers they always give way.
"""
_MOST_ROUNDS = 2000
_DEVICES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")


class Namespaces:
    """Namespaces of users, processes and mounts for each session, inside the outer jail's."""

    clone_flags = kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS
    needs_warden = False

    def __init__(self) -> None:
        self._id_maps = kernel.IdMaps(outer.SESSION_ID, os.getuid(), os.getgid())
        self._ruleset = landlock.scope_ruleset()
        self._place = Place("/workspace", "/tmp")
        self._filters = [
            seccomp.session_filter(chroot=chroot, shares_processes=False, shares_user=False) for chroot in (False, True)
        ]

    def prepare(self, profile: Profile) -> None:
        """Prepares every call: what a clone builds itself costs it memory pages."""
        own_group = kernel.libc.setsid, (), "setsid"  # the zygote's would be in reach of signals
        profile.mounts.append(own_group)
        counted = profile.processes if profile.count_processes else None
        enter = [landlock.enter(self._ruleset)] if self._ruleset >= 0 else []
        home = kernel.libc.chdir, (b"/workspace",), "chdir"
        profile.steps[False] = [
            home, *profile.limit_steps(counted, spare=0), kernel.capabilities(), *enter, self._filters[False],
        ]  # fmt: skip
        profile.steps[True] = [
            home, own_group, kernel.prepared_prctl(kernel.PR_SET_CHILD_SUBREAPER, 1),
            *profile.limit_steps(None if counted is None else counted + 1),
            kernel.capabilities(kernel.CAP_SYS_CHROOT), *enter, self._filters[True],
        ]  # fmt: skip

    def settle(self, number: int, profile: Profile) -> Place:
        """Maps the user and mounts folders of the session's own."""
        self._id_maps.write()
        kernel.perform(profile.mounts)
        return self._place

    def confine(self, place: Place, profile: Profile, forkable: bool) -> None:
        """Gives up everything that the session's code must not have."""
        kernel.perform(profile.steps[forkable])

    def listener(self) -> int:
        """The session's files are on mounts of its own, and the kernel asks nothing."""
        return -1

    def rules(self, folders: Sequence[int], pid: int) -> int:
        """Gives a ruleset that leaves files alone: each session has mounts of its own."""
        return _copy_of(self._ruleset)

    def end_family(self, place: Place) -> None:
        """Nothing to do: the kernel ends what process 1 leaves behind."""


class _Folders:
    """What modes without mount namespaces have in common: sessions have folders below one that the host chose.

    Args:
        directory: That folder.
        in_container: Whether nothing but sessions runs beside the supervisor.
    """

    clone_flags = 0
    needs_warden = True

    def __init__(self, directory: str, in_container: bool) -> None:
        self._directory = directory
        self._as_root = os.getuid() == 0
        self._gives_way = in_container or not self._as_root
        self._first_user = outer.first_user() if self._as_root else 0
        self._offset = int.from_bytes(os.urandom(2), "big")  # jails that shared users would share the kernel's counts

    def prepare(self, profile: Profile) -> None:
        """Nothing to do."""

    def settle(self, number: int, profile: Profile) -> Place:
        """Makes the session's folders; what it leaves running will be this process's to end."""
        os.setsid()
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        user = self._first_user + (self._offset + number) % outer.USERS if self._as_root else 0
        parent = os.open(self._directory, os.O_PATH | os.O_DIRECTORY)
        place, base = make_folders(parent, str(number), self._directory, user)
        os.close(base)
        os.close(parent)
        return place

    def listener(self) -> int:
        """Where sessions are users of their own, the kernel asks nothing."""
        return -1

    def _start_confining(self, place: Place, profile: Profile, kept: tuple[int, ...] = ()) -> None:
        """Moves in and becomes the session's user, if it has one. `kept` capabilities may stay for a while."""
        place.move_in()
        os.setsid()
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        profile.apply(profile.processes if place.user else None)
        if self._gives_way:
            os.nice(_NICENESS)
        if place.user:
            kernel.prctl(kernel.PR_SET_KEEPCAPS, bool(kept))
            become(place.user)
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # the change of user took it, and with it /proc/self
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)


class Landlocked(_Folders):
    """Landlock, which needs no privileges: sessions are ordinary processes that can open and signal no others.

    Under root each has a user of its own. Should such a user be unable to reach the interpreter (one in /root) or its
    own folders, it may look at everything, as far as Landlock lets it open that. Without root they are the host's user,
    and the warden changes modes and times for them.

    Args:
        directory: Where sessions have their folders.
        look: Folders that sessions may read, see `landlock.Folders`.
        names: Folders whose entries they may list.
        needed: Folders that the interpreter cannot do without.
        in_container: Whether nothing but sessions runs beside the supervisor.

    Raises:
        OSError: This kernel's Landlock does not keep signals apart.
    """

    def __init__(
        self, directory: str, look: list[str], names: list[str], needed: list[str], in_container: bool
    ) -> None:
        super().__init__(directory, in_container)
        if landlock.version() < landlock.NEEDED_VERSION:
            raise OSError(f"its Landlock has version {landlock.version()}, not {landlock.NEEDED_VERSION}")
        self._folders = landlock.Folders(look, names, _DEVICES)
        self._outer = landlock.outer_ruleset()
        self._kept: tuple[int, ...] = ()
        self._most_processes = 0
        if not self._as_root:
            self._most_processes = trees.threads_of(os.getuid()) + _PROCESSES_OF_ALL
        elif not outer.can_reach(self._first_user, needed, directory):
            self._kept = (kernel.CAP_DAC_READ_SEARCH,)
        self._filter = seccomp.session_filter(chroot=False, shares_processes=True, shares_user=not self._as_root)
        self._ask = seccomp.modes_and_times_filter(asks=True)
        self._asks = not self._as_root and questions.is_possible(self._ask)
        self._pretend = [] if self._as_root or self._asks else [seccomp.modes_and_times_filter(asks=False)]
        self._line: tuple[socket.socket, socket.socket] | None = None

    def settle(self, number: int, profile: Profile) -> Place:
        """Makes the session's folders, and enters a domain in which the session's own will be nested."""
        place = super().settle(number, profile)
        outside = os.getppid()
        kernel.perform([landlock.enter(self._outer)])
        self._line = socket.socketpair() if self._asks else None
        try:
            os.kill(outside, 0)
        except PermissionError:
            return place
        raise OSError("Landlock does not keep signals inside of a domain")

    def confine(self, place: Place, profile: Profile, forkable: bool) -> None:
        """Gives up everything that the session's code must not have."""
        self._start_confining(place, profile, self._kept)
        if self._most_processes:
            kernel.perform([limit(resource.RLIMIT_NPROC, self._most_processes)])
        kernel.perform([kernel.capabilities(*self._kept, inherit=True)])
        for capability in self._kept:
            kernel.pass_on(capability)
        folders = [os.open(path, os.O_PATH) for path in (place.home, place.tmp, place.reserve)]
        ruleset = self._folders.ruleset(folders, os.getpid())
        kernel.perform([landlock.enter(ruleset), *self._pretend])
        if self._line is not None:
            questions.hand_over(self._line[1], self._ask)
            self._line[0].close()
        kernel.perform([self._filter])
        for fd in (*folders, ruleset):
            os.close(fd)

    def listener(self) -> int:
        """Waits for what the session hands over."""
        if self._line is None:
            return -1
        self._line[1].close()
        return questions.take_over(self._line[0])

    def rules(self, folders: Sequence[int], pid: int) -> int:
        """Gives a ruleset for a session's own folders."""
        return self._folders.ruleset(folders, pid)

    def end_family(self, place: Place) -> None:
        """Kills everything in this process's domain, itself excepted."""
        kill_everything_else()


class Users(_Folders):
    """A user of its own for each session, for the root of a container whose kernel has no Landlock of use.

    Args:
        directory: Where sessions have their folders.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(directory, in_container=True)
        self._scope = landlock.scope_ruleset()
        self._filter = seccomp.session_filter(chroot=False, shares_processes=True, shares_user=False)

    def confine(self, place: Place, profile: Profile, forkable: bool) -> None:
        """Becomes the session's user and gives up everything else."""
        self._start_confining(place, profile)
        steps = [kernel.capabilities(), self._filter]
        if self._scope >= 0:
            steps.insert(1, landlock.enter(self._scope))
        kernel.perform(steps)

    def rules(self, folders: Sequence[int], pid: int) -> int:
        """Gives a ruleset that leaves files alone: a family is one user, and shares what that user may open."""
        return _copy_of(self._scope)

    def end_family(self, place: Place) -> None:
        """Kills all processes of the session's user, as that user."""
        if place.user < self._first_user or not self._as_root:
            raise ValueError(f"no session runs as user {place.user}")
        pid = os.fork()
        if pid == 0:
            try:
                become(place.user)
                for _ in range(_MOST_ROUNDS):  # one is enough on Linux; gVisor's is no single pass
                    kill_everything_else()
                    if not trees.has_company():
                        break
            finally:
                os._exit(0)
        os.waitpid(pid, 0)


class Bare:
    """No isolation at all: a folder of its own, and limits.

    Args:
        directory: Where sessions have their folders.
    """

    clone_flags = 0
    needs_warden = False

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def prepare(self, profile: Profile) -> None:
        """Nothing to do."""

    def settle(self, number: int, profile: Profile) -> Place:
        """Makes the session's folder."""
        os.setsid()
        home = f"{self._directory}/{number}"
        os.mkdir(home)
        return Place(home, home)

    def confine(self, place: Place, profile: Profile, forkable: bool) -> None:
        """Sets the limits that the kernel keeps for a single process."""
        os.chdir(place.home)
        profile.apply(None)

    def listener(self) -> int:
        """Nothing is confined, and the kernel asks nothing."""
        return -1

    def rules(self, folders: Sequence[int], pid: int) -> int:
        """There are no copies to be parted."""
        return -1

    def end_family(self, place: Place) -> None:
        """Nothing to do: such a session has no warden."""


def _copy_of(fd: int) -> int:
    return os.dup(fd) if fd >= 0 else -1


def become(user: int) -> None:
    """Changes user and group for good."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def kill_everything_else() -> None:
    """Kills all processes that this one may signal; only for one that may signal a session's alone.

    The kernel does that in one pass in which no process can be born, so nothing escapes by forking.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(-1, signal.SIGKILL)

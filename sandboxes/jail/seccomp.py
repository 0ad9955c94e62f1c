"""The system-call filters: a deny list in two parts, assembled once as classic BPF.

The long part, `common_filter`, is installed in the zygote and inherited, because installing it costs more than a fork.
The short part, `session_filter`, denies what the zygote needs in order to make sessions.

Denied is what gives a view of other processes, of kernel internals, or of new namespaces, mounts and sockets. All
sessions share one network namespace (that has no interfaces), so no socket can be made except the two connected ends
of `socketpair`, and none can get a name that a neighbour could reach.

Denied is also what escapes the limits of a session: memory that belongs to no process (memory files, shared memory
without a file, pages and attributes that only the kernel holds), and what the kernel counts per user, because to it
all sessions are one user, and for an ordinary user even the host's own: descriptors on their way through sockets,
watches of files, asynchronous I/O, leases.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from . import kernel

DENIED: dict[str, tuple[int, int]] = {  # name: (x86-64, aarch64); -1 where it does not exist
    "accept": (43, 202), "accept4": (288, 242), "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171),
    "bind": (49, 200), "bpf": (321, 280), "clock_adjtime": (305, 266), "clock_settime": (227, 112),
    "connect": (42, 203), "delete_module": (176, 106), "fanotify_init": (300, 262), "finit_module": (313, 273),
    "fsconfig": (431, 431), "fsmount": (432, 432),
    "fsopen": (430, 430), "fspick": (433, 433), "init_module": (175, 105), "inotify_init": (253, -1),
    "inotify_init1": (294, 26), "io_setup": (206, 0), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425), "ioperm": (173, -1), "iopl": (172, -1), "kcmp": (312, 272),
    "kexec_file_load": (320, 294), "kexec_load": (246, 104), "keyctl": (250, 219), "listen": (50, 201),
    "lookup_dcookie": (212, 18), "mbind": (237, 235),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "migrate_pages": (256, 238), "modify_ldt": (154, -1),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "move_pages": (279, 239), "mq_getsetattr": (245, 185),
    "mq_notify": (244, 184), "mq_open": (240, 180), "mq_timedreceive": (243, 183), "mq_timedsend": (242, 182),
    "mq_unlink": (241, 181), "msgctl": (71, 187), "msgget": (68, 186), "msgrcv": (70, 188), "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_getfd": (438, 438), "pivot_root": (155, 41),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "ptrace": (101, 117), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "reboot": (169, 142), "request_key": (249, 218), "semctl": (66, 191),
    "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "set_mempolicy": (238, 237),
    "setdomainname": (171, 162), "sethostname": (170, 161), "settimeofday": (164, 170),
    "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197), "shmget": (29, 194), "socket": (41, 198),
    "swapoff": (168, 225), "swapon": (167, 224), "sync": (162, 81), "syncfs": (306, 267), "syslog": (103, 116),
    "uselib": (134, -1), "userfaultfd": (323, 282), "vhangup": (153, 58), "vmsplice": (278, 75),
}  # fmt: skip
_ATTRIBUTES = {
    "fremovexattr": (199, 16), "fsetxattr": (190, 7), "lremovexattr": (198, 15), "lsetxattr": (189, 6),
    "removexattr": (197, 14), "setxattr": (188, 5),
}  # fmt: skip
"""These are answered as by a file system without them: programs that copy attributes as a courtesy then do not mind."""
_DENIED_IN_SESSIONS = {
    "mount": (165, 40), "sendmmsg": (307, 269), "sendmsg": (46, 211), "setns": (308, 268), "setsockopt": (54, 208),
    "umount2": (166, 39), "unshare": (272, 97),
    "landlock_add_rule": (445, 445), "landlock_create_ruleset": (444, 444),  # the kernel counts nobody's rules
}  # fmt: skip
_CHROOT = {"chroot": (161, 51)}
_ON_A_PROCESS = {
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
}  # fmt: skip
_OWNERS = {"chown": (92, -1), "fchown": (93, 55), "fchownat": (260, 54), "lchown": (94, -1)}
MODES_AND_TIMES = {
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "futimesat": (261, -1),
    "utime": (132, -1), "utimensat": (280, 88), "utimes": (235, -1),
}  # fmt: skip
_CLONE3 = 435
_FIRST_UNKNOWN = 463
"""What Linux has added since this list was written is answered as by a kernel that lacks it; so is all of x32."""
_SPECIAL = {
    "clone": (56, 220), "fcntl": (72, 25), "ioctl": (16, 29), "ioprio_set": (251, 30), "mmap": (9, 222),
    "prctl": (157, 167), "prlimit64": (302, 261), "seccomp": (317, 277), "setpriority": (141, 140),
    "socketpair": (53, 199),
}  # fmt: skip
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_NEW_NAMESPACES = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWCGROUP | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET
)  # fmt: skip
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO, _ASK = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
_REFUSE = _ERRNO | errno.EPERM
_PRETEND = _ERRNO
"""Answers 0 without doing anything."""
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_F_SETLEASE = 1024
_NEW_LISTENER, _WAIT_KILLABLE = 1 << 3, 1 << 5
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET = 1, 1, 5
_PRIO_PROCESS, _IOPRIO_WHO_PROCESS = 0, 1


class _Program(ctypes.Structure):
    """`struct sock_fprog`; a c_char_p keeps the code alive."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


class Filter:
    """A filter in the making.

    Args:
        column: Which architecture, as an index of `kernel.ARCHITECTURES`.
    """

    def __init__(self, column: int) -> None:
        self.column = column
        self._lines: list[bytes] = []
        self.emit(_LOAD, _ARCH_AT)
        self.emit(_JUMP_EQUAL, _AUDIT_ARCH[column], if_true=1)
        self.emit(_RETURN, _KILL)
        self.emit(_LOAD, _NUMBER_AT)

    def emit(self, code: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        """Appends an instruction; jumps count instructions to skip."""
        self._lines.append(struct.pack("HBBI", code, if_true, if_false, value))

    def number(self, name: str) -> int:
        """The number of a call that needs a look at its arguments."""
        return _SPECIAL[name][self.column]

    def answer(self, calls: dict[str, tuple[int, int]], answer: int) -> None:
        """Gives calls one answer, whatever their arguments."""
        for number in sorted(n for numbers in calls.values() if (n := numbers[self.column]) >= 0):
            self.emit(_JUMP_EQUAL, number, if_false=1)
            self.emit(_RETURN, answer)

    def refuse_unless(self, number: int, *arguments: tuple[int, int]) -> None:
        """Refuses a call unless each of these arguments (index, lower half) has its value."""
        self._compare(number, arguments, equal=_ALLOW, other=_REFUSE)

    def refuse_if(self, number: int, *arguments: tuple[int, int]) -> None:
        """Refuses a call if each of these arguments has its value."""
        self._compare(number, arguments, equal=_REFUSE, other=None)

    def _compare(self, number: int, arguments: tuple[tuple[int, int], ...], equal: int, other: int | None) -> None:
        size = 2 * len(arguments)
        self.emit(_JUMP_EQUAL, number, if_false=size + 2)
        for at, (index, value) in enumerate(arguments):
            self.emit(_LOAD, _ARGUMENTS_AT + 8 * index)
            self.emit(_JUMP_EQUAL, value, if_false=size - 2 * at - 1)
        self.emit(_RETURN, equal)
        if other is None:
            self.emit(_LOAD, _NUMBER_AT)
        else:
            self.emit(_RETURN, other)

    def seal(self, flags: int = 0) -> kernel.Step:
        """Ends the filter (what it did not refuse is allowed) and gives the call that installs it in a process.

        The process needs no_new_privs, and never gets rid of the filter.

        Args:
            flags: See seccomp(2).
        """
        self.emit(_RETURN, _ALLOW)
        set_mode_filter = 1
        program = _Program(len(self._lines), b"".join(self._lines))
        return kernel.libc.syscall, (kernel.NR["seccomp"], set_mode_filter, flags, ctypes.byref(program)), "seccomp"


def common_filter() -> kernel.Step:
    """Denies what neither sessions nor the zygote need.

    Raises:
        OSError: The architecture is none that the filter was written for.
    """
    column = _column()
    made = Filter(column)
    made.emit(_JUMP_GREATER_EQUAL, _FIRST_UNKNOWN, if_false=1)
    made.emit(_RETURN, _ERRNO | errno.ENOSYS)
    made.answer(DENIED, _REFUSE)
    made.answer(_ATTRIBUTES, _ERRNO | errno.EOPNOTSUPP)
    made.emit(_JUMP_EQUAL, _CLONE3, if_false=1)  # its flags are out of a filter's reach; libc falls back to clone
    made.emit(_RETURN, _ERRNO | errno.ENOSYS)
    made.emit(_JUMP_EQUAL, made.number("socketpair"), if_false=8)
    made.emit(_LOAD, _ARGUMENTS_AT)
    made.emit(_JUMP_EQUAL, _AF_UNIX, if_false=5)
    made.emit(_LOAD, _ARGUMENTS_AT + 8)
    made.emit(_AND, 0xF)  # without SOCK_CLOEXEC and SOCK_NONBLOCK
    made.emit(_JUMP_EQUAL, _SOCK_STREAM, if_true=1)  # a datagram end could send to any name
    made.emit(_JUMP_EQUAL, _SOCK_SEQPACKET, if_false=1)
    made.emit(_RETURN, _ALLOW)
    made.emit(_RETURN, _REFUSE)
    made.emit(_JUMP_EQUAL, made.number("ioctl"), if_false=4)
    made.emit(_LOAD, _ARGUMENTS_AT + 8)
    made.emit(_JUMP_EQUAL, _TIOCSTI, if_true=1)
    made.emit(_JUMP_EQUAL, _TIOCLINUX, if_false=1)
    made.emit(_RETURN, _REFUSE)
    made.emit(_LOAD, _NUMBER_AT)
    made.emit(_JUMP_EQUAL, made.number("fcntl"), if_false=3)
    made.emit(_LOAD, _ARGUMENTS_AT + 8)
    made.emit(_JUMP_EQUAL, _F_SETLEASE, if_false=1)
    made.emit(_RETURN, _REFUSE)
    made.emit(_LOAD, _NUMBER_AT)
    made.emit(_JUMP_EQUAL, made.number("mmap"), if_false=4)
    made.emit(_LOAD, _ARGUMENTS_AT + 24)
    made.emit(_AND, _MAP_SHARED | _MAP_ANONYMOUS)
    made.emit(_JUMP_EQUAL, _MAP_SHARED | _MAP_ANONYMOUS, if_false=1)  # its pages stay when they are unmapped
    made.emit(_RETURN, _REFUSE)
    return made.seal()


def session_filter(*, chroot: bool, shares_processes: bool, shares_user: bool) -> kernel.Step:
    """Denies mounts, new namespaces, handing on descriptors, making rules of Landlock (a warden's can be entered), and
    what reaches the processes around a session.

    Args:
        chroot: Allow chroot(2), which a live copy of a session needs (and the capability, which it has in its own user
            namespace alone).
        shares_processes: The session has no process namespace: it may not hide from its supervisor.
        shares_user: It runs as the same user as its neighbours, or as the host's: what neither that user nor Landlock
            keeps apart is refused. Modes and times of files are a matter of `modes_and_times_filter`.
    """
    made = Filter(_column())
    made.answer(_DENIED_IN_SESSIONS if chroot else {**_DENIED_IN_SESSIONS, **_CHROOT}, _REFUSE)
    made.refuse_unless(made.number("prlimit64"), (0, 0))
    made.refuse_if(made.number("prctl"), (0, kernel.PR_SET_CHILD_SUBREAPER), (1, 0))
    for numbers in _ON_A_PROCESS.values():
        made.refuse_unless(numbers[made.column], (0, 0))
    made.refuse_unless(made.number("setpriority"), (0, _PRIO_PROCESS), (1, 0))
    made.refuse_unless(made.number("ioprio_set"), (0, _IOPRIO_WHO_PROCESS), (1, 0))
    if shares_processes:
        made.refuse_if(made.number("prctl"), (0, kernel.PR_SET_DUMPABLE))
        made.refuse_if(made.number("prctl"), (0, kernel.PR_SET_PDEATHSIG))
    if shares_user:
        made.answer(_OWNERS, _REFUSE)
        made.emit(_JUMP_EQUAL, made.number("seccomp"), if_false=4)
        made.emit(_LOAD, _ARGUMENTS_AT + 8)
        made.emit(_JUMP_ANY_BIT, _NEW_LISTENER, if_false=1)  # whoever listens may let through what is asked about
        made.emit(_RETURN, _REFUSE)
        made.emit(_LOAD, _NUMBER_AT)
    made.emit(_JUMP_EQUAL, made.number("clone"), if_false=3)
    made.emit(_LOAD, _ARGUMENTS_AT)
    made.emit(_JUMP_ANY_BIT, _NEW_NAMESPACES, if_false=1)
    made.emit(_RETURN, _REFUSE)
    return made.seal()


def modes_and_times_filter(*, asks: bool) -> kernel.Step:
    """Keeps a session that shares its user from changing modes and times of files.

    Args:
        asks: Has the kernel ask about each such call; the call that installs the filter gives a descriptor where the
            questions come from. Otherwise the calls answer that they did it, because programs change modes and times as
            a courtesy and would stop at a refusal.
    """
    made = Filter(_column())
    made.answer(MODES_AND_TIMES, _ASK if asks else _PRETEND)
    return made.seal(_NEW_LISTENER | _WAIT_KILLABLE if asks else 0)


def _column() -> int:
    if kernel.MACHINE not in kernel.ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system-call filter for {kernel.MACHINE}")
    return kernel.ARCHITECTURES.index(kernel.MACHINE)

"""The system calls that Python does not wrap, through ctypes; x86-64 and 64-bit ARM.

Thin and typed: each raises `OSError` with the name of what failed. Nothing here decides anything.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Step = tuple[Callable[..., int], tuple[object, ...], str]
    """A prepared system call: function, arguments, and what it does, for an error message."""

libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PARENT = 0x00008000
CLONE_CHILD_CLEARTID = 0x00200000
CLONE_CHILD_SETTID = 0x01000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER = 1, 4, 8, 36
PR_GET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_GET_TID_ADDRESS, PR_CAP_AMBIENT = 37, 38, 40, 47
CAP_DAC_READ_SEARCH, CAP_SETGID, CAP_SETUID, CAP_SYS_CHROOT = 2, 6, 7, 18
CAPS_OF_KEEPERS = (0, 1, CAP_DAC_READ_SEARCH, 3, 5, CAP_SETGID, CAP_SETUID, 19)
"""CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, KILL, SETGID, SETUID, SYS_PTRACE."""
RESOLVE_IN_ROOT, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_XDEV = 0x10, 0x08, 0x02, 0x01

_NUMBERS = {  # name: (x86-64, aarch64); the calls since Linux 5.3 have one number everywhere
    "clone": (56, 220),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "capset": (126, 91),
    "seccomp": (317, 277),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
ARCHITECTURES = ("x86_64", "aarch64")
MACHINE = os.uname().machine
COLUMN = ARCHITECTURES.index(MACHINE) if MACHINE in ARCHITECTURES else 0
NR = {name: numbers[COLUMN] for name, numbers in _NUMBERS.items()}


def check(result: int, what: str) -> int:
    """Gives `result`, or raises the OSError of a call that returned a negative number."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int = 0) -> int:
    """prctl(2) with one argument."""
    return libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def is_subreaper() -> bool:
    """Whether what loses its parent below this process comes to it. gVisor takes PR_SET_CHILD_SUBREAPER for an answer
    and does nothing: there it comes to process 1.
    """
    value = ctypes.c_int()
    return libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0) == 0 and value.value == 1


def perform(steps: Iterable[Step]) -> None:
    """Makes prepared calls; all in one small loop, because each function that a clone enters costs memory pages."""
    for function, arguments, what in steps:
        if function(*arguments) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")


def prepared_mount(source: str | None, target: str, kind: str | None, flags: int = 0, options: str = "") -> Step:
    """mount(2)."""
    named = [None if part is None else part.encode() for part in (source, target, kind)]
    return libc.mount, (*named, ctypes.c_ulong(flags), options.encode()), f"mount {kind or source} on {target}"


def mount(source: str | None, target: str, kind: str | None, flags: int = 0, options: str = "") -> None:
    """mount(2), now."""
    perform([prepared_mount(source, target, kind, flags, options)])


def prepared_limit(kind: int, soft: int, hard: int) -> Step:
    """setrlimit(2)."""
    values = struct.pack("qq", soft, hard)
    return libc.syscall, (NR["prlimit64"], 0, kind, values, None), f"limit {kind}"


def prepared_prctl(option: int, value: int) -> Step:
    """prctl(2) with one argument."""
    return libc.prctl, (option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}"


def make_tree_read_only(target: str) -> None:
    """Makes a mount and all mounts below it read-only, without set-user-id; their other flags stay (Linux 5.12)."""
    at_fdcwd, at_recursive = -100, 0x8000
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID, 0, 0, 0)
    result = libc.syscall(NR["mount_setattr"], at_fdcwd, target.encode(), at_recursive, attributes, len(attributes))
    check(result, f"mount_setattr {target}")


def pivot_to(new_root: str) -> None:
    """Makes `new_root` (a mount) the root directory and lets go of the old one."""
    os.chdir(new_root)
    check(libc.syscall(NR["pivot_root"], b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def place(fd: int, target: int) -> None:
    """dup2(2) to a descriptor that programs do not inherit; `fd` may already be the target."""
    if fd == target:
        os.set_inheritable(fd, False)
    else:
        os.dup2(fd, target, inheritable=False)


def set_hostname(name: bytes) -> None:
    """sethostname(2)."""
    check(libc.sethostname(name, len(name)), "sethostname")


def unshare(flags: int) -> None:
    """unshare(2)."""
    check(libc.unshare(flags), "unshare")


def enter_namespace(fd: int) -> None:
    """setns(2)."""
    check(libc.setns(fd, 0), "setns")


def unmount(target: str) -> None:
    """umount2(2), lazily."""
    check(libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


class IdMaps:
    """The maps of a new user namespace: one user and one group, themselves outside."""

    def __init__(self, inside: int, uid: int, gid: int) -> None:
        self._texts = (
            ("/proc/self/setgroups", b"deny"),
            ("/proc/self/uid_map", b"%d %d 1" % (inside, uid)),
            ("/proc/self/gid_map", b"%d %d 1" % (inside, gid)),
        )

    def write(self) -> None:
        """Writes them for the namespace that this process has just entered."""
        for path, text in self._texts:
            fd = os.open(path, os.O_WRONLY)
            os.write(fd, text)
            os.close(fd)


class Cloner:
    """fork(2) into new namespaces, without Python's fork hooks; for a single-threaded process.

    The hooks touch 80 memory pages in every child, which costs as much as two namespaces. What they do is not needed
    here: there are no other threads, and no module with a hook of its own is loaded.
    """

    def __init__(self) -> None:
        address = ctypes.c_void_p()
        known = libc.prctl(PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0) == 0 and address.value
        # glibc keeps its thread id at this address; the kernel refreshes it in the child
        settid = CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID if known else 0
        self._tid = ctypes.c_void_p(address.value if known else None)
        self._base = settid | signal.SIGCHLD

    def clone(self, namespaces: int) -> int:
        """Gives 0 in the child and the child's process id in the parent."""
        flags = ctypes.c_ulong(namespaces | self._base)
        if MACHINE == "aarch64":
            return check(libc.syscall(NR["clone"], flags, 0, 0, 0, self._tid), "clone")
        return check(libc.syscall(NR["clone"], flags, 0, 0, self._tid, 0), "clone")


def open_in_root(directory: int, path: str, flags: int, mode: int = 0) -> int:
    """Opens a path as if `directory` were the root: no symlink and no `..` leads out of it (openat2(2))."""
    return _open(directory, path, flags, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def open_beneath(directory: int, path: bytes, flags: int) -> int:
    """Opens a path below a directory; EXDEV for absolute ones, and where a link, `..` or a mount leads out of it."""
    return _open(directory, path, flags, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV)


def _open(directory: int, path: str | bytes, flags: int, mode: int, resolve: int) -> int:
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    fd = libc.syscall(NR["openat2"], directory, os.fsencode(path), how, len(how))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def capabilities(*kept: int, inherit: bool = False) -> Step:
    """Gives up every other capability of the process; with no_new_privs none can come back.

    Args:
        kept: What it keeps; small numbers only.
        inherit: Whether programs that it runs may keep them, too.
    """
    mask = sum(1 << capability for capability in kept)
    inheritable = mask if inherit else 0
    header, data = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", mask, mask, inheritable, 0, 0, 0)
    return libc.syscall, (NR["capset"], header, data), "capset"


def pass_on(capability: int) -> None:
    """Has programs that this process runs keep a capability, which it must have as inheritable."""
    ambient_raise = 2
    check(libc.prctl(PR_CAP_AMBIENT, ambient_raise, ctypes.c_ulong(capability), 0, 0), "PR_CAP_AMBIENT_RAISE")


def set_no_new_privileges() -> None:
    """No program run from here on gains privileges; inherited by every child."""
    check(prctl(PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")

"""What an attack is, and what its program finds ready.

A program is sent to a session as it stands, after `PRELUDE`. It has an aim, not a mechanism: it reads the host's
secret, hurts a neighbour, holds more than its limits. Where it can see its success it says so by `escaped`; a secret
that it prints speaks for itself; and the harness looks at neighbours and host afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Control = Literal["unisolated", "holder", "same session"]
"""Where an attack succeeds, which shows that it works at all.

    unisolated      in a session of `isolation="none"`; its neighbour is another one
    holder          in the very session that holds the secret, or that the files belong to
    same session    `later` runs in the session of the attack instead of the next one
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack.

    Example: `Attack(name="kill by process id", program="for pid in VICTIM['pids']: attempt(os.kill, pid, 9)")` succeeds
    if the neighbour is dead afterwards.
    """

    name: str
    program: str
    """Runs in the attacker's session."""
    victim: str = ""
    """Runs before, in a neighbour's session."""
    check: str = ""
    """Runs in the neighbour's session afterwards; prints `ESCAPED` if the attack was felt there."""
    late_s: float = 0.0
    """It succeeds if within that time after the program a process calls itself `MARK!`; 0 where that is not the aim."""
    later: str = ""
    """Runs in the next session, after the attacker's has ended."""
    reads: tuple[str, ...] = ()
    """Files that the host then reads through `read_file`."""
    writes: tuple[str, ...] = ()
    """Files that the host then writes through `write_file`."""
    limits: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Limits of the attacker's session; the control has roomy ones."""
    ends: tuple[str, ...] = ()
    """How its execution may end besides running to its end, as `ExecStatus` values."""
    kernel_mib: int = 0
    """It succeeds if the kernel's own memory grows by so much meanwhile; 0 where that is not the aim."""
    leaves_processes: bool = False
    """It succeeds if processes that carry `MARK` outlive its session."""
    once: bool = False
    """Too slow to be run more than once."""
    modes: tuple[str, ...] = ()
    """The only isolations in which its aim makes sense; empty for all. `modes_why` says why."""
    modes_why: str = ""
    control: Control | None = "unisolated"
    control_setup: str = ""
    """Runs first in the control's session."""
    control_needs_root: bool = False
    control_needs: str = ""
    """What not every machine has, as a Python expression of the prelude that is true where it is there."""
    control_twin: str = ""
    """Runs first in the control's neighbour."""
    why: str = ""
    """Why there is no control, or why it is another one than without isolation."""

    def __post_init__(self) -> None:
        if (self.control != "unisolated") != bool(self.why):
            raise ValueError(f"{self.name}: a control of another kind needs a reason, and only that")
        if bool(self.modes) != bool(self.modes_why):
            raise ValueError(f"{self.name}: fewer modes need a reason")


PRELUDE = r'''
import ctypes, errno, fcntl, json, mmap, os, re, resource, signal, socket, struct, sys, time
GIVEN = json.loads(@GIVEN@)
HOST, VICTIM, PIDS, ROOTS, MARK, LIMITS = (GIVEN[key] for key in ("host", "victim", "pids", "roots", "mark", "limits"))
UNISOLATED = bool(GIVEN["places"])  # only to keep controls harmless
ARM = os.uname().machine == "aarch64"
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "add_key": (248, 217), "bpf": (321, 280), "chroot": (161, 51), "clone": (56, 220), "clone3": (435, 435),
    "delete_module": (176, 106), "finit_module": (313, 273), "fsmount": (432, 432), "fsopen": (430, 430),
    "getpid": (39, 172), "init_module": (175, 105), "io_uring_enter": (426, 426), "io_uring_setup": (425, 425),
    "ioprio_get": (252, 31), "ioprio_set": (251, 30), "kcmp": (312, 272), "kexec_load": (246, 104),
    "keyctl": (250, 219), "landlock_add_rule": (445, 445), "landlock_create_ruleset": (444, 444),
    "memfd_secret": (447, 447), "mount_setattr": (442, 442), "move_mount": (429, 429),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pivot_root": (155, 41),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "reboot": (169, 142), "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "sched_setattr": (314, 274),
    "setns": (308, 268), "swapon": (167, 224), "tgkill": (131, 131) if ARM else (234, 131), "tkill": (200, 130),
    "unshare": (272, 97), "userfaultfd": (323, 282), "vmsplice": (278, 75),
}

def syscall(name, *arguments):
    """The call's result; -1 for a failure, as in C."""
    number = NUMBERS[name][ARM] if isinstance(name, str) else name
    return libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))

def permitted(result):
    """Whether a call was carried out, or failed for another reason than that it is not allowed."""
    return result >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EROFS)

def attempt(action, *arguments, **keywords):
    """What an action gives, or None where it fails."""
    try: return action(*arguments, **keywords)
    except (OSError, ValueError, AttributeError, LookupError, EOFError, ImportError, TypeError): return None

def escaped(*what): print("ESCAPED", *what, flush=True)

def loot(data):
    """Shows the secrets that are in some data."""
    text = data if isinstance(data, str) else bytes(data or b"").decode("latin-1")
    for secret in set(re.findall("secret" + "-[0-9a-f]{32}", text)): escaped("with", secret)

def slurp(path, most=1 << 20, offset=0):
    """Up to `most` bytes of a file; nothing where it cannot be read."""
    try: fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError): return b""
    try: return os.pread(fd, most, offset) if offset else os.read(fd, most)
    except (OSError, OverflowError): return b""
    finally: os.close(fd)

def in_child(action):
    """Runs an action in a child of its own and waits for it."""
    pid = os.fork()
    if pid == 0:
        try: action()
        except BaseException as error: print(type(error).__name__, error, flush=True)
        finally: os._exit(0)
    return os.waitpid(pid, 0)[1]

def in_private_mounts(action):
    """Runs an action in a child that has tried to make what it mounts and unmounts invisible to everybody else."""
    def run():
        if syscall("unshare", 0x20000) == 0: libc.mount(None, b"/", None, 0x44000, None)
        elif UNISOLATED: return
        action()
    in_child(run)

def places():
    """Folders that may be writable, each once."""
    import tempfile
    found = {}
    for name in GIVEN["places"] or [os.getcwd(), tempfile.gettempdir(), os.environ.get("HOME", "/"), "/dev/shm", "/run", "/var/tmp"]:
        info, mine = attempt(os.stat, name), os.path.join(name, f".{os.getpid()}-{MARK}")
        if info and attempt(lambda: os.close(os.open(mine, os.O_CREAT | os.O_EXCL)) or os.unlink(mine) or True):
            found.setdefault((info.st_dev, info.st_ino), os.path.realpath(name))
    return list(found.values())
'''
FLIP = r"""
def flip(folder, seconds=1.5):
    "Lets `flip` be a link to a folder and a folder of its own by turns, without ever being neither."
    attempt(os.mkdir, "flip"); attempt(os.symlink, folder, "link")
    if os.fork(): return
    end = time.monotonic() + seconds
    while time.monotonic() < end: libc.renameat2(-100, b"flip", -100, b"link", 2)
    os._exit(0)
"""

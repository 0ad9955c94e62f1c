"""Programs that try to break out of a session. Each prints `ESCAPED ...` if it reaches its aim, and `tried` at its end.

Not a test module: `test_attacks.py` runs these, each twice in one session.
`SECRET_FILE`, `SECRET`, `NEIGHBOUR` (a name both sessions know) are filled in by whoever runs them.
"""

ATTACKS = {
    "read: the host's files": """
import os
for path in ("@SECRET_FILE@", "/proc/1/root@SECRET_FILE@", "/proc/self/root/..@SECRET_FILE@", "../../../..@SECRET_FILE@"):
    try:
        if "@SECRET@" in open(path).read(): print("ESCAPED read", path)
    except OSError: pass
for path in ("/etc/shadow", "/etc/hostname", "/root/.bashrc", "/var/log", "/home", "/boot", "/sys/kernel"):
    if os.path.exists(path): print("ESCAPED sees", path)
""",
    "read: the host's secrets in environments": """
import os, glob
texts = [repr(dict(os.environ))]
for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline"):
    try: texts.append(open(path, "rb").read().decode("latin-1"))
    except OSError: pass
if any("@SECRET@" in text for text in texts): print("ESCAPED environment")
""",
    "read: other processes": """
import os
pids = [name for name in os.listdir("/proc") if name.isdigit()]
if set(pids) - {"1", str(os.getpid())}: print("ESCAPED sees", pids)  # process 1 is its own warden
""",
    "read: raw devices": """
import os
for name in ("mem", "kmem", "port", "vda", "sda", "kmsg"):
    if os.path.exists("/dev/" + name): print("ESCAPED sees", name)
for make in (lambda: os.mknod("/workspace/d", 0o60600, os.makedev(254, 0)), lambda: os.mknod("/tmp/m", 0o20600, os.makedev(1, 1))):
    try: make(); print("ESCAPED device node")
    except OSError: pass
""",
    "write: the system's files": """
import os, sys
for path in ("/usr/x", "/etc/passwd", "/x", "/dev/x", sys.base_prefix + "/lib/x", os.__file__, "/palaestra/jail/session.py"):
    try: open(path, "a").close(); print("ESCAPED write", path)
    except OSError: pass
for name in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/kernel/hostname"):
    try: os.write(os.open(name, os.O_WRONLY), b"x"); print("ESCAPED write", name)
    except OSError: pass
""",
    "network: internet sockets": """
import socket
for family in (socket.AF_INET, socket.AF_INET6):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try: socket.socket(family, kind); print("ESCAPED socket")
        except OSError: pass
""",
    "network: unix, packet and netlink sockets": """
import socket
for family in (socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET, 40):
    try: socket.socket(family, socket.SOCK_DGRAM, 0); print("ESCAPED socket", family)
    except OSError: pass
""",
    "network: abstract names through socketpair": """
import socket, ctypes
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    for family in (10, 16, 30, 40):
        try: socket.socketpair(family, kind); print("ESCAPED socketpair", family)
        except OSError as error:
            if error.errno != 1: print("ESCAPED no refusal", error)
    try: a, b = socket.socketpair(socket.AF_UNIX, kind)
    except OSError: continue
    for name, act in (("bind", lambda: a.bind("\\0@NEIGHBOUR@")), ("connect", lambda: a.connect("\\0@NEIGHBOUR@")),
                      ("listen", lambda: a.listen()), ("sendto", lambda: a.sendto(b"x", "\\0@NEIGHBOUR@"))):
        if name == "sendto" and kind == socket.SOCK_SEQPACKET: continue  # ignores the address
        try: act()
        except OSError: continue
        print("ESCAPED", name, kind)
    a.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    if kind == socket.SOCK_DGRAM: a.send(b"x")
    if a.getsockname(): print("ESCAPED name", a.getsockname())
""",
    "network: interfaces": """
import os
up = [line for line in open("/proc/net/dev").read().splitlines()[2:] if not line.strip().startswith("lo:")]
if up: print("ESCAPED interfaces", up)
""",
    "neighbours: signals": """
import os, signal
for pid in list(range(2, 400)) + [-1]:
    try: pid != os.getpid() and os.kill(pid, signal.SIGKILL)
    except OSError: continue
    if pid not in (-1, os.getpid()): print("ESCAPED signalled", pid)
try: os.kill(1, signal.SIGKILL); os.kill(1, signal.SIGTERM); print("ESCAPED signalled its warden")
except OSError: pass
""",
    "neighbours: signals and priorities by group": """
import os, resource, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.getpgrp() != os.getpid(): print("ESCAPED shares a process group")
for signal_all in (lambda: os.kill(0, signal.SIGTERM), lambda: os.killpg(0, signal.SIGTERM),
                   lambda: os.setpriority(os.PRIO_PGRP, 0, 19), lambda: os.setpriority(os.PRIO_USER, 1000, 19)):
    try: signal_all()
    except OSError: pass
for limit in (resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE):
    if resource.getrlimit(limit) != (0, 0): print("ESCAPED may raise its priority")
""",
    "neighbours: counts that the kernel keeps per user": """
import array, ctypes, fcntl, os, resource, socket
libc = ctypes.CDLL(None, use_errno=True)
a, b = socket.socketpair()
try: a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 200))]); print("ESCAPED descriptors in flight")
except OSError: pass
if libc.syscall(307, a.fileno(), 0, 0, 0) == 0: print("ESCAPED sendmmsg")
if libc.inotify_init() >= 0 or libc.inotify_init1(0) >= 0: print("ESCAPED inotify")
context = ctypes.c_ulong(0)
if libc.syscall(206, 1000, ctypes.byref(context)) == 0: print("ESCAPED asynchronous I/O")
file = open("leased", "w+")
try: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK); print("ESCAPED lease")
except OSError: pass
if resource.getrlimit(resource.RLIMIT_SIGPENDING)[1] > 256: print("ESCAPED queued signals")
os.remove("leased")
""",
    "memory: what no process owns": """
import ctypes, mmap, os, struct
libc = ctypes.CDLL(None, use_errno=True)
try: os.memfd_create("x"); print("ESCAPED memory file")
except OSError: pass
try: mmap.mmap(-1, 1 << 20); print("ESCAPED shared pages")
except OSError: pass
for device in ("/dev/zero", "/dev/full"):
    with open(device, "rb") as file:
        if file.read(3) != bytes(3): print("ESCAPED zeros")
        try: mmap.mmap(file.fileno(), 1 << 20, mmap.MAP_SHARED, mmap.PROT_READ); print("ESCAPED shared pages of", device)
        except OSError: pass
mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE).close()
open("f", "w").close()
for name, value in (("user.a", b"x"), ("system.posix_acl_access", struct.pack("<I", 2) + struct.pack("<HHI", 1, 7, 2**32 - 1) * 4)):
    for set_attribute in (lambda: os.setxattr("f", name, value), lambda: os.setxattr(os.open("f", os.O_RDONLY), name, value)):
        try: set_attribute(); print("ESCAPED attribute")
        except OSError as error:
            if error.errno != 1: print("ESCAPED no refusal", error)
os.remove("f")
ours, theirs = os.pipe()
vector = (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
if libc.vmsplice(theirs, vector, 1, 0) >= 0: print("ESCAPED pages in a pipe")
""",
    "memory: out of turn when it runs out": """
for name in ("oom_score_adj", "clear_refs", "coredump_filter", "comm"):
    try: open("/proc/self/" + name, "w").write("0"); print("ESCAPED wrote", name)
    except OSError: pass
if open("/proc/self/oom_score_adj").read().strip() != "1000": print("ESCAPED", open("/proc/self/oom_score_adj").read())
""",
    "read: names and arguments of the host": """
import os, resource, socket, sys
if socket.gethostname() != "sandbox": print("ESCAPED host name", socket.gethostname())
if sys.argv != [""] or any("host" in argument for argument in sys.orig_argv[:-1]): print("ESCAPED arguments", sys.argv)
if os.path.isdir("/usr/src") and os.listdir("/usr/src"): print("ESCAPED sees /usr/src")
if resource.getrlimit(resource.RLIMIT_CORE) != (1, 1): print("ESCAPED starts the host's crash handler")
try: import palaestra; print("ESCAPED imports the tasks")
except ImportError: pass
""",
    "neighbours: ptrace and foreign memory": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if child == 0:
    import time; time.sleep(5); os._exit(0)
if libc.ptrace(16, child, 0, 0) == 0: print("ESCAPED ptrace")
buffer = ctypes.create_string_buffer(8)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
if libc.process_vm_readv(child, vector, 1, vector, 1, 0) > 0: print("ESCAPED process_vm_readv")
if libc.syscall(438, 3, 0, 0) >= 0: print("ESCAPED pidfd_getfd")
os.kill(child, 9); os.waitpid(child, 0)
""",
    "neighbours: shared memory and queues": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
if libc.shmget(4242, 4096, 0o1666) >= 0: print("ESCAPED shmget")
if libc.msgget(4242, 0o1666) >= 0: print("ESCAPED msgget")
if libc.semget(4242, 1, 0o1666) >= 0: print("ESCAPED semget")
if os.listdir("/dev/shm"): print("ESCAPED shm", os.listdir("/dev/shm"))
open("/dev/shm/@NEIGHBOUR@", "w").write("here")
""",
    "neighbours: files": """
import os
for path in ("/tmp", "/workspace", "/dev/shm"):
    if os.path.exists(path + "/@NEIGHBOUR@.txt"): print("ESCAPED neighbour's file in", path)
for path in ("/tmp", "/workspace"): open(path + "/@NEIGHBOUR@.txt", "w").write("mine")
""",
    "escape: namespaces": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for flag in (0x20000, 0x10000000, 0x40000000, 0x20000000, 0x08000000, 0x04000000, 0x02000000, 0x80):
    if libc.unshare(flag) == 0: print("ESCAPED unshare", hex(flag))
    pid = libc.syscall(56, flag | 17, 0, 0, 0, 0) if flag != 0x80 else -1
    if pid == 0: os._exit(0)
    if pid > 0: print("ESCAPED clone", hex(flag))
args = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)
pid = libc.syscall(435, args, 88)
if pid == 0: os._exit(0)
if pid > 0: print("ESCAPED clone3")
for name in ("user", "mnt", "pid", "net"):
    fd = os.open("/proc/self/ns/" + name, os.O_RDONLY)
    if libc.setns(fd, 0) == 0: print("ESCAPED setns", name)
""",
    "escape: mounts and roots": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir("m")
for arguments in ((b"tmpfs", b"/workspace/m", b"tmpfs", 0, None), (b"/", b"/workspace/m", None, 4096, None),
                  (None, b"/", None, 32 | 4096, None), (b"proc", b"/workspace/m", b"proc", 0, None)):
    if libc.mount(*arguments) == 0: print("ESCAPED mount", arguments)
for target in (b"/proc", b"/workspace", b"/tmp", b"/"):
    if libc.umount2(target, 2) == 0: print("ESCAPED umount", target)
if libc.syscall(155, b".", b".") == 0: print("ESCAPED pivot_root")
for number in (428, 429, 430, 432, 442):
    if libc.syscall(number, -100, b"/", 0, 0, 0) >= 0: print("ESCAPED new mount call", number)
""",
    "escape: privileges": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
    if int(status[name], 16) & ~(1 << 18): print("ESCAPED has", name, status[name])
if status["NoNewPrivs"] != "1" or status["Seccomp"] != "2": print("ESCAPED unconfined")
for change in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresuid(65534, 65534, 65534)):
    try: change(); print("ESCAPED identity")
    except OSError: pass
for path in ("/proc/self/uid_map", "/proc/self/gid_map"):
    try: os.write(os.open(path, os.O_WRONLY), b"0 0 4294967295"); print("ESCAPED map")
    except OSError: pass
import subprocess
out = subprocess.run(["/bin/sh", "-c", "for f in /bin/su /usr/bin/sudo /bin/mount /usr/bin/passwd; do [ -u $f ] && echo suid; done; id -u"], capture_output=True, text=True).stdout
if out.split()[-1] != "1000": print("ESCAPED uid", out)
""",
    "escape: kernel interfaces": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, number in (("bpf", 321), ("perf_event_open", 298), ("userfaultfd", 323), ("io_uring_setup", 425), ("keyctl", 250),
                     ("add_key", 248), ("open_by_handle_at", 304), ("kexec_load", 246), ("init_module", 175), ("memfd_secret", 447),
                     ("personality", 135), ("name_to_handle_at", 303), ("fanotify_init", 300)):
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) >= 0: print("ESCAPED", name)
for number in range(463, 500):  # newer than the list of what is denied
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 38: print("ESCAPED", number)
""",
    "escape: 32-bit and x32 calls": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(0x40000000 + 41, 2, 1, 0) >= 0: print("ESCAPED x32 socket")
if libc.syscall(0x40000000 + 39) >= 0: print("ESCAPED x32 getpid")
""",
    "escape: inherited descriptors": """
import os
for name in sorted(os.listdir("/proc/self/fd")):
    fd = int(name)
    if fd <= 3: continue
    try: target = os.readlink("/proc/self/fd/" + name)
    except OSError: continue
    if target != "/proc/%d/fd" % os.getpid(): print("ESCAPED descriptor", fd, target)
import fcntl, termios
for fd in (0, 1, 2):
    try: fcntl.ioctl(fd, termios.TIOCSTI, b"x"); print("ESCAPED TIOCSTI")
    except OSError: pass
""",
    "escape: what the parent knew": """
import gc, socket, sys
secret = "".join(reversed("@TERCES@"))
known = [item for item in gc.get_objects() if isinstance(item, (list, tuple, dict, set)) and item is not globals()]
for item in known:
    try: text = repr(item)
    except Exception: continue
    if secret in text and "gc.get_objects" not in text: print("ESCAPED", text[:200])
for item in gc.get_objects():
    if isinstance(item, socket.socket) and item.fileno() >= 0: print("ESCAPED", item)
frame = sys._getframe()
while frame:
    for name in list(frame.f_locals):
        if name in ("tests", "expected", "supervisor"): print("ESCAPED frame holds", name)
    frame = frame.f_back
""",
}
"""Class and name of the attack -> program. None may print ESCAPED."""

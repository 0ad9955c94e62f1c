"""Attacks that read what belongs to the host: its files, its processes, its kernel, and what it was told."""

from .attack import FLIP, Attack

ATTACKS = (
    Attack(
        name="the host's files by their paths",
        program="""
path = HOST["secret_file"]
up = "../" * 30 + path[1:]
roots = ["/proc/self/root", "/proc/self/root/..", "/proc/thread-self/root", *(f"/proc/{pid}/root" for pid in PIDS)]
for name in (path, up, "/proc/self/cwd/" + up, "/dev/fd/../../root" + path, *(root + path for root in roots)): loot(slurp(name))
""",
    ),
    Attack(
        name="the host's files by paths from folders that it has open",
        program="""
for pid in PIDS:
    for link in ("cwd", "root", f"task/{pid}/cwd"):
        for rest in ("note.txt", "../secret.txt", HOST["secret_file"]): loot(slurp(f"/proc/{pid}/{link}/{rest}"))
""",
    ),
    Attack(
        name="the accounts of the host",
        program="""
for path in ("/etc/shadow", "/etc/gshadow", "/etc/shadow-", "/etc/ssl/private/ssl-cert-snakeoil.key", "/root/.bashrc"):
    if slurp(path): escaped("reads", path)
""",
        control_needs_root=True,
    ),
    Attack(
        name="environments and arguments",
        program="""
loot(repr(dict(os.environ)) + repr(sys.argv) + repr(sys.orig_argv))
for pid in {*map(str, PIDS), *filter(str.isdigit, attempt(os.listdir, "/proc") or ())}:
    for name in ("environ", "cmdline", f"task/{pid}/environ", f"task/{pid}/cmdline"): loot(slurp(f"/proc/{pid}/{name}"))
""",
    ),
    Attack(
        name="the memory of processes",
        program="""
for pid in PIDS:
    for line in slurp(f"/proc/{pid}/maps", 1 << 22).decode().splitlines():
        if " rw" not in line or "[v" in line: continue
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        loot(slurp(f"/proc/{pid}/mem", min(end - start, 1 << 24), start))
""",
        control_needs_root=True,
    ),
    Attack(
        name="the memory of a process at a known address",
        program="""
for pid in PIDS:
    buffer = ctypes.create_string_buffer(HOST["size"])
    here = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), HOST["size"])
    there = (ctypes.c_size_t * 2)(HOST["address"], HOST["size"])
    if syscall("process_vm_readv", pid, here, 1, there, 1, 0) > 0: loot(buffer.raw)
""",
        control_needs_root=True,
    ),
    Attack(
        name="the memory of a traced process",
        program="""
ATTACH, DETACH, PEEK = 16, 17, 2
libc.ptrace.restype = ctypes.c_long
def trace(pid):
    if libc.ptrace(ATTACH, pid, None, None) != 0: return
    os.waitpid(pid, 0x40000000)
    words = [libc.ptrace(PEEK, pid, ctypes.c_void_p(HOST["address"] + i), None) for i in range(0, HOST["size"], 8)]
    loot(b"".join((word & (1 << 64) - 1).to_bytes(8, sys.byteorder) for word in words))
    libc.ptrace(DETACH, pid, None, None)
for pid in PIDS:
    if pid != os.getpid(): attempt(trace, pid)
""",
        control_needs_root=True,
    ),
    Attack(
        name="files that processes hold open",
        program="""
import stat
for pid in PIDS:
    for name in attempt(os.listdir, f"/proc/{pid}/fd") or ():
        info = attempt(os.stat, f"/proc/{pid}/fd/{name}")
        if info and stat.S_ISREG(info.st_mode): loot(slurp(f"/proc/{pid}/fd/{name}"))
""",
    ),
    Attack(
        name="a descriptor taken out of another process",
        program="""
for pid in PIDS:
    process = syscall("pidfd_open", pid, 0)
    if process < 0: continue
    fd = syscall("pidfd_getfd", process, HOST["fd"], 0)
    if fd >= 0: loot(attempt(os.pread, fd, 100, 0))
""",
        control_needs_root=True,
    ),
    Attack(
        name="descriptors that a session was born with",
        program="""
allowed = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in (0, 1, 2, 3)}
for name in sorted(os.listdir("/proc/self/fd"), key=int):
    target = attempt(os.readlink, f"/proc/self/fd/{name}")
    if int(name) <= 3 or not target or target.endswith("/fd"): continue
    escaped("holds", name, target)
    for rest in ("", "/note.txt", "/../secret.txt", "/../../" + HOST["secret_file"]): loot(slurp(f"/proc/self/fd/{name}{rest}"))
for name in (0, 1, 2, 3):
    for rest in ("/..", "/../.."): loot(slurp(f"/proc/self/fd/{name}{rest}{HOST['secret_file']}"))
""",
        control_setup="os.dup2(os.open('/', os.O_PATH), 77)",
    ),
    Attack(
        name="disks and memory through their devices",
        program="""
names = [name for name in ("mem", "kmem", "port", "kmsg", "vcs", "vcsa1", "nvram") if slurp("/dev/" + name, 16)]
disks = [line.split()[3] for line in slurp("/proc/partitions").decode().splitlines()[2:]] + ["vda", "sda", "nvme0n1", "root"]
names += [name for name in disks if slurp("/dev/" + name, 512)]
major, minor = HOST["root_device"]
for place in places():
    path = place + "/device"
    attempt(os.mknod, path, 0o60600, os.makedev(major, minor))
    if slurp(path, 512): names.append(path)
    attempt(os.unlink, path)
if names: escaped("reads", names)
""",
        control_needs_root=True,
    ),
    Attack(
        name="the kernel's log and addresses",
        program="""
text = ctypes.create_string_buffer(4096)
if libc.klogctl(3, text, 4096) > 0: escaped("reads the log")
for name in ("/dev/kmsg", "/proc/kmsg", "/proc/kcore", "/sys/kernel/debug/gpio", "/sys/firmware/dmi/tables/DMI"):
    if slurp(name, 512): escaped("reads", name)
if any(int(line.split()[0], 16) for line in slurp("/proc/kallsyms").decode().splitlines()[:-1]): escaped("addresses")
""",
        control_needs_root=True,
    ),
    Attack(
        name="what the session's own interpreter remembers",
        program="""
import gc, linecache
frame = sys._getframe()
while frame:
    loot(repr(list(frame.f_locals.items())))
    frame = frame.f_back
for item in gc.get_objects():
    if isinstance(item, (list, tuple, dict, set, bytes, str)): loot(attempt(repr, item))
loot(repr(linecache.cache))
for line in open("/proc/self/maps"):
    if " rw" not in line or "[v" in line: continue
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    loot(slurp("/proc/self/mem", min(end - start, 1 << 24), start))
""",
        control="holder",
        why="in every mode sessions are clones of an interpreter that never saw data",
    ),
    Attack(
        name="the source of the tasks",
        program="""
if slurp(HOST["source"]): escaped("reads", HOST["source"])
root = HOST["source"].rpartition("/envs/")[0]
for path in (root, "/usr/src", "/usr/local/src", *sys.path):
    for rest in ("envs/tasks/code/compose.py", "palaestra/envs/tasks/code/compose.py"):
        if slurp(f"{path}/{rest}"): escaped("reads", path, rest)
if attempt(__import__, "palaestra.envs"): escaped("imports the tasks")
""",
    ),
    Attack(
        name="a file by its handle, past every path",
        program="""
kind, data = HOST["handle"] or [0, ""]
handle = struct.pack("Ii", len(data) // 2, kind) + bytes.fromhex(data)
for name in ("/", "/usr", "/etc", "/proc/self/exe", "/dev/null", os.getcwd(), *places()):
    mount = attempt(os.open, name, os.O_RDONLY)
    fd = syscall("open_by_handle_at", mount, handle, os.O_RDONLY) if mount is not None else -1
    if fd >= 0: loot(os.read(fd, 100))
""",
        control_needs_root=True,
    ),
    Attack(
        name="shared memory and queues",
        program="""
buffer = ctypes.create_string_buffer(8200)
libc.shmat.restype = ctypes.c_void_p
for segment in {libc.shmget(HOST["ipc"], 0, 0), HOST["shm"], *range(64)} - {None, -1}:
    address = libc.shmat(segment, None, 0o10000)
    if address not in (None, ctypes.c_void_p(-1).value): loot(ctypes.string_at(address, HOST["size"]))
for queue in {libc.msgget(HOST["ipc"], 0), HOST["queue"]} - {None, -1}:
    if libc.msgrcv(queue, buffer, 8192, 0, 0o4000) > 0: loot(buffer.raw)
queue = libc.mq_open(b"/" + HOST["name"].encode(), os.O_RDONLY | os.O_NONBLOCK)
if queue >= 0 and libc.mq_receive(queue, buffer, 8192, None) > 0: loot(buffer.raw)
for name in (HOST["shared_file"], "/dev/mqueue/" + HOST["name"]): loot(slurp(name))
""",
    ),
    Attack(
        name="keys of the kernel's keyrings",
        program="""
SEARCH, READ, LINK = 10, 11, 8
buffer = ctypes.create_string_buffer(200)
name = (HOST["key"] or "none").encode()
keys = [syscall("request_key", b"user", name, None, 0)]
keys += [syscall("keyctl", SEARCH, ring, b"user", name, 0) for ring in (-1, -2, -3, -4, -5)]
keys += [int(line.split()[0], 16) for line in slurp("/proc/keys").decode().splitlines() if ": " in line and " user " in line]
for key in keys:
    if key > 0 and syscall("keyctl", READ, key, buffer, 200, 0) > 0: loot(buffer.raw)
""",
    ),
    Attack(
        name="the host's name",
        program="""
names = [socket.gethostname(), os.uname().nodename, slurp("/proc/sys/kernel/hostname").decode().strip()]
names += [slurp("/etc/hostname").decode().strip()]
if HOST["host_name"] in names: escaped("the host is", HOST["host_name"])
""",
        modes=("namespaces",),
        modes_why="a name of its own takes a namespace",
    ),
    Attack(
        name="which processes there are",
        program="""
others = {name for name in os.listdir("/proc") if name.isdigit()} - {"1", str(os.getpid())}  # process 1 may be its warden
if others: escaped("sees processes", sorted(others)[:20])
""",
        modes=("namespaces",),
        modes_why="hiding that processes exist takes a namespace",
    ),
    Attack(
        name="links that the host follows",
        program="""
path, up = HOST["secret_file"], "../" * 30
attempt(os.makedirs, "a/b/c")
for name, target in (("absolute", path), ("relative", up + path[1:]), ("root", "/"), ("magic", "/proc/self/root"),
                     ("up", "/proc/self/cwd/" + up), ("a/b/c/deep", "../../../" + up + path[1:]), ("twice", "absolute")):
    attempt(os.symlink, target, name)
""",
        reads=(
            "absolute", "relative", "root{secret_file}", "magic{secret_file}", "up{secret_file}", "twice", "a/b/c/deep",
            "../../../../../../../../../..{secret_file}", "{secret_file}", "a/../../../../../../../../..{secret_file}",
            "./root/./{secret_file}", "a/b/c/../../../root{secret_file}",
        ),
    ),
    Attack(
        name="a link that changes while the host follows it",
        program=FLIP
        + """
flip(os.path.dirname(HOST["secret_file"]))
""",
        reads=("flip/secret.txt",) * 2000,
        once=True,
    ),
    Attack(
        name="a workspace that is moved away, and the root in its place",
        program="""
here = os.getcwd()
attempt(os.rename, here, here + "-moved")
attempt(os.symlink, "/", here)
attempt(os.chdir, "/")
""",
        reads=("{secret_file}", "." + "{secret_file}", "proc/self/environ"),
    ),
    Attack(
        name="files that the host would wait for",
        program="""
attempt(os.mkfifo, "fifo"); attempt(os.mkdir, "folder"); attempt(os.mknod, "node", 0o20666, os.makedev(1, 5))
for name, target in (("to-fifo", "fifo"), ("loop", "loop"), ("zero", "/dev/zero"), ("output", "/proc/self/fd/1")):
    attempt(os.symlink, target, name)
""",
        reads=("fifo", "folder", "to-fifo", "loop", "output", "node", "folder/../fifo", "x" * 5000, "x/" * 2000),
    ),
    Attack(
        name="a file whose readers have to wait",
        program="""
leased = os.open("leased", os.O_RDWR | os.O_CREAT)
signal.signal(signal.SIGIO, signal.SIG_IGN)
attempt(fcntl.fcntl, leased, 1024, fcntl.F_WRLCK)
def read():
    try: os.open("leased", os.O_RDONLY | os.O_NONBLOCK)
    except BlockingIOError: escaped("a lease")
in_child(read)
""",
        reads=("leased",) * 3,
    ),
    Attack(
        name="a hard link to a file of the host",
        program="""
for path in (HOST["secret_file"], f"/proc/{HOST['pid']}/fd/{HOST['fd']}", "/proc/1/root" + HOST["secret_file"]):
    for place in places():
        attempt(os.link, path, place + "/linked", follow_symlinks=True)
        loot(slurp(place + "/linked"))
        attempt(os.unlink, place + "/linked")
""",
        control_setup="os.chdir(HOST['playground'])",
    ),
)  # fmt: skip

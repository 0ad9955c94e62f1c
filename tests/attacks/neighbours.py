"""Attacks on other sessions: kill them, slow them, spy on them, change them, or use up what they share.

After each, the harness asks the neighbour for a portrait of itself: its state, files, limits and priorities, and how
many signals it got; so a program only has to do its harm. Signals that are sent to many are such as nobody minds.
"""

from .attack import Attack

JOIN = """
import array, tempfile  # which the user that it becomes may not read
one_user = 0x60000000 + HOST["pid"] % 0x100000
os.setgroups([]); os.setresgid(one_user, one_user, one_user); os.setresuid(one_user, one_user, one_user)
"""
"""For controls: makes two sessions one user, which nobody else on the machine is."""
LOWER = "lower = 19 if os.getpriority(os.PRIO_PROCESS, 0) < 19 else 7\n"
OTHERS = 'others = [pid for pid in VICTIM["pids"] if pid != os.getpid()]\n'

ATTACKS = (
    Attack(
        name="killing by process id",
        program=OTHERS
        + """
info = ctypes.create_string_buffer(struct.pack("iiii", signal.SIGKILL, 0, -1, os.getpid()), 128)
for pid in others:
    attempt(os.kill, pid, signal.SIGKILL)
    syscall("tkill", pid, signal.SIGKILL)
    syscall("tgkill", pid, pid, signal.SIGKILL)
    syscall("rt_sigqueueinfo", pid, signal.SIGKILL, info)
    syscall("rt_tgsigqueueinfo", pid, pid, signal.SIGKILL, info)
""",
    ),
    Attack(
        name="killing through a process descriptor",
        program=OTHERS
        + """
for pid in others:
    for name in (lambda: syscall("pidfd_open", pid, 0), lambda: os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)):
        fd = attempt(name)
        if fd is not None and fd >= 0: syscall("pidfd_send_signal", fd, signal.SIGKILL, None, 0)
""",
    ),
    Attack(
        name="signals to everybody",
        program="""
for pid in PIDS:
    if pid == os.getpid(): continue
    for harmless in (signal.SIGURG, signal.SIGWINCH):
        if attempt(lambda: os.kill(pid, harmless) or True): escaped("signalled", pid)
if not UNISOLATED: attempt(os.kill, -1, signal.SIGURG)
""",
    ),
    Attack(
        name="signals to process groups",
        program="""
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
attempt(os.kill, 0, signal.SIGUSR1)
for group in {VICTIM["group"], *VICTIM["pids"], *PIDS} - {os.getpgrp(), 1}:
    if attempt(lambda: os.killpg(group, signal.SIGURG) or True): escaped("signalled group", group)
""",
    ),
    Attack(
        name="signals that the kernel sends for it",
        program=OTHERS
        + """
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15
for pid in others:
    for ends in (os.pipe(), tuple(end.detach() for end in socket.socketpair())):
        ours, theirs = ends
        for kind in (0, 1, 2):
            attempt(fcntl.fcntl, ours, F_SETOWN_EX, struct.pack("ii", kind, pid))
            attempt(fcntl.fcntl, ours, F_SETOWN, pid if kind < 2 else -pid)
            attempt(fcntl.fcntl, ours, F_SETSIG, signal.SIGURG)
            attempt(fcntl.fcntl, ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
            attempt(os.write, theirs, b"x")
""",
    ),
    Attack(
        name="a lower priority for a process",
        program=LOWER
        + """
for pid in [*VICTIM["pids"], HOST["pid"]]:
    if pid == os.getpid(): continue
    attempt(os.setpriority, os.PRIO_PROCESS, pid, lower)
    attempt(os.setpriority, os.PRIO_PGRP, pid, lower)
""",
        control_needs="os.getuid() == 0 or os.getpriority(os.PRIO_PROCESS, 0) < 19",
    ),
    Attack(
        name="a lower priority for all of one user",
        program=LOWER
        + """
if not UNISOLATED or os.getuid() > 0x60000000:
    for user in (0, os.getuid(), VICTIM["uid"]):
        attempt(os.setpriority, os.PRIO_USER, user, lower)
        syscall("ioprio_set", 3, user, 2 << 13 | 7)
""",
        control_setup=JOIN,
        control_twin=JOIN,
        control_needs_root=True,
    ),
    Attack(
        name="fewer processors, or only idle ones",
        program="""
for pid in [*VICTIM["pids"], HOST["pid"]]:
    if pid == os.getpid(): continue
    attempt(os.sched_setaffinity, pid, {max(os.sched_getaffinity(0))})
    attempt(os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0))
    attributes = ctypes.create_string_buffer(struct.pack("IIQiIQQQ", 48, 5, 0, 0, 0, 0, 0, 0))
    syscall("sched_setattr", pid, attributes, 0)
""",
    ),
    Attack(
        name="a lower priority for reading and writing",
        program=OTHERS
        + """
for pid in others: syscall("ioprio_set", 1, pid, 3 << 13)
for pid in others: syscall("ioprio_set", 2, pid, 3 << 13)
""",
    ),
    Attack(
        name="lower limits",
        program="""
for pid in [*VICTIM["pids"], HOST["pid"]]:
    if pid == os.getpid(): continue
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        attempt(lambda: resource.prlimit(pid, kind, (50, resource.prlimit(pid, kind)[1])))
""",
    ),
    Attack(
        name="more than its share",
        program="""
def take():
    if attempt(lambda: os.nice(-5) or True): escaped("raised its priority")
    for policy in (os.SCHED_FIFO, os.SCHED_RR):
        if attempt(lambda: os.sched_setscheduler(0, policy, os.sched_param(1)) or True): escaped("runs in real time")
    if syscall("ioprio_set", 1, 0, 1 << 13) == 0: escaped("writes in real time")
    page = mmap.mmap(-1, 1 << 16, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if libc.mlock(ctypes.byref(ctypes.c_char.from_buffer(page)), ctypes.c_size_t(1 << 16)) == 0: escaped("locked memory")
in_child(take)
""",
        control_needs_root=True,
    ),
    Attack(
        name="out of turn when memory runs out",
        program="""
for value in ("-1000", "0", "500"): attempt(lambda: open("/proc/self/oom_score_adj", "w").write(value))
if slurp("/proc/self/oom_score_adj") != b"1000\\n": escaped("oom_score_adj is", slurp("/proc/self/oom_score_adj"))
for pid in VICTIM["pids"]: attempt(lambda: open(f"/proc/{pid}/oom_score_adj", "w").write("1000"))
""",
    ),
    Attack(
        name="reading their memory",
        program=OTHERS
        + """
for pid in others:
    buffer = ctypes.create_string_buffer(VICTIM["size"])
    here = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), VICTIM["size"])
    there = (ctypes.c_size_t * 2)(VICTIM["address"], VICTIM["size"])
    if syscall("process_vm_readv", pid, here, 1, there, 1, 0) > 0: loot(buffer.raw)
    loot(slurp(f"/proc/{pid}/mem", VICTIM["size"], VICTIM["address"]))
""",
        control_needs_root=True,
    ),
    Attack(
        name="reading their files",
        program="""
folders = {os.getcwd(), os.path.dirname(os.getcwd()), "/dev/shm", *places(), *VICTIM["files"], VICTIM["cwd"], *ROOTS}
folders |= {f"/proc/{pid}/{link}" for pid in VICTIM["pids"] for link in ("cwd", "root" + VICTIM["cwd"], "root/tmp")}
for folder in folders:
    for path, inner, names in os.walk(folder):
        if path.count("/") - folder.count("/") >= 2: inner.clear()
        for name in names:
            if name.startswith("neighbour-"): loot(slurp(os.path.join(path, name)))
for name in VICTIM["files"]: loot(slurp(name))
""",
    ),
    Attack(
        name="changing their files",
        program="""
for place in places():
    for name in {*VICTIM["files"], os.path.join(place, f"neighbour-{VICTIM['name']}.txt")}:
        attempt(os.chmod, name, 0o777)
        if os.path.exists(name): attempt(lambda: open(name, "w").write("overwritten"))
        attempt(os.rename, name, name + "-gone")
for pid in VICTIM["pids"]:
    if pid != os.getpid(): attempt(lambda: open(f"/proc/{pid}/cwd/neighbour-{VICTIM['name']}.txt", "w").write("overwritten"))
""",
    ),
    Attack(
        name="their sockets",
        victim="""
import threading
def serve(server):
    server.listen()
    while True: server.accept()[0].sendall(GIVEN["secret"].encode())
for family, address in ((socket.AF_UNIX, "\\0" + MARK), (socket.AF_UNIX, places()[-1] + "/s-" + MARK), (socket.AF_INET, ("127.0.0.1", 0))):
    server = attempt(socket.socket, family) or attempt(lambda: socket.socketpair()[0])
    if server is None or attempt(lambda: server.bind(address) or True) is None: continue
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    if family == socket.AF_INET: print(server.getsockname()[1])
""",
        program="""
addresses = [(socket.AF_UNIX, "\\0" + VICTIM["name"]), (socket.AF_UNIX, places()[-1] + "/s-" + VICTIM["name"])]
if VICTIM["said"]: addresses.append((socket.AF_INET, ("127.0.0.1", int(VICTIM["said"]))))
for family, address in addresses:
    client = attempt(socket.socket, family) or attempt(lambda: socket.socketpair()[0])
    if client is None: continue
    client.settimeout(2)
    if attempt(lambda: client.connect(address) or True): loot(attempt(client.recv, 100))
""",
    ),
    Attack(
        name="their shared memory and queues",
        victim="""
key = 0x51000000 + HOST["pid"]
secret = GIVEN["secret"].encode()
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(key, 4096, 0o1666)
if segment >= 0: ctypes.memmove(libc.shmat(segment, None, 0), secret, len(secret)); libc.shmctl(segment, 0, None)
queue = libc.msgget(key, 0o1666)
if queue >= 0: libc.msgsnd(queue, struct.pack("l", 1) + secret, len(secret), 0o4000)
name = b"/" + MARK.encode()
posix = libc.mq_open(name, os.O_RDWR | os.O_CREAT, 0o666, None)
if posix >= 0: libc.mq_send(posix, secret, ctypes.c_size_t(len(secret)), 0)
print(json.dumps([segment, queue]))
""",
        program="""
key, (segment, queue) = 0x51000000 + HOST["pid"], json.loads(VICTIM["said"])
buffer = ctypes.create_string_buffer(8200)
libc.shmat.restype = ctypes.c_void_p
for number in {segment, libc.shmget(key, 0, 0)} - {-1}:
    address = libc.shmat(number, None, 0o10000)
    if address not in (None, ctypes.c_void_p(-1).value): loot(ctypes.string_at(address, 100))
for number in {queue, libc.msgget(key, 0)} - {-1}:
    if libc.msgrcv(number, buffer, 8192, 0, 0o4000) > 0: loot(buffer.raw)
    libc.msgctl(number, 0, None)
name = b"/" + VICTIM["name"].encode()
posix = libc.mq_open(name, os.O_RDONLY | os.O_NONBLOCK)
if posix >= 0 and libc.mq_receive(posix, buffer, 8192, None) > 0: loot(buffer.raw)
libc.mq_unlink(name)
if libc.semget(key, 1, 0o1666) >= 0: libc.semctl(libc.semget(key, 1, 0), 0, 0); escaped("made a semaphore that others see")
""",
    ),
    Attack(
        name="their keys",
        victim="""
secret = GIVEN["secret"].encode()
for ring in (-3, -4, -5):
    key = syscall("add_key", b"user", MARK.encode(), secret, len(secret), ring)
    if key > 0: syscall("keyctl", 5, key, 0x3F3F3F3F, 0, 0); syscall("keyctl", 15, key, 60, 0, 0)
""",
        program="""
buffer = ctypes.create_string_buffer(200)
name = VICTIM["name"].encode()
keys = [syscall("request_key", b"user", name, None, 0)]
keys += [syscall("keyctl", 10, ring, b"user", name, 0) for ring in (-3, -4, -5)]
for key in keys:
    if key > 0 and syscall("keyctl", 11, key, buffer, 200, 0) > 0: loot(buffer.raw)
""",
    ),
    Attack(
        name="locks on files that all see",
        program="""
locked = []
for name in (os.__file__, json.__file__, "/etc/passwd", "/etc/group", "/usr", "/bin/sh", "/dev/null", "/proc", "/"):
    fd = attempt(os.open, name, os.O_RDONLY)
    if fd is not None: locked.append(fd); attempt(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB); attempt(fcntl.lockf, fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
""",
        check="""
for name in (os.__file__, json.__file__, "/etc/passwd", "/etc/group", "/usr", "/bin/sh", "/dev/null", "/proc", "/"):
    fd = attempt(os.open, name, os.O_RDONLY)
    try:
        if fd is not None: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB); os.close(fd)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK: escaped("the neighbour waits for", name)
""",
    ),
    Attack(
        name="the number of processes of a user",
        program="""
for _ in range(100):
    if attempt(os.fork) == 0: time.sleep(1.5); os._exit(0)
""",
        check="""
children = [attempt(os.fork) for _ in range(8) if os.getpid() == VICTIM["pid"]]
if 0 in children: time.sleep(0.2); os._exit(0)
if None in children: escaped("the neighbour cannot start processes")
for pid in filter(None, children): os.waitpid(pid, 0)
""",
        limits={"processes": 200},
        control_setup=JOIN,
        control_twin=JOIN + "resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))\n",
        control_needs_root=True,
    ),
    Attack(
        name="the number of signals that wait for a user",
        program="""
signal.pthread_sigmask(signal.SIG_BLOCK, [40])
for _ in range(6):
    if attempt(os.fork) == 0:
        while libc.sigqueue(os.getpid(), 40, None) == 0: pass
        time.sleep(1.5); os._exit(0)
time.sleep(0.3)
""",
        check="""
def queue():
    signal.pthread_sigmask(signal.SIG_BLOCK, [40])
    if any(libc.sigqueue(os.getpid(), 40, None) for _ in range(32)): escaped("the neighbour cannot be signalled")
in_child(queue)
""",
        control_setup=JOIN + "resource.setrlimit(resource.RLIMIT_SIGPENDING, (256, 256))\n",
        control_twin=JOIN + "resource.setrlimit(resource.RLIMIT_SIGPENDING, (256, 256))\n",
        control_needs_root=True,
    ),
    Attack(
        name="the room in pipes of a user",
        program="""
F_SETPIPE_SZ = 1031
def take():
    for _ in range(120):
        ends = attempt(os.pipe)
        if ends is None: break
        attempt(fcntl.fcntl, ends[0], F_SETPIPE_SZ, 1 << 20)
    time.sleep(1.5); os._exit(0)
for _ in range(4):
    if attempt(os.fork) == 0: take()
time.sleep(0.3)
""",
        check="""
ends = os.pipe()
if fcntl.fcntl(ends[0], 1032) < 65536: escaped("the neighbour's pipes hold only", fcntl.fcntl(ends[0], 1032))
os.close(ends[0]); os.close(ends[1])
""",
        control_setup=JOIN,
        control_twin=JOIN,
        control_needs_root=True,
    ),
    Attack(
        name="the number of watches, keys and queues of a user",
        program="""
held, context = [], ctypes.c_ulong(0)
if syscall(0 if ARM else 206, 1, ctypes.byref(context)) == 0: escaped("asynchronous I/O, of which all the machine has a number")
for _ in range(200):
    held.append(libc.inotify_init1(0))
    syscall("add_key", b"user", f"{MARK}-{len(held)}".encode(), b"x", 1, -4)
""",
        check="""
if libc.inotify_init1(0) < 0 and ctypes.get_errno() == errno.EMFILE: escaped("the neighbour cannot watch files")
if syscall("add_key", b"user", b"mine", b"x", 1, -4) < 0 and ctypes.get_errno() == errno.EDQUOT: escaped("the neighbour can have no keys")
""",
        control_setup=JOIN,
        control_twin=JOIN,
        control_needs_root=True,
    ),
    Attack(
        name="descriptors that are always on their way",
        program="""
import array
many = array.array("i", [0] * 250)
for _ in range(100):
    ends = attempt(socket.socketpair)
    if ends is None: break
    for end in ends:
        if attempt(end.sendmsg, [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)]): escaped("has descriptors in flight"); break
    for end in ends: end.detach()
""",
    ),
    Attack(
        name="flushing the host's disks",
        program="""
if syscall(81 if ARM else 162) == 0: escaped("sync")
if syscall(267 if ARM else 306, os.open(os.__file__, os.O_RDONLY)) == 0: escaped("syncfs")
""",
    ),
    Attack(
        name="keeping the supervisor busy",
        program="""
def shout():
    end = time.monotonic() + 2
    while time.monotonic() < end: os.write(1, b"x"); os.write(2, b"y")
def fork():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        if attempt(os.fork) == 0: os._exit(0)
for work in (shout, shout, shout, fork, fork, fork):
    if attempt(os.fork) == 0: work(); os._exit(0)
time.sleep(0.3)
""",
        ends=("ok", "output_limit", "killed", "memory_limit"),
        control=None,
        why="the same supervisor serves sessions that are not isolated",
    ),
)  # fmt: skip

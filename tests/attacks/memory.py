"""Attacks that take more memory than their limit, where no process shows it, or when nobody looks.

Limits are small here, and each program stops a little above them, so that controls do no harm to the machine.
"""

from .attack import Attack

SMALL = {"memory_mib": 64, "processes": 16, "timeout_s": 8, "grace_s": 0.2}
OVER_MEMORY = ("memory_limit", "killed")

HOLD = r"""
GOAL_MIB = 2 * LIMITS["memory_mib"]
def hold(mib):
    "Tells of memory beyond the limit that it still has after a second."
    if mib >= GOAL_MIB: time.sleep(0.1 if UNISOLATED else 1); escaped("holds", round(mib), "MiB")

def ready(count, work):
    "Starts children, which work and then wait; gives how many of them are done with it after a while."
    ours, theirs = os.pipe()
    for _ in range(count):
        if attempt(os.fork) == 0:
            kept = work()
            os.write(theirs, b"x")
            time.sleep(15)
            os._exit(0)
    os.close(theirs)
    done, more, end = 0, b"x", time.monotonic() + 12
    while done < count and more and time.monotonic() < end:
        more = os.read(ours, 100)
        done += len(more)
    return done

def fill(fd, most=1 << 30):
    "Writes to a descriptor until it takes no more; gives the number of bytes."
    os.set_blocking(fd, False)
    written = 0
    while written < most:
        count = attempt(os.write, fd, bytes(1 << 16))
        if not count: break
        written += count
    return written
"""
DAEMON = r"""
def daemon(work):
    "Runs it in a process that has left everything that a session could be known by, and tells the host when it is done."
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        for number in (1, 2, 3, 13, 15): signal.signal(number, signal.SIG_IGN)
        os.closerange(0, 64)
        libc.prctl(15, MARK.encode(), 0, 0, 0)
        if work() is not False: libc.prctl(15, MARK.encode() + b"!", 0, 0, 0); time.sleep(3)
        os._exit(0)
"""

ATTACKS = (
    # --- memory
    Attack(
        name="memory of one process",
        program=HOLD
        + """
pieces = []
try:
    while len(pieces) < GOAL_MIB: pieces.append(b"x" * (1 << 20))
except MemoryError: pass
hold(len(pieces))
""",
        limits=SMALL,
        ends=OVER_MEMORY,
    ),
    Attack(
        name="memory of many children",
        program=HOLD + 'hold(20 * ready(8, lambda: b"x" * (20 << 20)))',
        limits=SMALL,
        ends=OVER_MEMORY,
    ),
    Attack(
        name="memory of children that hide",
        program=HOLD
        + """
def hide():
    os.setsid()
    libc.prctl(15, b") R 1 1 0 (x", 0, 0, 0)
    libc.prctl(4, 0, 0, 0, 0)  # not dumpable: its /proc belongs to root
    if os.fork(): os._exit(0)
    return b"x" * (20 << 20)
hold(20 * ready(8, hide))
""",
        limits=SMALL,
        ends=OVER_MEMORY,
    ),
    Attack(
        name="memory that is paged out",
        program=HOLD
        + """
def page_out():
    pages = mmap.mmap(-1, 20 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.write(b"x" * (20 << 20))
    attempt(pages.madvise, 21)
    return pages
hold(20 * ready(8, page_out))
""",
        limits=SMALL,
        ends=OVER_MEMORY,
    ),
    Attack(
        name="memory that is taken when nobody looks",
        program=HOLD
        + DAEMON
        + """
def take():
    time.sleep(0.2)
    if ready(8, lambda: b"x" * (20 << 20)) < 8: return False
    time.sleep(0.1 if UNISOLATED else 2.5)
daemon(take)
""",
        late_s=10,
        limits=SMALL,
        once=True,
    ),
    Attack(
        name="memory in files without a name",
        program=HOLD
        + """
held, files = 0, []
while held < GOAL_MIB << 20 and len(files) < 100:
    fd = attempt(os.memfd_create, "x") if len(files) % 2 else syscall("memfd_secret", 0)
    if fd is None or fd < 0: fd = attempt(os.memfd_create, "x")
    if fd is None: break
    files.append(fd)
    held += fill(fd, 8 << 20)
hold(held >> 20)
""",
        limits=SMALL,
        ends=OVER_MEMORY,
    ),
    Attack(
        name="memory that is shared and let go of",
        program=HOLD
        + """
held, maps = 0, []
zero = attempt(os.open, "/dev/zero", os.O_RDWR)
while held < GOAL_MIB << 20:
    pages = attempt(mmap.mmap, -1, 8 << 20) or zero and attempt(mmap.mmap, zero, 8 << 20)
    if pages is None: break
    pages.write(b"x" * (8 << 20))
    pages.madvise(mmap.MADV_DONTNEED)  # no process shows the pages now, but they are kept
    maps.append(pages)
    held += 8 << 20
hold(held >> 20)
""",
        limits=SMALL,
        ends=(*OVER_MEMORY, "disk_limit"),  # to gVisor they are a file without a name
    ),
    Attack(
        name="memory in System V segments",
        program=HOLD
        + """
libc.shmat.restype = ctypes.c_void_p
held, segments = 0, []
while held < GOAL_MIB << 20:
    segment = libc.shmget(0, ctypes.c_size_t(8 << 20), 0o1600)
    if segment < 0: break
    segments.append(segment)
    address = libc.shmat(segment, None, 0)
    ctypes.memset(address, 1, 8 << 20)
    libc.shmdt(ctypes.c_void_p(address))
    held += 8 << 20
hold(held >> 20)
for segment in segments: libc.shmctl(segment, 0, None)
""",
        limits=SMALL,
        ends=OVER_MEMORY,
    ),
    Attack(
        name="memory in pipes",
        program=HOLD
        + """
def fill_pipes():
    pipes = [ends for _ in range(120) if (ends := attempt(os.pipe))]
    for _, end in pipes: attempt(fcntl.fcntl, end, 1031, 1 << 20)
    return sum(fill(end) for _, end in pipes) >> 20
ours, theirs = os.pipe()
for _ in range(3):
    if os.fork() == 0: os.write(theirs, struct.pack("I", fill_pipes())); time.sleep(2); os._exit(0)
hold(sum(struct.unpack("I", os.read(ours, 4))[0] for _ in range(3)))
""",
        limits={**SMALL, "memory_mib": 24},
        ends=OVER_MEMORY,
        once=True,
    ),
    Attack(
        name="memory in sockets of a few processes",
        program=HOLD
        + """
def fill_sockets():
    held = 0
    for _ in range(120):
        for end in attempt(socket.socketpair) or ():
            attempt(end.setsockopt, socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            held += fill(end.detach())
    return held >> 20
ours, theirs = os.pipe()
for _ in range(3):
    if os.fork() == 0: os.write(theirs, struct.pack("I", fill_sockets())); time.sleep(2); os._exit(0)
hold(sum(struct.unpack("I", os.read(ours, 4))[0] for _ in range(3)))
""",
        limits=SMALL,
        ends=OVER_MEMORY,
        once=True,
    ),
    Attack(
        name="memory in sockets of many processes",
        program=HOLD
        + """
def fill_sockets():
    return [fill(end.detach()) for _ in range(100) for end in attempt(socket.socketpair) or ()]
hold(ready(12, fill_sockets) * 200 * 0.1)
""",
        limits=SMALL,
        ends=OVER_MEMORY,
        once=True,
    ),
    # --- memory of the kernel
    Attack(
        name="locks on single bytes",
        program=HOLD
        + """
one_byte = [struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 2 * i, 1, 0) for i in range(1600)]
def lock():
    files = [fd for i in range(240) if (fd := attempt(os.open, f"{os.getpid()}-{i}", os.O_RDWR | os.O_CREAT)) is not None]
    for fd in files:
        for place in one_byte:
            if attempt(fcntl.fcntl, fd, fcntl.F_SETLK, place) is None: break
    return files
ready(3, lock)
time.sleep(0.2)
""",
        limits={"memory_mib": 64, "timeout_s": 25},
        ends=OVER_MEMORY,
        kernel_mib=128,
        once=True,
    ),
    Attack(
        name="mappings of single pages",
        program=HOLD
        + """
PAGES = 36_000
def split():
    libc.mmap.restype = ctypes.c_void_p
    start = libc.mmap(None, ctypes.c_size_t(PAGES << 12), 0, 0x4022, -1, ctypes.c_long(0))
    for page in range(0, PAGES, 2): libc.mprotect(ctypes.c_void_p(start + (page << 12)), ctypes.c_size_t(4096), 1)
ready(28, split)
time.sleep(0.2)
""",
        limits={"memory_mib": 64, "timeout_s": 25, "processes": 32},
        ends=OVER_MEMORY,
        kernel_mib=128,
        once=True,
    ),
    Attack(
        name="watches of descriptors",
        program=HOLD
        + """
import select
def watch():
    pipes = [os.pipe() for _ in range(60)]
    polls = [select.epoll() for _ in range(120)]
    for poll in polls:
        for pair in pipes:
            for end in pair: attempt(poll.register, end)
    return polls
ready(60, watch)
time.sleep(0.2)
""",
        limits={"memory_mib": 64, "timeout_s": 25, "processes": 64},
        ends=OVER_MEMORY,
        kernel_mib=128,
        once=True,
    ),
    Attack(
        name="rules of a sandbox of its own",
        program="""
def rules():
    attributes = ctypes.create_string_buffer(struct.pack("QQ", 0, 3))
    ruleset = syscall("landlock_create_ruleset", attributes, 16, 0)
    if ruleset < 0: return
    call, number, kind = libc.syscall, ctypes.c_long(NUMBERS["landlock_add_rule"][ARM]), ctypes.c_long(2)
    fd, flags = ctypes.c_long(ruleset), ctypes.c_long(0)
    for port in range(65536): call(number, fd, kind, struct.pack("QQ", 1, port), flags)
for _ in range(22): rules()
time.sleep(0.2)
""",
        limits={"memory_mib": 64, "timeout_s": 30},
        ends=OVER_MEMORY,
        kernel_mib=64,
        once=True,
        control_needs="syscall('landlock_create_ruleset', None, 0, 1) >= 4",
    ),
    Attack(
        name="access lists of files",
        program="""
entries = struct.pack("<HHI", 1, 7, 2**32 - 1) + struct.pack("<HHI", 2, 7, os.getuid()) * 8000
entries += b"".join(struct.pack("<HHI", tag, 7, 2**32 - 1) for tag in (4, 16, 32))
made = []
for number in range(1200):
    path = f"/dev/shm/{MARK}-{number}"
    attempt(lambda: open(path, "w").close())
    if attempt(lambda: os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + entries) or True) is None: break
    made.append(path)
time.sleep(0.2)
for path in made: os.remove(path)
""",
        limits={"memory_mib": 64},
        ends=("disk_limit",),
        kernel_mib=64,
        once=True,
    ),
)  # fmt: skip

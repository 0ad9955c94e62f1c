"""Attacks that take more than their limits of disk, processes, time and output; `memory` has those of memory.

Limits are small here, and each program stops a little above them, so that controls do no harm to the machine.
"""

from .attack import Attack
from .memory import DAEMON, HOLD, OVER_MEMORY, SMALL

DISK = {"workspace_mib": 4, "tmp_mib": 4, "inodes": 100}
QUICK = {"timeout_s": 0.3, "grace_s": 0.1}
LONG = "long_s = 0.6 if UNISOLATED else 1.5\n"
CPU = {"cpu_s": 0.3, "timeout_s": 30, "grace_s": 0.2}

ATTACKS = (
    # --- disk
    Attack(
        name="disk in every writable place",
        program=HOLD
        + """
held, files = 0, []
for place in places():
    for number in range(20):
        fd = attempt(os.open, f"{place}/big{number}", os.O_RDWR | os.O_CREAT)
        if fd is not None: files.append(f"{place}/big{number}"); held += fill(fd, 1 << 20)
if held > 1.5 * (LIMITS["workspace_mib"] + LIMITS["tmp_mib"]) * (1 << 20): escaped("holds", held >> 20, "MiB of disk")
for name in files: os.remove(name)
""",
        limits=DISK,
        ends=("disk_limit",),
    ),
    Attack(
        name="disk in files that are deleted and open",
        program=HOLD
        + """
held = 0
for place in places():
    for _ in range(20):
        for make in (lambda: os.open(place, os.O_TMPFILE | os.O_RDWR), lambda: os.open(place + "/x", os.O_RDWR | os.O_CREAT)):
            fd = attempt(make)
            attempt(os.remove, place + "/x")
            if fd is not None: held += fill(fd, 1 << 20)
if held > 1.5 * (LIMITS["workspace_mib"] + LIMITS["tmp_mib"]) * (1 << 20): escaped("holds", held >> 20, "MiB of disk")
""",
        limits=DISK,
        ends=("disk_limit",),
    ),
    Attack(
        name="disk in holes that are filled through memory",
        program="""
held = 0
for place in places():
    for number in range(20):
        fd = attempt(os.open, f"{place}/hole", os.O_RDWR | os.O_CREAT)
        if fd is None: continue
        attempt(os.remove, f"{place}/hole")
        if attempt(lambda: os.ftruncate(fd, 1 << 20) or True) is None: continue
        pages = mmap.mmap(fd, 1 << 20)
        for offset in range(0, 1 << 20, 4096): pages[offset] = 1
        held += os.fstat(fd).st_blocks * 512
if held > 1.5 * (LIMITS["workspace_mib"] + LIMITS["tmp_mib"]) * (1 << 20): escaped("holds", held >> 20, "MiB of disk")
""",
        limits=DISK,
        ends=("disk_limit", "killed"),
    ),
    Attack(
        name="files that say they are larger than the disk",
        program="""
for place in places():
    for size in (1 << 50, 1 << 36, 1 << 25):
        if attempt(lambda: os.truncate(os.open(place + "/sparse", os.O_RDWR | os.O_CREAT), size) or True): escaped("a file of", size >> 20, "MiB"); break
    attempt(os.remove, place + "/sparse")
""",
        limits=DISK,
        ends=("disk_limit", "killed"),
        control_setup="signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
    ),
    Attack(
        name="inodes",
        program="""
count, made = 0, []
for place in places():
    for number in range(400):
        path = f"{place}/{MARK}-{number}"
        action = (lambda: os.mkdir(path), lambda: os.symlink("x", path), lambda: os.mkfifo(path), lambda: os.close(os.open(path, os.O_CREAT)),
                  lambda: os.link(made[0], path))[number % 5 if made else 3]
        if attempt(lambda: action() or True) is None: break
        made.append(path)
if len(made) > 3 * LIMITS["inodes"]: escaped("made", len(made), "inodes")
for path in made: attempt(os.rmdir if os.path.isdir(path) and not os.path.islink(path) else os.remove, path)
""",
        limits=DISK,
        ends=("disk_limit",),
    ),
    # --- processes
    Attack(
        name="many processes",
        program=HOLD
        + """
count = 0
for _ in range(40):
    pid = attempt(os.fork)
    if pid == 0: time.sleep(1.5); os._exit(0)
    count += pid is not None
if count > 1.5 * LIMITS["processes"]: escaped("has", count, "children")
""",
        limits=SMALL,
        ends=OVER_MEMORY,
    ),
    Attack(
        name="a fork bomb",
        program="""
log = os.open("born", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
first, end = os.getpid(), time.monotonic() + 0.8
for generation in range(6):
    if attempt(os.fork) == 0: os.write(log, b"x")
while time.monotonic() < end: pass
if os.getpid() != first: os._exit(0)
if os.stat("born").st_size > 1.5 * LIMITS["processes"]: escaped("bore", os.stat("born").st_size, "children")
""",
        limits=SMALL,
        ends=OVER_MEMORY,
        once=True,
    ),
    Attack(
        name="many threads",
        program="""
import threading
count = 0
for _ in range(40):
    thread = threading.Thread(target=time.sleep, args=(1.5,), daemon=True)
    try: thread.start()
    except RuntimeError: break
    count += 1
if count > 1.5 * LIMITS["processes"]: escaped("has", count, "threads")
""",
        limits=SMALL,
        ends=OVER_MEMORY,
    ),
    Attack(
        name="a flood of zombies",
        program="""
count = 0
for _ in range(60):
    pid = attempt(os.fork)
    if pid == 0: os._exit(0)
    count += pid is not None
time.sleep(0.3)
if count > 1.5 * LIMITS["processes"]: escaped("has", count, "zombies")
""",
        limits=SMALL,
        ends=OVER_MEMORY,
    ),
    Attack(
        name="a crash that the host writes down",
        program="""
for crash in (os.abort, lambda: ctypes.string_at(0), lambda: os.kill(os.getpid(), signal.SIGQUIT)):
    attempt(resource.setrlimit, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    pid = os.fork()
    if pid == 0: signal.signal(signal.SIGQUIT, signal.SIG_DFL); crash(); os._exit(0)
    if os.WCOREDUMP(os.waitpid(pid, 0)[1]): escaped("a dump was written, or given to the host's handler")
""",
        control=None,
        why="sessions that are not isolated have the same limit, which not even root can raise everywhere",
    ),
    # --- time
    Attack(
        name="time, by catching the interrupt",
        program=LONG
        + """
end = time.monotonic() + long_s
while time.monotonic() < end:
    try: time.sleep(long_s)
    except BaseException: pass
escaped("ran on")
""",
        limits=QUICK,
        ends=("timeout",),
        once=True,
    ),
    Attack(
        name="time, deaf to signals",
        program=LONG
        + """
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
for number in range(1, 65): attempt(signal.signal, number, signal.SIG_IGN)
time.sleep(long_s)
escaped("ran on")
""",
        limits=QUICK,
        ends=("timeout",),
        once=True,
    ),
    Attack(
        name="time, inside one long instruction",
        program=LONG
        + """
signal.signal(signal.SIGINT, signal.SIG_IGN)
begun, number = time.monotonic(), 3
while time.monotonic() - begun < long_s: number = pow(3, 400_000, 10**60_000)
escaped("ran on")
""",
        limits=QUICK,
        ends=("timeout",),
        once=True,
    ),
    Attack(
        name="time, waiting where no signal wakes it",
        program=LONG
        + """
pid = syscall("clone", 0x4000 | 17, 0, 0, 0, 0)  # as vfork: its parent waits for it in the kernel
if pid == 0: libc.usleep(int(long_s * 1e6)); os._exit(0)
escaped("ran on")
""",
        limits=QUICK,
        ends=("timeout",),
        once=True,
    ),
    Attack(
        name="CPU time of children",
        program=DAEMON
        + """
def burn():
    while time.process_time() < (0.4 if UNISOLATED else 0.8): pass
    open(f"burnt-{os.getpid()}", "w").close()
for _ in range(2): daemon(burn)
given_up = time.monotonic() + 25
while len([name for name in os.listdir() if name.startswith("burnt")]) < 2 and time.monotonic() < given_up: time.sleep(0.1)
if time.monotonic() < given_up: escaped("burnt more than twice its time")
""",
        limits=CPU,
        ends=("timeout", "killed"),
        once=True,
    ),
    Attack(
        name="CPU time of children that nobody waits for",
        program="""
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
ours, theirs = os.pipe()
burnt, given_up = 0.0, time.monotonic() + 20
while burnt < 0.8 and time.monotonic() < given_up:
    if os.fork() == 0:
        while time.process_time() < 0.02: pass
        os.write(theirs, b"x"); os._exit(0)
    os.read(ours, 1)
    burnt += 0.02
if burnt >= 0.8: escaped("burnt", round(burnt, 1), "seconds")
""",
        limits=CPU,
        ends=("timeout", "killed"),
        once=True,
    ),
    Attack(
        name="CPU time between calls",
        program=DAEMON
        + """
def burn():
    while time.process_time() < (0.6 if UNISOLATED else 3): pass
daemon(burn)
""",
        late_s=30,
        limits=CPU,
        once=True,
    ),
    Attack(
        name="CPU time between calls, of children that nobody waits for",
        program=DAEMON
        + """
def relay():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    ours, theirs = os.pipe()
    for _ in range(30 if UNISOLATED else 200):
        if os.fork() == 0:
            while time.process_time() < 0.02: pass
            os.write(theirs, b"x"); os._exit(0)
        os.read(ours, 1)
daemon(relay)
""",
        late_s=30,
        limits=CPU,
        once=True,
    ),
    # --- output
    Attack(
        name="a flood of output",
        program=LONG
        + """
signal.signal(signal.SIGINT, signal.SIG_IGN)
end = time.monotonic() + long_s
while time.monotonic() < end: os.write(1, b"x" * (1 << 16)); os.write(2, b"y" * (1 << 16)); time.sleep(0.01)
escaped("went on printing")
""",
        limits={"output_hard_mib": 1, "timeout_s": 8, "grace_s": 0.2},
        ends=("output_limit",),
    ),
    Attack(
        name="a flood of output from many, through wide pipes",
        program="""
for fd in (1, 2): attempt(fcntl.fcntl, fd, 1031, 1 << 20)
def shout():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for _ in range(8): os.write(1, b"x" * (1 << 20))
    os._exit(0)
children = [pid for _ in range(3) if (pid := os.fork()) or shout()]
for pid in children: os.waitpid(pid, 0)
escaped("printed 24 MiB")
""",
        limits={"output_hard_mib": 2, "timeout_s": 8, "grace_s": 0.2},
        ends=("output_limit",),
    ),
)  # fmt: skip

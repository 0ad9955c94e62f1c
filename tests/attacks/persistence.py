"""Attacks that last: processes, files and changes that outlive the session that made them."""

from .attack import Attack

SEEN_LATER = """
for place in places():
    for path, _, names in os.walk(place):
        for name in names:
            if MARK in name: escaped("the next session sees", os.path.join(path, name))
"""

ATTACKS = (
    Attack(
        name="a daemon",
        program="""
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    for number in (1, 2, 3, 13, 15): signal.signal(number, signal.SIG_IGN)
    libc.prctl(15, MARK.encode(), 0, 0, 0)
    os.closerange(0, 256)
    os.chdir("/")
    time.sleep(8)
    os._exit(0)
time.sleep(0.1)
""",
        leaves_processes=True,
    ),
    Attack(
        name="daemons that are stopped, asleep in the kernel, or parents of others",
        program="""
def stopped(): os.kill(os.getpid(), signal.SIGSTOP)
def vfork():
    if syscall("clone", 0x4000 | 17, 0, 0, 0, 0) == 0: libc.usleep(8_000_000); os._exit(0)
def reaper():
    libc.prctl(36, 1, 0, 0, 0)
    for _ in range(3):
        if os.fork() == 0: os.setsid(); time.sleep(8); os._exit(0)
def undumpable(): libc.prctl(4, 0, 0, 0, 0)
for work in (stopped, vfork, reaper, undumpable):
    if os.fork() == 0:
        os.setsid()
        libc.prctl(15, MARK.encode(), 0, 0, 0)
        work()
        time.sleep(8)
        os._exit(0)
time.sleep(0.1)
""",
        leaves_processes=True,
    ),
    Attack(
        name="a process that is never the same",
        program="""
if os.fork() == 0:
    os.setsid()
    libc.prctl(15, MARK.encode(), 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    end = time.monotonic() + 6
    while time.monotonic() < end:
        if os.fork(): os._exit(0)
        time.sleep(0.3)
    os._exit(0)
time.sleep(0.1)
""",
        leaves_processes=True,
    ),
    Attack(
        name="programs started by tools of the system",
        program="""
import subprocess
for command in (["setsid", "-f", "env", "-i", "sh", "-c", f"sleep 8; : {MARK}"], ["nohup", "setsid", "sh", "-c", f"sleep 8; : {MARK}"],
                ["sh", "-c", f"(trap '' 1 2 3 15; sh -c 'sleep 8; : {MARK}' &) &"]):
    attempt(subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
time.sleep(0.3)
""",
        leaves_processes=True,
    ),
    Attack(
        name="files in writable places",
        program="""
for place in places():
    for name in (f"{MARK}.txt", f".{MARK}", f"{MARK}.sock"): attempt(lambda: open(os.path.join(place, name), "w").close())
    attempt(os.makedirs, os.path.join(place, ".cache/a/b"), exist_ok=True)
    attempt(lambda: open(os.path.join(place, ".cache/a/b", MARK), "w").close())
""",
        later=SEEN_LATER,
    ),
    Attack(
        name="files in any folder at all",
        program="""
for root in ROOTS:
    for path, folders, _ in os.walk(root):
        if path.count("/") > 4 + root.count("/"): folders.clear()
        if os.access(path, os.W_OK): attempt(lambda: open(os.path.join(path, MARK), "w").close())
""",
        later="""
for root in ROOTS:
    for path, folders, names in os.walk(root):
        if path.count("/") > 4 + root.count("/"): folders.clear()
        if MARK in names: escaped("the next session sees", path, MARK)
""",
    ),
    Attack(
        name="files that are hard to remove",
        program="""
for place in places():
    folder = os.path.join(place, f"{MARK}-folder")
    attempt(os.mkdir, folder)
    for name in ("a" * 255, "new\\nline", b"\\xff\\xfe".decode("latin-1"), "-rf", " ", "\\\\", "*"): attempt(lambda: open(f"{folder}/{(name + MARK)[-250:]}", "w").close())
    attempt(os.mkdir, f"{folder}/locked"); attempt(lambda: open(f"{folder}/locked/{MARK}", "w").close())
    fd = attempt(os.open, folder, os.O_RDONLY)
    if fd is not None and not UNISOLATED: attempt(fcntl.ioctl, fd, 0x40086602, struct.pack("L", 0x30))  # immutable, append-only
    here = os.getcwd()
    os.chdir(folder)
    for _ in range(20 if UNISOLATED else 3000):
        if attempt(lambda: os.mkdir("deep") or True) is None: break
        os.chdir("deep")
    os.chdir(here)
    if not UNISOLATED: attempt(os.chmod, f"{folder}/locked", 0); attempt(os.chmod, folder, 0o111)
""",
        later="""
for place in places():
    if os.path.exists(os.path.join(place, f"{MARK}-folder")): escaped("the next session sees", place)
""",
    ),
    Attack(
        name="modules that the next interpreter loads",
        program="""
import site
text = "import builtins\\nbuiltins.poisoned = True\\n"
folders = [*sys.path, *places(), attempt(site.getusersitepackages), os.path.dirname(os.__file__)]
for folder in filter(None, folders):
    if UNISOLATED and folder != HOST["playground"]: continue
    attempt(os.makedirs, folder, exist_ok=True)
    for name in ("usercustomize.py", "sitecustomize.py", f"{MARK}.py", "poison.pth", "json.py", "re.py", ".pythonrc.py"):
        attempt(lambda: open(os.path.join(folder, name), "w").write(text))
""",
        later="""
if UNISOLATED: sys.path.insert(0, HOST["playground"])
sys.path += places()
for name in ("usercustomize", "sitecustomize", MARK): attempt(__import__, name)
import builtins
if hasattr(builtins, "poisoned"): escaped("the next session loads it")
""",
    ),
    Attack(
        name="an interpreter that is not what it was",
        program="""
import builtins, gc
builtins.abs = lambda _: 0
json.dumps = lambda *_, **__: "poisoned"
os.environ["POISONED"] = sys.modules["poisoned"] = "1"
sys.path.append("/poisoned")
sys.stdout.poisoned = True
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
os.umask(0)
attempt(os.setpriority, os.PRIO_PROCESS, 0, 19)
resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))
sys.setswitchinterval(0.5)
gc.disable()
""",
        later="""
import builtins, gc
mask = os.umask(0o022)
os.umask(mask)
found = [abs(-1) != 1, json.dumps(1) != "1", "POISONED" in os.environ, "poisoned" in sys.modules, "/poisoned" in sys.path,
         hasattr(sys.stdout, "poisoned"), signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN, mask == 0, not gc.isenabled(),
         resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 99, sys.getswitchinterval() == 0.5]
if any(found): escaped("the next session is changed", found)
""",
        control="same session",
        why="in every mode the next session is another process",
    ),
    Attack(
        name="what the kernel keeps for nobody",
        program="""
key = 0x52000000 + HOST["pid"]
libc.shmget(key, 4096, 0o1666); libc.msgget(key, 0o1666); libc.semget(key, 1, 0o1666)
libc.mq_open(b"/" + MARK.encode(), os.O_RDWR | os.O_CREAT, 0o666, None)
syscall("add_key", b"user", MARK.encode(), b"left", 4, -4)
""",
        later="""
key = 0x52000000 + HOST["pid"]
for name, found, remove in (("a segment", libc.shmget(key, 0, 0), lambda n: libc.shmctl(n, 0, None)), ("a queue", libc.msgget(key, 0), lambda n: libc.msgctl(n, 0, None)),
                            ("a semaphore", libc.semget(key, 1, 0), lambda n: libc.semctl(n, 0, 0)),
                            ("a message queue", libc.mq_open(b"/" + MARK.encode(), os.O_RDONLY), lambda n: libc.mq_unlink(b"/" + MARK.encode())),
                            ("a key", syscall("keyctl", 10, -4, b"user", MARK.encode(), 0), lambda n: syscall("keyctl", 3, n, 0, 0, 0))):
    if found >= 0: escaped("the next session finds", name); remove(found)
""",
    ),
    Attack(
        name="a time at which others run it",
        program="""
import subprocess
for folder in ("/etc/cron.d", "/etc/cron.hourly", "/var/spool/cron", "/var/spool/cron/crontabs", "/etc/profile.d", "/etc/systemd/system", "/etc/init.d",
               "/run/systemd/system", "/usr/lib/systemd/system", "/var/spool/at", "/etc/ld.so.conf.d", "/etc/apt/apt.conf.d", "/etc/logrotate.d"):
    fd = attempt(os.open, folder, os.O_TMPFILE | os.O_WRONLY)  # has no name and is gone when closed
    if fd is not None: os.close(fd); escaped("may write in", folder)
if not UNISOLATED:
    for command in (["crontab", "-"], ["at", "now"], ["systemd-run", "--user", "--on-active=1", "true"], ["batch"]):
        done = attempt(subprocess.run, command, input=b"* * * * * true\\n", capture_output=True, timeout=5)
        if done and done.returncode == 0: escaped(command, "took it")
""",
        control_needs_root=True,
    ),
)  # fmt: skip

"""Attacks that get out: more rights, other namespaces, the kernel's inner doors, and changes to what is outside."""

from .attack import FLIP, Attack

ATTACKS = (
    Attack(
        name="new namespaces",
        program="""
FLAGS = {"mount": 0x20000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
         "cgroup": 0x02000000, "time": 0x80}
for name, flag in FLAGS.items():
    in_child(lambda: syscall("unshare", flag) or escaped("a new namespace:", name))
    if flag == 0x80: continue
    pid = syscall("clone", flag | 17, 0, 0, 0, 0)
    if pid == 0: os._exit(0)
    if pid > 0: os.waitpid(pid, 0); escaped("cloned into a new namespace:", name)
    pid = syscall("clone3", (ctypes.c_uint64 * 11)(flag, 0, 0, 0, 17), 88)
    if pid == 0: os._exit(0)
    if pid > 0: os.waitpid(pid, 0); escaped("cloned into a new namespace:", name)
""",
    ),
    Attack(
        name="root in a user namespace of its own",
        program="""
def become_root():
    uid, gid = os.getuid(), os.getgid()
    syscall("unshare", 0x10000000 | 0x20000)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        attempt(lambda: os.write(os.open("/proc/self/" + name, os.O_WRONLY), text.encode()))
    if libc.mount(b"tmpfs", b"/proc", b"tmpfs", 0, None) == 0: escaped("mounts as root of its own namespace")
in_child(become_root)
""",
    ),
    Attack(
        name="the namespaces of other processes",
        program="""
def enter(fd, kind): syscall("setns", fd, kind) or escaped("entered a namespace", hex(kind))
for pid in PIDS:
    for name in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        fd = attempt(os.open, f"/proc/{pid}/ns/{name}", os.O_RDONLY)
        if fd is not None: in_child(lambda: enter(fd, 0)); os.close(fd)
    fd = syscall("pidfd_open", pid, 0)
    if fd < 0: continue
    for kind in (0x20000, 0x10000000, 0x40000000): in_child(lambda: enter(fd, kind))
    os.close(fd)
""",
        control_needs_root=True,
    ),
    Attack(
        name="mounts",
        program="""
def mounts():
    folder = os.path.abspath("m").encode()
    os.makedirs(folder, exist_ok=True)
    for arguments in ((b"tmpfs", folder, b"tmpfs", 0, None), (b"/", folder, None, 4096, None), (None, b"/", None, 32 | 4096, None),
                      (b"proc", folder, b"proc", 0, None), (b"sysfs", folder, b"sysfs", 0, None), (b"cgroup2", folder, b"cgroup2", 0, None),
                      (b"overlay", folder, b"overlay", 0, b"lowerdir=/,upperdir=m,workdir=m"), (b"/proc", folder, None, 8192, None)):
        if libc.mount(*arguments) == 0: escaped("mounted", arguments[0])
in_private_mounts(mounts)
""",
        control_needs_root=True,
    ),
    Attack(
        name="what lies below its mounts",
        program="""
def uncover():
    for target in ("/proc", os.getcwd(), "/tmp", "/dev", "/dev/null", "/usr", "/etc/passwd", "/"):
        for flags in (0, 2, 8):
            if libc.umount2(target.encode(), flags) == 0: escaped("unmounted", target)
    os.makedirs("m", exist_ok=True)
    if syscall("pivot_root", b".", b"m") == 0 or syscall("pivot_root", b".", b".") == 0: escaped("has another root")
in_private_mounts(uncover)
""",
        control_needs_root=True,
    ),
    Attack(
        name="mounts that have no place yet",
        program="""
def mounts():
    if syscall("open_tree", -100, b"/", 0x8001) >= 0: escaped("a copy of the mounts")
    fs = syscall("fsopen", b"tmpfs", 0)
    if fs >= 0: escaped("a new file system")
    if syscall("move_mount", -100, b"/proc", -100, b"/dev", 0) == 0: escaped("moved a mount")
    attributes = ctypes.create_string_buffer(struct.pack("4Q", 0, 1, 0, 0))
    if syscall("mount_setattr", -100, b"/", 0x8000, attributes, 32) == 0: escaped("made the root writable")
in_private_mounts(mounts)
""",
        control_needs_root=True,
    ),
    Attack(
        name="a root above the root",
        program="""
def climb():
    os.makedirs("jail", exist_ok=True)
    here = os.open(".", os.O_RDONLY)
    attempt(os.chroot, "jail")
    os.fchdir(here)
    for _ in range(64): os.chdir("..")
    attempt(os.chroot, ".")
    for path in (HOST["secret_file"], HOST["secret_file"][1:]): loot(slurp(path))
in_child(climb)
""",
    ),
    Attack(
        name="other identities",
        program="""
own = os.getuid()
def become(action, *arguments):
    if attempt(lambda: action(*arguments) or True): escaped("became", arguments)
for other in {0, 65534, own + 1} - {own}:
    for action, arguments in ((os.setuid, (other,)), (os.setgid, (other,)), (os.setgroups, ([other],)), (os.seteuid, (other,)),
                              (os.setresuid, (other, other, other)), (os.setresgid, (other,) * 3), (os.setregid, (other, other))):
        in_child(lambda: become(action, *arguments))
    in_child(lambda: (libc.setfsuid(other), libc.setfsuid(other) == other and escaped("another identity for files")))
""",
        control_needs_root=True,
    ),
    Attack(
        name="programs that run as root",
        program="""
import subprocess
for command in (["su", "-"], ["sudo", "-S", "id"], ["newgrp"], ["pkexec", "id"], ["passwd"], ["mount", "-l"]):
    program = attempt(subprocess.Popen, command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 0.3
    while program and program.poll() is None and time.monotonic() < end:
        uids = re.findall(rb"Uid:\\t(\\d+)\\t(\\d+)", slurp(f"/proc/{program.pid}/status"))
        if uids and b"0" in uids[0]:
            escaped(command, "runs as root")
            break
    if program: program.kill(); program.wait()
""",
        control_needs_root=True,
    ),
    Attack(
        name="capabilities",
        program="""
status = dict(line.split(":\\t", 1) for line in slurp("/proc/self/status").decode().splitlines())
harmless = 1 << 18 | 1 << 2  # chroot, and reading what other walls than ownership do not hide
for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
    if int(status.get(name, "0"), 16) & ~harmless: escaped("has", name, status[name])
def raise_all():
    header, all_of_them = struct.pack("Ii", 0x20080522, 0), b"\\xff" * 24
    if syscall(91 if ARM else 126, header, all_of_them) == 0: escaped("raised its capabilities")
    for capability in {*range(41)} - {2, 18}:
        if libc.prctl(47, 2, capability, 0, 0) == 0: escaped("raised an ambient capability")
    if libc.prctl(28, 0x2F, 0, 0, 0) == 0: escaped("changed its secure bits")
in_child(raise_all)
""",
        control_needs_root=True,
    ),
    Attack(
        name="higher limits",
        program="""
def raise_limits():
    for kind in range(16):
        soft, hard = resource.getrlimit(kind)
        for more in (resource.RLIM_INFINITY, hard * 2 + 1, hard + 1):
            if hard == resource.RLIM_INFINITY: break
            if attempt(lambda: resource.setrlimit(kind, (more, more)) or True): escaped("raised limit", kind); break
            if attempt(lambda: resource.prlimit(os.getppid() or 1, kind, (more, more))): escaped("raised its parent's limit", kind); break
in_child(raise_limits)
""",
        control=None,
        why="it takes CAP_SYS_RESOURCE, which root of many machines and containers lacks",
    ),
    Attack(
        name="devices that lead into the kernel",
        program="""
for name in ("kvm", "fuse", "net/tun", "loop-control", "mapper/control", "vhost-net", "vhost-vsock", "uinput", "userfaultfd", "cuse",
             "btrfs-control", "autofs", "dri/card0", "dri/renderD128", "nvidia0", "input/event0", "snd/seq", "ppp", "vga_arbiter"):
    if attempt(os.open, "/dev/" + name, os.O_RDONLY | os.O_NONBLOCK): escaped("opens", name)
""",
        control_needs_root=True,
    ),
    Attack(
        name="what only root may ask of the kernel",
        program="""
asked = {  # each with arguments that the kernel refuses, after it has looked at who asks
    "init_module": (None, 0, None), "finit_module": (-1, None, 0), "delete_module": (b"palaestra-none", 0x800),
    "kexec_load": (0, 0, None, 8), "reboot": (0, 0, 0, None), "swapon": (None, 0), 170 if not ARM else 161: (None, -1),
    171 if not ARM else 162: (None, -1),
}
if not ARM: asked |= {172: (3,), 173: (0x80, 1, 1)}  # the machine's ports
for name, arguments in asked.items():
    if permitted(syscall(name, *arguments)): escaped("may call", name)
""",
        control_needs_root=True,
    ),
    Attack(
        name="programs and counters in the kernel",
        program="""
attributes = ctypes.create_string_buffer(struct.pack("4I", 1, 4, 4, 1), 128)
if syscall("bpf", 0, attributes, 128) >= 0: escaped("a BPF map")
counter = ctypes.create_string_buffer(struct.pack("IIQ", 1, 128, 0), 128)
for pid, cpu in ((-1, 0), (HOST["pid"], -1)):
    if syscall("perf_event_open", counter, pid, cpu, -1, 0) >= 0: escaped("counts what others do")
""",
        control_needs_root=True,
    ),
    Attack(
        name="faults that it handles for the kernel",
        program="""
for flags in (0, 1, 0x80000, 0x80001):
    if syscall("userfaultfd", flags) >= 0: escaped("a userfaultfd")
""",
        control_needs="syscall('userfaultfd', 1) >= 0",
    ),
    Attack(
        name="watching the host's files",
        program="""
if syscall(262 if ARM else 300, 0, 0) >= 0: escaped("fanotify")
watch = libc.inotify_init1(0x800)
for path in (HOST["precious"], HOST["folder"], f"/proc/{HOST['pid']}/root{HOST['folder']}"):
    if watch >= 0 and libc.inotify_add_watch(watch, path.encode(), 0xFFF) >= 0: escaped("watches", path)
""",
    ),
    Attack(
        name="settings of the kernel",
        program="""
import glob
names = ["/proc/sys/kernel/" + name for name in ("core_pattern", "modprobe", "hostname", "randomize_va_space", "ns_last_pid")]
names += ["/proc/sys/vm/overcommit_memory", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/fs/binfmt_misc/register", "/proc/sysrq-trigger",
          "/proc/self/oom_score_adj", "/proc/1/oom_score_adj", "/sys/power/state", "/sys/kernel/uevent_helper", "/dev/kmsg", "/proc/self/loginuid"]
names += glob.glob("/sys/fs/cgroup/**/cgroup.procs", recursive=True)[:50] + glob.glob("/sys/fs/cgroup/**/release_agent", recursive=True)[:50]
for name in names:  # opened, never written to
    fd = attempt(os.open, name, os.O_WRONLY | os.O_NONBLOCK)
    if fd is not None: os.close(fd); escaped("may write", name)
""",
        control_needs_root=True,
    ),
    Attack(
        name="the interpreter and the system's files",
        program="""
import glob
files = ["/proc/self/exe", os.__file__, json.__file__, "/etc/passwd", "/etc/ld.so.cache", "/bin/sh", "/usr/bin/env", re.__file__]
files += [f"/proc/{pid}/exe" for pid in PIDS] + glob.glob("/lib*/*/libc.so*") + glob.glob("/palaestra/jail/*.py")
files += [getattr(module, "__file__", None) for module in list(sys.modules.values())]
for name in filter(None, files):  # opened, never written to; a program that runs refuses later than for lack of rights
    try: os.close(os.open(name, os.O_WRONLY)); escaped("may write", name)
    except OSError as error:
        if error.errno == errno.ETXTBSY: escaped("may write", name)
for folder in ("/", "/usr", "/usr/bin", "/etc", "/dev", "/lib", "/opt", "/srv", "/var", "/usr/local/lib", *sys.path):
    fd = attempt(os.open, folder, os.O_TMPFILE | os.O_WRONLY)  # has no name and is gone when closed
    if fd is not None and os.path.realpath(folder) not in places(): os.close(fd); escaped("may write in", folder)
""",
        control_needs_root=True,
    ),
    Attack(
        name="the host's files, without opening them",
        program="""
folder = HOST["precious"]
for root in ("", "/proc/1/root", f"/proc/{HOST['pid']}/root"):
    file, other = root + folder + "/keep.txt", root + folder + "/other.txt"
    for action in (lambda: os.chmod(file, 0o777), lambda: os.utime(file, (1, 1)), lambda: os.chown(file, os.getuid(), -1), lambda: os.truncate(file, 1),
                   lambda: os.link(file, folder + "/linked"), lambda: os.setxattr(file, "user.x", b"y"), lambda: os.rename(other, file + "2"),
                   lambda: os.mkdir(folder + "/made"), lambda: os.symlink("x", folder + "/link"), lambda: os.mkfifo(folder + "/fifo"),
                   lambda: os.unlink(other), lambda: os.chmod(folder, 0o777), lambda: open(file, "a").write("more"), lambda: os.rmdir(folder + "/made")):
        attempt(action)
attempt(os.truncate, HOST["shared_file"], 3)
""",
        control_setup="HOST['shared_file'] = ''",
    ),
    Attack(
        name="links that the host writes through",
        program="""
target = HOST["precious"] + "/keep.txt"
for name, source in (("absolute", target), ("relative", "../" * 30 + target[1:]), ("root", "/"), ("magic", "/proc/self/root"), ("folder", HOST["precious"])):
    attempt(os.symlink, source, name)
""",
        writes=(
            "absolute", "relative", "root{precious}/other.txt", "magic{precious}/other.txt", "folder/new.txt", "folder/sub/new.txt",
            "../../../../../../../../..{precious}/keep.txt", "{precious}/keep.txt",
        ),
    ),
    Attack(
        name="a link that changes while the host writes",
        program=FLIP
        + """
flip(HOST["precious"])
""",
        writes=("flip/keep.txt",) * 1000,
        once=True,
    ),
    Attack(
        name="the memory of other processes",
        program="""
def poke(pid, address):
    text = ctypes.create_string_buffer(b"poked")
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(text), 5)
    there = (ctypes.c_size_t * 2)(address, 5)
    syscall("process_vm_writev", pid, vector, 1, there, 1, 0)
    fd = attempt(os.open, f"/proc/{pid}/mem", os.O_RDWR)
    if fd is not None: attempt(os.pwrite, fd, b"poked", address)
poke(HOST["pid"], HOST["scratch"])
for pid in VICTIM["pids"]:
    if pid != os.getpid(): poke(pid, VICTIM["scratch"])
""",
        control_needs_root=True,
    ),
    Attack(
        name="typing on the host's terminal",
        program="""
import termios
for name in (0, 1, 2, "/dev/tty", "/dev/console", "/dev/tty0"):
    fd = name if isinstance(name, int) else attempt(os.open, name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    if fd is None or UNISOLATED and not isinstance(name, int): continue
    for request, argument in ((termios.TIOCSTI, b"x"), (0x541C, b"\\x03")):
        try: fcntl.ioctl(fd, request, argument); escaped("types on", name)
        except OSError: pass
""",
        control_setup="import pty\nours, theirs = pty.openpty()\nos.dup2(theirs, 0)",
        control_needs_root=True,
    ),
    Attack(
        name="system calls newer than the sandbox",
        program="""
for number in range(463, 500):
    if libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6) >= 0 or ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
        escaped("call", number, "is there")
""",
    ),
)  # fmt: skip

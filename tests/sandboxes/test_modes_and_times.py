"""chmod, utime and their kin where sessions share one user: what they change, and what they never touch.

Each scenario runs as an ordinary user, in a process of its own, because the root of a machine gets a user per session.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from palaestra.sandboxes import ExecStatus, Limits, Sandbox, open_sandbox, shutdown
from palaestra.sandboxes.jail import kernel, seccomp

AS_USER = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.getuid() == 0 else []
PRELUDE = """
import ctypes, errno, os, stat, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
HOME, TMP = os.environ["HOME"], os.environ["TMPDIR"]
NUMBERS = %r
def call(name, *arguments):
    "0, or the name of the error."
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *words)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]
def refusal(action, *arguments, **keywords):
    "None, or the name of the error."
    try: action(*arguments, **keywords)
    except OSError as error: return errno.errorcode[error.errno]
def mode(path, **keywords): return oct(stat.S_IMODE(os.stat(path, **keywords).st_mode))
""" % {name: numbers[kernel.COLUMN] for name, numbers in seccomp.MODES_AND_TIMES.items()}
KNOWN = {name for name, numbers in seccomp.MODES_AND_TIMES.items() if numbers[kernel.COLUMN] >= 0}


def opened(limits: Limits | None = None) -> Sandbox:
    sandbox = open_sandbox(isolation="landlock", limits=limits)
    assert run(sandbox, PRELUDE) == ""
    return sandbox


def run(sandbox: Sandbox, code: str) -> str:
    result = sandbox.exec(code)
    assert result.ok, result
    return result.stdout


def says(sandbox: Sandbox, code: str, expected: object) -> None:
    said = run(sandbox, code)
    assert said == f"{expected!r}\n", f"{code}: {said}"


class Precious:
    """A file of the host's that belongs to the same user, in a folder that it can be reached by."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="precious-")
        self.folder = self._folder.name
        self.path = f"{self.folder}/file"
        Path(self.path).write_text("precious", encoding="utf-8")
        os.chmod(self.path, 0o640)
        self._before = self._look()

    def _look(self) -> list[tuple[int, ...]]:
        found = [os.stat(path) for path in (self.path, self.folder)]
        return [(look.st_mode, look.st_ctime_ns, look.st_mtime_ns, look.st_nlink) for look in found]

    def check(self) -> None:
        """Fails if anybody changed it, be it to what it was: that changes `ctime`."""
        assert self._look() == self._before, "a session changed a file of the host's"


# --- scenarios


def every_call_does_what_it_says() -> None:
    modes = {
        "chmod": "b'd/f', 0o600",
        "fchmod": "fd, 0o610",
        "fchmodat": "-100, b'd/f', 0o620",
        "fchmodat2": "folder, b'f', 0o630, 0x100",
    }
    times = {  # with what the smaller unit of a call is worth, ns
        "utime": ("b'd/f', struct.pack('qq', 5, 6)", 0),
        "utimes": ("b'd/f', struct.pack('4q', 5, 7, 6, 8)", 1000),
        "futimesat": ("folder, b'f', struct.pack('4q', 5, 7, 6, 8)", 1000),
        "utimensat": ("fd, None, struct.pack('4q', 5, 7, 6, 8), 0", 1),
    }
    assert {*modes, *times} == set(seccomp.MODES_AND_TIMES)
    with opened() as sandbox:
        for place in ("HOME", "TMP"):
            run(sandbox, f"os.chdir({place})\nos.mkdir('d')\nopen('d/f', 'w').close()")
            run(sandbox, "folder, fd = os.open('d', os.O_RDONLY), os.open('d/f', os.O_RDWR)")
            for name in modes.keys() & KNOWN:
                says(sandbox, f"call({name!r}, {modes[name]}), mode('d/f')", (0, f"0o{modes[name].split('0o')[1][:3]}"))
            for name in times.keys() & KNOWN:
                arguments, unit_ns = times[name]
                says(sandbox, f"os.utime('d/f', (1, 1))\ncall({name!r}, {arguments})", 0)
                expected = (5_000_000_000 + 7 * unit_ns, 6_000_000_000 + 8 * unit_ns)
                says(sandbox, "(found := os.stat('d/f')).st_atime_ns, found.st_mtime_ns", expected)
        run(sandbox, "before = time.time()\nos.utime('d/f')")
        says(sandbox, "abs(os.stat('d/f').st_mtime - before) < 5", True)
        omit = "struct.pack('4q', 1, 1, 0, 0x3FFFFFFE)"  # UTIME_OMIT
        says(sandbox, f"now = os.stat('d/f').st_mtime_ns\ncall('utimensat', -100, b'd/f', {omit}, 0)", 0)
        says(sandbox, "os.stat('d/f').st_atime_ns, os.stat('d/f').st_mtime_ns == now", (1_000_000_001, True))


def programs_find_files_as_they_name_them() -> None:
    with opened() as sandbox:
        assert sandbox.run(["sh", "-c", "echo 'echo ran it' > prog; chmod +x prog; ./prog"]).stdout == "ran it\n"
        shell = """
set -e
mkdir -p a/b; echo 1 > a/b/f; ln -s b a/link; chmod 640 a/link/f
cd a; touch -d @5 ../a/b/f; chmod u=rwx,go= ../a/b/../b; chmod 711 "$HOME/a/b"; cd ..
tar cf t.tar a; mkdir x; tar xpf t.tar -C x; chmod 755 .
stat -c '%a %Y' a/b/f x/a/b/f; stat -c %a a/b x/a/b .
"""
        ran = sandbox.run(["sh", "-c", shell])
        assert ran.stdout.split() == ["640", "5"] * 2 + ["711"] * 2 + ["700"], ran
        code = "import pathlib, shutil, tempfile\npathlib.Path('n').touch(0o600)\nshutil.copystat('a/b/f', 'n')\n"
        code += "made = tempfile.TemporaryFile()\nos.fchmod(made.fileno(), 0o600)\nmode('n'), os.stat('n').st_mtime"
        says(sandbox, code, ("0o640", 5.0))
        run(sandbox, "os.symlink('n', 'm')\nos.chdir('a')")
        says(
            sandbox, "refusal(os.utime, '../m', (7, 7), follow_symlinks=False), os.lstat('../m').st_mtime", (None, 7.0)
        )
        says(sandbox, "os.stat('../n').st_mtime, refusal(os.chmod, '../m', 0o600), mode('../n')", (5.0, None, "0o600"))
        says(sandbox, "call('fchmodat2', -100, b'../m', 0o777, 0x100)", "ENOTSUP")


def errors_are_those_of_the_kernel() -> None:
    expected = {
        "call('fchmodat', -100, b'none', 0o600)": "ENOENT",
        "call('fchmodat', -100, b'', 0o600)": "ENOENT",
        "call('fchmodat', -100, b'f/g', 0o600)": "ENOTDIR",
        "call('fchmodat', -100, b'loop', 0o600)": "ELOOP",
        "call('fchmodat', -100, b'x' * 300, 0o600)": "ENAMETOOLONG",
        "call('fchmodat', -100, b'x/' * 3000, 0o600)": "ENAMETOOLONG",
        "call('fchmodat', -100, 8, 0o600)": "EFAULT",
        "call('fchmodat', -100, -1, 0o600)": "EFAULT",
        "call('fchmodat2', -100, b'f', 0o600, 0x4000)": "EINVAL",
        "call('fchmod', 77, 0o600)": "EBADF",
        "call('fchmod', -1, 0o600)": "EBADF",
        "call('fchmodat', 77, b'f', 0o600)": "EBADF",
        "call('utimensat', -100, b'f', 8, 0)": "EFAULT",
        "call('utimensat', -100, b'f', struct.pack('4q', 1, -1, 1, 1), 0)": "EINVAL",
        "call('fchmodat', -100, b'f', 0o600)": 0,
    }
    with opened() as sandbox:
        run(sandbox, "open('f', 'w').close()\nos.symlink('loop', 'loop')")
        for code, error in expected.items():
            says(sandbox, code, error)


def nothing_outside_is_changed() -> None:
    precious = Precious()
    path, folder = precious.path, precious.folder
    up = "../" * 12
    with opened() as sandbox:
        run(sandbox, f"os.symlink({path!r}, 'absolute')\nos.symlink({up + path[1:]!r}, 'relative')")
        run(sandbox, f"os.symlink({folder!r}, 'folder')\nos.symlink('/proc/self/root', 'root')\nopen('f', 'w').close()")
        run(
            sandbox,
            "system = os.open(os.__file__, os.O_RDONLY)\nabove = os.open(os.path.dirname(os.__file__), os.O_PATH)",
        )
        run(
            sandbox, f"foreign = os.open({path!r}, os.O_PATH)\nplace = os.open({folder!r}, os.O_PATH)\nr, w = os.pipe()"
        )
        names = [path, up + path[1:], "absolute", "relative", "folder", "folder/file", f"root{path}", folder]
        names += [f"/proc/self/root{path}", f"/proc/self/cwd/{up}{path[1:]}", "/proc/self/fd/0", "/proc/self/exe"]
        names += [
            "..",
            "../copies",
            f"../home/../../{up}{path[1:]}",
            "/dev/null",
            "/proc/self/status",
            "/proc/self/cwd/f",
        ]
        for name in names:
            says(sandbox, f"refusal(os.chmod, {name!r}, 0o777) in ('EPERM', 'ELOOP')", True)
            says(sandbox, f"refusal(os.utime, {name!r}, (1, 1)) in ('EPERM', 'ELOOP')", True)
        for fd in ("system", "above", "foreign", "place", "r", "w", "1", "3"):
            code = f"call('fchmod', {fd}, stat.S_IMODE(os.fstat({fd}).st_mode)), call('utimensat', {fd}, None, None, 0)"
            says(sandbox, code, ("EPERM", "EPERM"))
            says(sandbox, f"refusal(os.chmod, f'/proc/self/fd/{{{fd}}}', 0o777)", "EPERM")
            says(sandbox, f"call('fchmodat2', {fd}, b'', 0o777, 0x1000)", "EPERM")
        says(
            sandbox,
            "call('fchmodat', place, b'file', 0o777), call('fchmodat', above, b'os.py', 0o777)",
            ("EPERM", "EPERM"),
        )
        says(
            sandbox,
            f"refusal(os.link, {path!r}, 'linked') is None, refusal(os.link, os.__file__, 'l') is None",
            (False, False),
        )
        says(sandbox, "refusal(os.rename, os.__file__, 'moved') is None", False)
        run(sandbox, f"os.chdir({folder!r})")
        says(sandbox, "refusal(os.chmod, 'file', 0o777), refusal(os.chmod, '.', 0o777)", ("EPERM", "EPERM"))
        precious.check()
        says(sandbox, "os.chdir(HOME)\nmode('..'), mode('../copies'), mode('.')", ("0o511", "0o511", "0o700"))


def bits_that_matter_to_others_stay() -> None:
    with opened(Limits(workspace_mib=4)) as sandbox:
        run(sandbox, "open('f', 'w').close()\nos.mkdir('d')\nopen('d/f', 'w').write('1')")
        says(sandbox, "os.chmod('f', 0o7755)\nos.chmod('d', 0o7777)\nmode('f'), mode('d')", ("0o755", "0o777"))
        says(sandbox, "os.chmod('f', 0)\nmode('f'), refusal(open, 'f')", ("0o0", "EACCES"))
        says(sandbox, "os.chmod('d', 0)\nmode('d'), os.listdir('d')", ("0o500", ["f"]))
        renamed = """
open("one", "w").close(); os.link("one", "other"); fd = os.open("other", os.O_RDONLY)
os.unlink("other"); open("other (deleted)", "w").close()  # which is how the kernel calls the open one now
before = mode("one"), mode("other (deleted)")
call("fchmod", fd, 0o777), before == (mode("one"), mode("other (deleted)"))
"""
        says(sandbox, renamed, ("EPERM", True))
        says(sandbox, "os.chmod(HOME, 0o777)\nos.chmod(TMP, 0)\nmode(HOME), mode(TMP)", ("0o700", "0o700"))
        (copy,) = sandbox.fork(1)
        with copy:
            says(copy, "mode('f'), mode('d'), open('d/f').read()", ("0o0", "0o500", "1"))
        says(sandbox, "mode('f')", "0o0")
        hidden = "os.chmod('d', 0o700)\nopen('d/big', 'wb').write(bytes(8 << 20))\nos.chmod('d', 0)"
        assert sandbox.exec(hidden).status is ExecStatus.DISK_LIMIT


def races_are_lost() -> None:
    precious = Precious()
    with opened(Limits(timeout_s=20)) as sandbox:
        flip = f"""
os.mkdir("inside"); open("inside/file", "w").close(); os.symlink({precious.folder!r}, "link")
end = time.monotonic() + 3
if os.fork() == 0:
    while time.monotonic() < end: libc.renameat2(-100, b"inside", -100, b"link", 2)
    os._exit(0)
done = 0
while time.monotonic() < end:
    for name in ("inside/file", "link/file", "inside/../link/file"):
        done += refusal(os.chmod, name, 0o777) is None; refusal(os.utime, name, (1, 1))
    fd = os.open("inside", os.O_PATH)
    call("fchmodat", fd, b"file", 0o777)
    os.close(fd)
os.wait()
done > 0
"""
        says(sandbox, flip, True)
        precious.check()
        rewrite = f"""
inside, outside = HOME.encode() + b"/f\\0", {precious.path.encode()!r} + b"\\0"
open("f", "w").close()
path = ctypes.create_string_buffer(max(len(inside), len(outside)))
address, end = ctypes.addressof(path), time.monotonic() + 2
def swap():
    while time.monotonic() < end:
        for text in (inside, outside): path.raw = text.ljust(len(path), b"\\0")
threads = [threading.Thread(target=swap) for _ in range(2)]
for thread in threads: thread.start()
seen = set()
while time.monotonic() < end: seen.add(call("fchmodat", -100, address, 0o777))
for thread in threads: thread.join()
seen <= {{0, "EPERM", "ENOENT"}} and len(seen) > 1
"""
        says(sandbox, rewrite, True)
        precious.check()


def floods_reach_nobody_else() -> None:
    flood = """
open("f", "w").close()
for _ in range(12):
    if os.fork() == 0:
        while True: os.chmod("f", 0o600); os.utime("f")
"""
    with opened(Limits(processes=20)) as sandbox, opened() as neighbour:
        run(neighbour, "open('f', 'w').close()")
        run(sandbox, flood)
        for _ in range(10):
            began = time.monotonic()
            says(neighbour, "os.chmod('f', 0o600)\n1", 1)
            says(sandbox, "os.chmod('f', 0o600)\n2", 2)
            sandbox.write_file("g", b"1")
            assert time.monotonic() - began < 3
        kill = """
import signal
for _ in range(300):
    pid = os.fork()
    if pid == 0:
        while True: os.chmod("f", 0o600)
    time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""
        run(neighbour, kill)
        says(neighbour, "os.chmod('f', 0o640)\nmode('f')", "0o640")
        interrupted = """
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for _ in range(500): os.chmod("f", 0o600)
signal.setitimer(signal.ITIMER_REAL, 0)
3
"""
        says(neighbour, interrupted, 3)
        spin = neighbour.exec("while True: os.chmod('f', 0o600)", timeout_s=0.5)
        assert spin.status is ExecStatus.TIMEOUT
        assert neighbour.alive
        began = time.monotonic()
        sandbox.reset()
        says(sandbox, "6 * 7", 42)
        assert time.monotonic() - began < 5


def copies_change_their_own_files_alone() -> None:
    with opened() as sandbox:
        run(sandbox, "open('f', 'w').close()\nos.chmod('f', 0o600)")
        first, second = sandbox.fork(2)
        (third,) = first.fork(1)
        places = {each: run(each, "print(os.getcwd())").strip() for each in (sandbox, first, second, third)}
        change = "open('f', 'w').close()\nos.chmod('f', 0o64{0})\nmode('f')"
        for number, each in enumerate(places):
            says(each, change.format(number), f"0o64{number}")
            for other, place in places.items():
                if other is not each:
                    says(each, f"refusal(os.chmod, {place + '/f'!r}, 0o777)", "EPERM")
        child = """
read, write = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(0.1)  # its parent is gone by then
        if os.fork() == 0:
            os.write(write, f"{refusal(os.chmod, 'f', 0o605)} {refusal(os.chmod, OTHER, 0o777)}".encode())
        os.wait()
    os._exit(0)
os.wait()
os.read(read, 100), mode("f")
"""
        for each, other in ((sandbox, first), (first, second), (third, first)):
            says(each, f"OTHER = {places[other] + '/f'!r}\n{child}", (b"None EPERM", "0o605"))
        threads = "seen = []\nthread = threading.Thread(target=lambda: seen.append(refusal(os.chmod, 'f', 0o606)))\n"
        says(third, threads + "thread.start()\nthread.join()\nseen, mode('f')", ([None], "0o606"))
        sibling = """
flags, read = 0x8000 | 17, os.pipe()  # CLONE_PARENT: a child of the warden's that is nobody's copy
numbers = {"x86_64": 56, "aarch64": 220}
if libc.syscall(ctypes.c_long(numbers[os.uname().machine]), ctypes.c_long(flags), None, None, None, None) == 0:
    os.write(read[1], f"{refusal(os.chmod, 'f', 0o777)}".encode())
    os._exit(0)
os.read(read[0], 100)
"""
        says(second, sibling, b"EPERM")
        for each in (third, second, first):
            each.close()
        says(sandbox, "os.chmod('f', 0o611)\nmode('f')", "0o611")


def nobody_else_answers_the_kernel() -> None:
    listen = """
class Program(ctypes.Structure): _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))
def install(flags):
    code = struct.pack("HBBI", 6, 0, 0, 0x7FFF0000)
    number = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
    result = libc.syscall(ctypes.c_long(number), ctypes.c_long(1), ctypes.c_long(flags), ctypes.byref(Program(1, code)))
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]
install(8), install(8 | 32), install(0)
"""
    with opened() as sandbox:
        (copy,) = sandbox.fork(1)
        for each in (sandbox, copy):
            says(each, listen, ("EPERM", "EPERM", 0))
            says(each, "[fd for fd in range(3, 256) if refusal(os.fstat, fd) is None]", [3])
            says(each, "open('f', 'w').close()\nrefusal(os.chmod, 'f', 0o640), mode('f')", (None, "0o640"))


def where_the_kernel_does_not_ask_they_pretend() -> None:
    """Whoever has set up this process may have taken the one listener that its descendants can have."""
    made = seccomp.Filter(kernel.COLUMN)
    made.answer({"swapon": (167, 224)}, 0x7FC00000)
    function, arguments, _ = made.seal(1 << 3)
    kernel.set_no_new_privileges()
    assert function(*arguments) >= 0
    precious = Precious()
    with opened() as sandbox:
        run(sandbox, "open('f', 'w').close()\nbefore = mode('f')")
        says(
            sandbox,
            "refusal(os.chmod, 'f', 0o611), refusal(os.utime, 'f', (1, 1)), mode('f') == before",
            (None, None, True),
        )
        says(sandbox, f"refusal(os.chmod, {precious.path!r}, 0o777) is None", True)
        precious.check()


SCENARIOS: dict[str, Callable[[], None]] = {
    scenario.__name__: scenario
    for scenario in (
        every_call_does_what_it_says,
        programs_find_files_as_they_name_them,
        errors_are_those_of_the_kernel,
        nothing_outside_is_changed,
        bits_that_matter_to_others_stay,
        races_are_lost,
        floods_reach_nobody_else,
        copies_change_their_own_files_alone,
        nobody_else_answers_the_kernel,
        where_the_kernel_does_not_ask_they_pretend,
    )
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_as_an_ordinary_user(name: str) -> None:
    command = [*AS_USER, sys.executable, __file__, name]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr


if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
    shutdown()

"""What is left of a sandbox when something ends it, and what one session cannot do to the others' supervisor."""

import contextlib
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from palaestra.core.errors import ConfigError, SandboxError
from palaestra.rewards import grade_code
from palaestra.sandboxes import ExecStatus, Limits, Sandbox, open_sandbox, shutdown
from palaestra.sandboxes.jail.orders import Orders


@pytest.fixture(autouse=True)
def no_other_jail() -> None:
    """Tests of other modes leave jails of theirs, which would be taken for the one that a test here looks for."""
    shutdown()


def supervisor_pid() -> int:
    """The supervisor of this process's jail, a child of its launcher."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if b"jail/main.py" in (folder / "cmdline").read_bytes() and parent == os.getpid():
                    return int((folder / f"task/{folder.name}/children").read_text().split()[0])
    raise AssertionError("no jail")


def sessions_of_the_zygote() -> int:
    try:
        supervisor = supervisor_pid()
        zygote = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()[0]
        return len(Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split())
    except (AssertionError, IndexError, OSError):  # it is only starting
        return 0


def warden_pid() -> int:
    """The parent of the newest session, a child of the zygote, which is a child of the supervisor."""
    pid = supervisor_pid()
    for _ in range(2):
        pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1])
    return pid


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def sleep_in(sandbox: Sandbox, statuses: list[ExecStatus]) -> None:
    statuses.append(sandbox.exec("import time\ntime.sleep(60)").status)


def test_a_killed_supervisor_is_a_failure_of_infrastructure_for_all_who_wait() -> None:
    with open_sandbox() as sandbox:
        assert sandbox.exec("1").ok
    fds = count_fds()
    for _ in range(3):
        sandboxes = [open_sandbox() for _ in range(6)]
        idle = sandboxes.pop()
        assert all(sandbox.exec("1").ok for sandbox in (idle, *sandboxes))
        statuses: list[ExecStatus] = []
        threads = [threading.Thread(target=sleep_in, args=(sandbox, statuses)) for sandbox in sandboxes]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        os.kill(supervisor_pid(), signal.SIGKILL)
        for thread in threads:
            thread.join(20)
        assert statuses == [ExecStatus.SANDBOX_DIED] * 5
        assert not idle.alive
        result = idle.exec("1")
        assert (result.status, result.message != "") == (ExecStatus.SANDBOX_DIED, True)
        for sandbox in (idle, *sandboxes):
            sandbox.reset()
            assert sandbox.exec("6 * 7").stdout == "42\n"
            sandbox.close()
        assert count_fds() == fds


def test_a_supervisor_that_dies_while_it_grades_gives_no_verdict() -> None:
    errors: list[BaseException] = []

    def grade() -> None:
        try:
            grade_code("import time\ndef f(x): time.sleep(60)", [{"args": [1], "expected": 1}], entry_point="f")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=grade) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while sessions_of_the_zygote() < len(threads) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(supervisor_pid(), signal.SIGKILL)
    for thread in threads:
        thread.join(20)
    assert [type(error).__name__ for error in errors] == ["SandboxDied"] * 3
    assert grade_code("def f(x): return x", [{"args": [1], "expected": 1}], entry_point="f").passed


PROGRAM = """
import os, sys, threading, time
from palaestra.sandboxes import open_sandbox
first, second = open_sandbox(), open_sandbox()
first.exec("import subprocess\\nsubprocess.Popen(['setsid', 'sleep', '{mark}'.replace('-', '')])")
threading.Thread(target=lambda: second.exec("import time\\ntime.sleep(60)"), daemon=True).start()
time.sleep(0.3)
if os.fork() == 0:
    for fd in (0, 1, 2): os.close(fd)
    time.sleep(8)  # a child of the host that holds its other descriptors
    os._exit(0)
print(os.getpid(), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit()", "raise ValueError", "os._exit(0)"])
def test_nothing_outlives_the_host_process(end: str, tmp_path: Path) -> None:
    mark = f"7-{os.getpid()}-{len(end)}"
    mounts, environment = mount_points(), {**os.environ, "TMPDIR": str(tmp_path)}
    program = PROGRAM.replace("{mark}", mark).replace("{end}", end)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert ended.stdout, ended.stderr
    jail = f'"host_pid": {int(ended.stdout)},'
    deadline = time.monotonic() + 6
    while (left := _processes_with(mark.replace("-", ""), jail)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    others = ("pytest", "docker", "containerd", "palaestra-engine")  # what runs beside this test
    assert not [path for path in mount_points() if path not in mounts and not any(name in path for name in others)]
    assert not list(tmp_path.iterdir())


def mount_points() -> list[str]:
    return [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]


def _processes_with(*texts: str) -> list[bytes]:
    """The commands of all processes that have one of the texts in it."""
    found: list[bytes] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes()
                if any(text.encode() in command for text in texts):
                    found.append(command)
    return found


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda sandbox: sandbox.read_file("\ud800"), SandboxError),
        (lambda sandbox: sandbox.write_file("a\ud800/b", b""), SandboxError),
        (lambda sandbox: sandbox.read_file("a" * 100_000), SandboxError),
        (lambda sandbox: sandbox.read_file("a" * (2 << 20)), SandboxError),
        (lambda sandbox: sandbox.run(["echo", "a" * (2 << 20)]), SandboxError),
        (lambda sandbox: sandbox.run([]), ConfigError),
        (lambda sandbox: sandbox.run("ls"), ConfigError),
        (lambda sandbox: sandbox.run([1]), ConfigError),
        (lambda sandbox: sandbox.exec("1", timeout_s=float("nan")), ConfigError),
        (lambda sandbox: sandbox.exec("1", timeout_s=-1), ConfigError),
        (lambda sandbox: sandbox.exec("1", timeout_s="1"), ConfigError),
    ],
)
def test_a_request_that_cannot_be_met_harms_nobody_else(
    call: Callable[[Sandbox], object], error: type[Exception]
) -> None:
    with open_sandbox() as sandbox, open_sandbox() as neighbour:
        assert neighbour.exec("x = 1").ok
        with pytest.raises(error) as raised:
            call(sandbox)
        assert str(raised.value).isprintable()
        assert neighbour.exec("x").stdout == "1\n"
        assert sandbox.exec("6 * 7").stdout == "42\n"


def test_a_command_of_100_kilobytes_runs() -> None:
    with open_sandbox() as sandbox:
        assert len(sandbox.run(["echo", "a" * 100_000]).stdout) > 60_000


def test_running_out_of_descriptors_costs_only_the_session_that_is_one_too_many() -> None:
    program = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from palaestra.sandboxes import open_sandbox
first = open_sandbox()
first.exec("x = 1")
sandboxes = [open_sandbox() for _ in range(40)]
results = [sandbox.exec("1") for sandbox in sandboxes]
print(sorted({str(result.status) for result in results}), {result.message for result in results if not result.ok})
for sandbox in sandboxes: sandbox.close()
print(first.exec("x").stdout.strip(), open_sandbox().exec("2").stdout.strip())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "['ok', 'sandbox_died'] {'cannot start a session: Too many open files'}\n1 2\n", done.stderr


def test_heavy_neighbours_leave_each_other_alone() -> None:
    heavy = [
        ("x = bytearray(1 << 29)", Limits(memory_mib=128), ExecStatus.MEMORY_LIMIT),
        ("while True: pass", Limits(timeout_s=1.0), ExecStatus.TIMEOUT),
        ("while True: print('x' * 1000)", Limits(output_hard_mib=1), ExecStatus.OUTPUT_LIMIT),
        ("open('f', 'wb').write(bytes(4 << 20))", Limits(workspace_mib=1), ExecStatus.DISK_LIMIT),
        (
            "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
            Limits(timeout_s=1.0, processes=16),
            None,
        ),
        ("import os\nos.kill(os.getpid(), 9)\nos.abort()", Limits(), ExecStatus.KILLED),
    ]
    outcomes: list[tuple[ExecStatus | None, ExecStatus, str]] = []

    def work(code: str, limits: Limits, wanted: ExecStatus | None) -> None:
        with open_sandbox(limits=limits) as sandbox:
            result = sandbox.exec(code)
            outcomes.append((wanted, result.status, result.message))

    with open_sandbox() as neighbour:
        assert neighbour.exec("x = 1").ok
        threads = [threading.Thread(target=work, args=arguments) for arguments in heavy]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert neighbour.exec("x").stdout == "1\n"
    assert len(outcomes) == len(heavy)
    for wanted, status, message in outcomes:
        assert status in ((wanted,) if wanted else (ExecStatus.TIMEOUT, ExecStatus.KILLED))
        assert message
        assert message.isprintable()


def test_orders_wait_for_a_zygote_that_is_slow() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    poll = select.epoll()
    with ours, theirs, poll, open(os.devnull, "rb") as file:
        orders = Orders(ours, poll)
        for number in range(2000):  # more than a socket holds; a blocking send would never return
            orders.send(b"K %d " % number, [os.dup(file.fileno())] if number == 1500 else ())
        received: list[bytes] = []
        fds: list[int] = []
        while len(received) < 2000:
            packet, more, _, _ = socket.recv_fds(theirs, 100, 4)
            received.append(packet)
            fds += more
            if any(events & select.EPOLLOUT for _, events in poll.poll(0)):
                orders.flush()
        assert received == [b"K %d " % number for number in range(2000)]
        assert [os.fstat(fd).st_rdev for fd in fds] == [os.stat(os.devnull).st_rdev]
        for fd in fds:
            os.close(fd)


def test_the_root_of_a_rootless_container_needs_nothing_more() -> None:
    """In a user namespace of its own, user 0 cannot become other users."""
    program = (
        "from palaestra.sandboxes import open_sandbox as o\nimport os\nprint(os.getuid(), o().exec('6 * 7').stdout)"
    )
    ran = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", program],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ran.stdout == "0 42\n\n", ran.stderr


def test_an_interrupt_that_comes_late_does_not_hit_the_next_call() -> None:
    with open_sandbox() as sandbox:
        assert sandbox.exec("import time").ok
        warden = warden_pid()  # it is what interrupts its session
        os.kill(warden, signal.SIGSTOP)
        threading.Timer(0.6, os.kill, (warden, signal.SIGCONT)).start()
        assert sandbox.exec("time.sleep(0.3)", timeout_s=0.1).status is ExecStatus.TIMEOUT
        assert sandbox.exec("time.sleep(0.6)\n5").stdout == "5\n"


def test_shutdown_leaves_no_descriptors() -> None:
    shutdown()
    fds = count_fds()
    with open_sandbox() as sandbox:
        sandbox.write_file("a", b"1")
    shutdown()
    assert count_fds() == fds


def test_a_session_ends_when_its_handle_is_garbage() -> None:
    mark = f"8642{os.getpid()}"
    for close in (False, True):
        sandbox = open_sandbox()
        (copy,) = sandbox.fork(1)
        for opened in (sandbox, copy):
            assert opened.exec(f"import subprocess\nsubprocess.Popen(['sleep', '{mark}'])").ok
        # A process has its new command line only a moment after Popen has returned.
        assert _wait_for_processes(2, mark) == 2
        if close:
            sandbox.close()
        del sandbox, copy, opened
        gc.collect()
        assert _wait_for_processes(0, mark) == 0


def _wait_for_processes(count: int, mark: str) -> int:
    """The number of processes with the mark, as soon as it is `count`, else after 10 s."""
    deadline = time.monotonic() + 10
    while (seen := len(_processes_with(mark))) != count and time.monotonic() < deadline:
        time.sleep(0.05)
    return seen

"""Control groups of sessions: what they count, whose processes are in them, and that none is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from palaestra.sandboxes import ExecStatus, Limits, Sandbox, control_groups, open_sandbox, shutdown
from palaestra.sandboxes.control_groups import ControlGroups, closest_delegated
from palaestra.sandboxes.jail import processes
from palaestra.sandboxes.jail.control_groups import ControlGroups as Groups

try:
    control_groups.version()
    OBSTACLE = ""
except OSError as error:
    OBSTACLE = str(error)
counted = pytest.mark.skipif(bool(OBSTACLE), reason=f"sessions cannot have control groups here: {OBSTACLE}")
LIMITS = {"memory_mib": 16, "workspace_mib": 8, "tmp_mib": 8}


@pytest.fixture(autouse=True)
def no_other_jail() -> Iterator[None]:
    shutdown()
    yield
    shutdown()


def homes() -> set[Path]:
    """All folders in which jails of this machine have groups."""
    return {path for path in Path("/sys/fs/cgroup").rglob("palaestra-jail-*") if path.is_dir()}


def procs(home: Path) -> list[str]:
    """The processes of a jail; none when it is gone."""
    try:
        return (home / "jail/cgroup.procs").read_text().split()
    except OSError:
        return []


def own_home() -> Path:
    """The folder of this process's jail, in one hierarchy."""
    mine = {str(pid) for pid in processes.trees_of([os.getpid()], processes.process_table())}
    for home in homes():
        if mine & set(procs(home)):
            return home
    raise AssertionError("no jail")


def groups_of_sessions(home: Path) -> dict[str, list[str]]:
    """Which processes are in which session's group."""
    groups = {path.parent.name: path.read_text().split() for path in home.glob("*/cgroup.procs")}
    return {name: pids for name, pids in groups.items() if name != "jail"}


def sizes(home: Path) -> list[int]:
    return sorted(map(len, groups_of_sessions(home).values()))


def work_until(sandbox: Sandbox, condition: Callable[[], object]) -> None:
    """Keeps a session busy until something holds, because only busy sessions are looked at."""
    for _ in range(30):
        assert sandbox.exec("time.sleep(0.3)").ok
        if condition():
            return
    raise AssertionError("it never held")


def eventually(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


class Child:
    """A process of this one, which works when it is told to."""

    def __init__(self, program: str) -> None:
        command = [
            sys.executable,
            "-c",
            f"import os, sys\nsys.stdin.readline()\n{program}\nprint(flush=True)\nsys.stdin.readline()",
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def work(self) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def end(self) -> int:
        self._process.kill()
        self._process.communicate()
        return self._process.returncode


@pytest.fixture
def groups() -> Iterator[Groups]:
    """Groups for children of this process, as a supervisor has them for its sessions."""
    pause = subprocess.Popen(["sleep", "60"])
    held = ControlGroups(pause.pid)
    folders = {kind: os.open(path, os.O_RDONLY | os.O_DIRECTORY) for kind, path in held.folders.items()}
    yield Groups(folders)
    pause.kill()
    pause.wait()
    held.remove()
    assert not any(os.path.exists(path) for path in held.folders.values())
    for folder in folders.values():
        os.close(folder)


def adopt(groups: Groups, number: int, child: Child, limits: dict[str, Any] = LIMITS, cpu_s: float = 0.0) -> None:
    groups.adopt(number, limits, [child.pid], [], cpu_s)
    assert eventually(lambda: child.pid in groups.members(number))


@counted
def test_a_group_counts_the_kernels_own_memory(groups: Groups) -> None:
    child = Child("pipes = [os.pipe() for _ in range(100)]\nfor _, end in pipes: os.write(end, bytes(1 << 16))")
    try:
        assert groups.kernel_mib(5) == 0
        adopt(groups, 5, child)
        before_mib = groups.kernel_mib(5)
        assert child.work() == "\n"
        assert eventually(lambda: 6 <= groups.kernel_mib(5) - before_mib < 8)
    finally:
        child.end()


@counted
def test_a_group_counts_the_time_of_processes_that_nobody_waits_for(groups: Groups) -> None:
    child = Child(
        "import signal, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nours, theirs = os.pipe()\n"
        "for _ in range(10):\n"
        "    if os.fork() == 0:\n        while time.process_time() < 0.05: pass\n"
        "        os.write(theirs, b'x'); os._exit(0)\n"
        "    os.read(ours, 1)"
    )
    try:
        adopt(groups, 5, child, cpu_s=2.0)
        assert child.work() == "\n"
        assert 2.5 <= groups.cpu_s(5) < 10
    finally:
        child.end()


@counted
def test_the_kernel_ends_what_takes_more_than_everything_at_once(groups: Groups) -> None:
    modest, greedy = Child("x = b'x' * (20 << 20)"), Child("x = b'x' * (1 << 30)")
    try:
        adopt(groups, 5, modest)
        adopt(groups, 6, greedy)
        assert modest.work() == "\n"
        assert greedy.work() == ""
        assert greedy.end() == -signal.SIGKILL
        assert groups.ran_out(6)
        assert not groups.ran_out(5)
    finally:
        modest.end()
        greedy.end()


@counted
def test_strays_stay_where_they_are_and_others_come_along(groups: Groups) -> None:
    mine, of_another, of_nobody = Child(""), Child(""), Child("")
    try:
        adopt(groups, 5, of_another)
        groups.adopt(6, LIMITS, [mine.pid], [of_another.pid, of_nobody.pid], 0.0)
        assert eventually(lambda: groups.members(6) == {mine.pid, of_nobody.pid})
        assert groups.members(5) == {of_another.pid}
    finally:
        for child in (mine, of_another, of_nobody):
            child.end()


@counted
def test_a_group_goes_when_its_last_process_has(groups: Groups) -> None:
    child = Child("")
    adopt(groups, 5, child)
    groups.release(5)
    groups.sweep()
    assert groups.members(5) == {child.pid}
    child.end()
    groups.sweep()
    assert groups.members(5) == set()
    assert groups.cpu_s(5) == groups.kernel_mib(5) == 0


@counted
@pytest.mark.parametrize("isolation", ["namespaces", "landlock"])
def test_sessions_that_work_for_long_have_groups_and_leave_none(isolation: str) -> None:
    with open_sandbox(isolation=isolation) as sandbox:
        assert sandbox.exec("import os, time").ok
        home = own_home()
        assert sandbox.exec("child = os.fork()\nif not child: time.sleep(100)").ok
        work_until(sandbox, lambda: sizes(home) == [2])
        copy = sandbox.fork(1)[0]
        work_until(copy, lambda: sizes(home) == [1, 2])
        copy.close()
    old = set(groups_of_sessions(home))
    with open_sandbox(isolation=isolation) as sandbox:
        assert sandbox.exec("1").ok  # a supervisor without sessions sleeps
        assert eventually(lambda: not old & set(groups_of_sessions(home)))
    shutdown()
    assert not home.exists()


@counted
def test_short_sessions_have_none() -> None:
    with open_sandbox() as sandbox:
        quick = [sandbox.exec("1").seconds < 0.04 for _ in range(20)]
        if all(quick):
            assert groups_of_sessions(own_home()) == {}


@counted
def test_a_session_that_the_kernel_ended_for_its_memory_says_so() -> None:
    take = "import os, time\ntime.sleep(0.3)\nx = b'x' * (190 << 20)"
    with open_sandbox(limits=Limits(memory_mib=100, workspace_mib=1, tmp_mib=1)) as sandbox:
        result = sandbox.exec(take)
    assert result.status is ExecStatus.MEMORY_LIMIT, result


@counted
def test_what_a_killed_host_leaves_goes_with_the_next_jail() -> None:
    program = (
        "import time\nfrom palaestra.sandboxes import open_sandbox\nsandbox = open_sandbox()\n"
        "sandbox.exec('import time; time.sleep(0.3)')\nprint(flush=True)\ntime.sleep(60)"
    )
    before = homes()
    host = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert host.stdout is not None
    with host.stdout:
        assert host.stdout.readline() == b"\n"
        mine = processes.trees_of([host.pid], processes.process_table())
        left = {home for home in homes() - before if set(map(int, procs(home))) & set(mine)}
        assert left
        host.kill()
        host.wait()
    assert eventually(lambda: not any(map(procs, left)))
    with open_sandbox() as sandbox:
        assert sandbox.exec("1").ok
    assert not any(home.exists() for home in left)


def test_the_closest_group_that_counts_memory_is_taken(tmp_path: Path) -> None:
    own = tmp_path / "user/shell/tab"
    own.mkdir(parents=True)
    for folder, enabled in (
        (tmp_path, "memory"),
        (tmp_path / "user", "cpu memory pids"),
        (own.parent, "pids"),
        (own, ""),
    ):
        (folder / "cgroup.subtree_control").write_text(f"{enabled}\n")
        (folder / "cgroup.procs").touch()
    assert closest_delegated(tmp_path, own) == tmp_path / "user"
    (tmp_path / "user/cgroup.procs").unlink()  # as if it were not to be written to
    assert closest_delegated(tmp_path, own) == tmp_path
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    assert closest_delegated(tmp_path, own) is None

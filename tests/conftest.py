"""What every test shares: one thread per library, no deadlines under load, no process left behind."""

import contextlib
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch or numpy is first imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # run in the background; children would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("palaestra", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("palaestra")

sys.path.append(str(Path(__file__).parent / "servers"))
GRACE_S = 10.0
_SESSION_MARK = "PALAESTRA_TEST_SESSION"
_MAY_STAY = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")  # end with the interpreter


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left_behind() -> Iterator[None]:
    """Fails the run when its tests leave running processes: children, or orphans that carry this session's mark."""
    if not Path("/proc/self/environ").exists():
        yield
        return
    mark = f"{_SESSION_MARK}={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    os.environ[name] = value
    yield
    sandboxes = sys.modules.get("palaestra.sandboxes")
    if sandboxes is not None:
        sandboxes.shutdown()  # closes the jails that all tests share; atexit would do it later
    deadline = time.monotonic() + GRACE_S
    while (left := _left_behind(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, "processes left behind:\n" + "\n".join(left)


@pytest.fixture
def chat_server() -> Iterator[Any]:
    """A `ChatServer` on a free port: an OpenAI-compatible server whose answers and faults a test decides."""
    from chat_server import ChatServer

    with ChatServer() as server:
        yield server


def _left_behind(mark: str) -> list[str]:
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    marked: set[int] = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            pid = int(folder.name)
            parents[pid] = int(parent)
            commands[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                marked.add(pid)
    this = os.getpid()
    return [
        f"{pid}: {command[:200]}"
        for pid, command in commands.items()
        if (pid in marked or _descends(pid, this, parents))
        and pid != this
        and not any(name in command for name in _MAY_STAY)
    ]


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == ancestor:
            return True
    return False

"""What the Docker backend does without an engine: its errors, its stream, and what it needs of a system."""

import itertools
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palaestra.core.errors import SandboxUnavailable
from palaestra.sandboxes import container, open_sandbox
from palaestra.sandboxes.container import ContainerLink, StreamSplitter

PACKETS = st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.binary(max_size=40)), max_size=8)


@given(PACKETS, st.lists(st.integers(0, 400), max_size=6))
def test_a_stream_is_parted_however_it_is_cut(packets: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(struct.pack("!BxxxI", kind, len(data)) + data for kind, data in packets)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    splitter = StreamSplitter()
    got = b"".join(splitter.feed(memoryview(stream)[start:end]) for start, end in itertools.pairwise(places))
    assert got == b"".join(data for kind, data in packets if kind == 1)
    assert splitter.stderr == b"".join(data for kind, data in packets if kind == 2)


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_a_stream_or_an_error(data: bytes) -> None:
    splitter = StreamSplitter()
    if data[0] > 3 and len(data) >= 8:
        with pytest.raises(ConnectionError):
            splitter.feed(memoryview(data))
    elif len(data) < 8:
        assert splitter.feed(memoryview(data)) == b""


def test_only_the_end_of_stderr_is_kept() -> None:
    splitter = StreamSplitter()
    text = b"\n".join(b"line %d \x1b[1m" % i for i in range(10_000))
    splitter.feed(memoryview(struct.pack("!BxxxI", 2, len(text)) + text))
    assert len(splitter.stderr) < 10_000
    assert splitter.last_line() == "line 9999  [1m"


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(SandboxUnavailable, match=r"^sandbox='docker' needs .*: pip install 'palaestra\[docker\]'$"):
        open_sandbox("docker")


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("unix:///nowhere/docker.sock", r"no Docker engine at .*docker\.sock: install or start one"),
        ("tcp://127.0.0.1:9", r"no Docker engine answers at tcp://127\.0\.0\.1:9 \(Connection refused\): start it"),
        ("nonsense", r"no Docker engine answers at nonsense \(.*port is required.*\)"),
        ("ssh://nobody@127.0.0.1", r"DOCKER_HOST=ssh://nobody@127\.0\.0\.1: forward that engine's socket"),
    ],
)
def test_a_missing_engine_is_one_line(monkeypatch: pytest.MonkeyPatch, host: str, said: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(SandboxUnavailable, match=said) as raised:
        open_sandbox("docker")
    assert str(raised.value).isprintable()


def test_a_socket_that_one_may_not_use_names_the_group(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        path = f"/tmp/palaestra-{os.getpid()}.sock"
        server.bind(path)
        server.listen()
        try:
            os.chmod(path, 0o600)
            monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
            said = _open_as_nobody() if os.geteuid() == 0 else _open()
        finally:
            os.unlink(path)
    assert said.startswith("no permission to use the Docker engine at unix:///tmp/palaestra-"), said
    assert "group (sudo usermod -aG docker $USER)" in said


def _open() -> str:
    with pytest.raises(SandboxUnavailable) as raised:
        open_sandbox("docker")
    return str(raised.value)


def _open_as_nobody() -> str:
    """What `_open` says in a child that has given up root."""
    import docker  # noqa: F401 - while its files can be read

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.write(write, _open().encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with open(read, "rb") as file:
        return file.read().decode()


def test_an_engine_that_says_nothing_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from palaestra.sandboxes import docker as backend

    monkeypatch.setattr(backend, "_ENGINE_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(SandboxUnavailable, match="no Docker engine answers at"):
            open_sandbox("docker")


class DeafEngine:
    """An engine whose container says something, ends, and leaves nobody who reads what is sent to it."""

    errors = (OSError,)

    def __init__(self) -> None:
        self.ours, self._theirs = socket.socketpair()
        self.api = self
        self._theirs.sendall(struct.pack("!BxxxI", 2, 12) + b"first\nsecond")

    def attach_socket(self, *_: object) -> socket.socket:
        return self.ours

    def inspect_container(self, _: str) -> dict[str, object]:
        self._theirs.shutdown(socket.SHUT_WR)
        return {"State": {"Running": False, "Paused": False, "Status": "exited"}}

    def start(self, _: str) -> None:
        """Does nothing, as do the next ones."""

    set_timeout = remove = start

    def close(self) -> None:
        self._theirs.close()


def test_a_container_that_ends_before_it_reads_is_asked_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_LOOK_EVERY_S", 0.1)
    engine: Any = DeafEngine()
    with pytest.raises(SandboxUnavailable, match=r"^the jail does not start: the container ended: second$"):
        ContainerLink(engine, "container", bytes(10_000_000))


ELSEWHERE = """
import os, platform, sys
import docker, gymnasium  # their own ways to do without are theirs
for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "_posixsubprocess"):
    sys.modules[name] = None
for name in ("fork", "register_at_fork", "pidfd_open", "waitstatus_to_exitcode", "getuid", "geteuid", "killpg"):
    delattr(os, name)
platform.system = lambda: "Windows"
import palaestra
from palaestra.sandboxes import open_sandbox, shutdown
from palaestra.rewards import grade_code
from palaestra.core.errors import SandboxUnavailable
for backend in ("local", "docker"):
    try:
        open_sandbox(backend)
    except SandboxUnavailable as error:
        print(error)
shutdown()
"""


def test_nothing_but_the_local_backend_needs_a_unix() -> None:
    environment = {**os.environ, "DOCKER_HOST": "tcp://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ELSEWHERE],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    local, docker = done.stdout.splitlines() or [done.stderr] * 2
    assert local == "sandbox='local' needs Linux, not Windows: use sandbox='docker' with Docker Desktop"
    assert docker.startswith("no Docker engine answers at tcp://127.0.0.1:9"), done.stderr


def test_the_patience_is_finite() -> None:
    assert 0 < container._PATIENCE_S <= 60
    assert 0 < container._ANSWER_TIMEOUT_S <= 60

"""The host's side of a jail: starts its process, sends requests, and hands answers to whoever waits for them.

Thread-safe and without a thread of its own: of the threads that wait for answers, one reads the socket for all (the
*leader*); when its own answer is in, it passes the office on. A single caller so pays for no thread switch.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.errors import SandboxDied, SandboxError, SandboxUnavailable
from .base import Limits
from .jail import wire

_COVERED = ("/tmp/", "/workspace/")
"""What each session covers with folders of its own."""
_START_TIMEOUT_S = 30.0
_MAIN = Path(__file__).resolve().parent / "jail" / "main.py"


class Reply:
    """An answer that may still be on its way."""

    __slots__ = ("_client", "body", "done", "head", "wake")

    def __init__(self, client: JailClient) -> None:
        self._client = client
        self.done = False
        self.head: dict[str, Any] = {}
        self.body = b""
        self.wake: threading.Lock | None = None
        """Held by a thread that waits while another one reads."""

    def wait(self) -> Reply:
        """Gives this reply once it is there; never raises: a jail that dies answers `sandbox_died`."""
        if not self.done:
            self._client.read_until(self)
        return self


class JailClient:
    """One jail of this process.

    Args:
        isolation: `"namespaces"` or `"none"`.

    Raises:
        SandboxUnavailable: The jail cannot be built here; the message says why.
    """

    def __init__(self, isolation: str) -> None:
        self.pid = os.getpid()
        self.isolation = isolation
        self.died: str | None = None
        """Why the jail is gone; None while it lives."""
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._limits_lock = threading.Lock()
        self._has_leader = False
        self._waiting: dict[int, Reply] = {}
        self._ids = itertools.count(1)
        self._next_session = 0
        self._limits: dict[Limits, int] = {}
        self._frames = wire.FrameReader()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._directory = tempfile.TemporaryDirectory(prefix="palaestra-") if isolation == "none" else None
            self._process = _start(theirs, self._directory)
        self._await_hello()
        self._try_session()

    # --- requests

    def new_session(self) -> int:
        """Gives a number that no session of this jail had; the session itself is made by its first request."""
        with self._lock:
            self._next_session += 1
            return self._next_session

    def limits_number(self, limits: Limits) -> int:
        """Gives the number under which the jail knows these limits; tells it new ones."""
        number = self._limits.get(limits)
        if number is not None:
            return number
        with self._limits_lock:
            number = self._limits.get(limits, len(self._limits) + 1)
            fields = {**asdict(limits), "count_processes": _processes_count_per_namespace()}
            self._send(wire.pack({"op": "limits", "s": number}, json.dumps(fields).encode()))
            self._limits[limits] = number
        return number

    def submit(self, head: dict[str, Any], body: bytes = b"") -> Reply:
        """Sends a request and gives its reply at once; `wait()` on it.

        Raises:
            SandboxError: The request is too large to send.
        """
        reply = Reply(self)
        number = head["id"] = next(self._ids)
        try:
            data = wire.pack(head, body)
        except wire.WireError as error:
            raise SandboxError(f"the request cannot be sent: {error}") from error
        with self._lock:
            if self.died is not None:
                return self._fail(reply)
            self._waiting[number] = reply
        self._send(data)
        return reply

    def tell(self, head: dict[str, Any]) -> None:
        """Sends a request that has no answer."""
        if self.died is None:
            self._send(wire.pack(head))

    def _send(self, data: bytes) -> None:
        try:
            with self._send_lock:
                self._socket.sendall(data)
        except OSError as error:
            self._on_death(f"the jail's socket is closed ({error.strerror})")

    # --- answers

    def read_until(self, reply: Reply) -> None:
        """Waits for a reply, reading for the other threads too when nobody else does."""
        while True:
            with self._lock:
                if reply.done:
                    return
                wake = None
                if self._has_leader:
                    wake = reply.wake = threading.Lock()
                    wake.acquire()
                self._has_leader = True
            if wake is not None:
                wake.acquire()  # released when the reply is there, or when this thread is to lead
                continue
            try:
                while not reply.done:
                    self._read()
            finally:
                self._resign()
            return

    def _resign(self) -> None:
        with self._lock:
            self._has_leader = False
            for other in self._waiting.values():
                if other.wake is not None and not other.done:
                    wake, other.wake = other.wake, None
                    wake.release()
                    return

    def _read(self) -> None:
        try:
            data = self._socket.recv(1 << 18)
            frames = self._frames.feed(data)
        except (OSError, wire.WireError) as error:
            self._on_death(str(error))
            return
        if not data:
            self._on_death("the jail's supervisor ended")
            return
        for head, body in frames:
            if head["id"] == 0:
                self._on_death(f"the jail failed: {head.get('fatal', 'unknown reason')}")
                return
            with self._lock:
                reply = self._waiting.pop(head["id"], None)
                if reply is not None:
                    self._deliver(reply, head, body)

    def _deliver(self, reply: Reply, head: dict[str, Any], body: bytes) -> None:
        reply.head, reply.body, reply.done = head, body, True
        if reply.wake is not None:
            reply.wake.release()
            reply.wake = None

    def _fail(self, reply: Reply) -> Reply:
        head = {"status": "sandbox_died", "exit": None, "seconds": 0.0, "message": self.died, "alive": False, "o": 0}
        self._deliver(reply, head, b"")
        return reply

    def _on_death(self, reason: str) -> None:
        with self._lock:
            if self.died is None:
                self.died = reason.strip().splitlines()[-1] if reason.strip() else "the jail died"
            for reply in self._waiting.values():
                self._fail(reply)
            self._waiting.clear()

    # --- start and end

    def _await_hello(self) -> None:
        self._socket.settimeout(_START_TIMEOUT_S)
        try:
            frames: list[wire.Frame] = []
            while not frames:
                data = self._socket.recv(1 << 16)
                if not data:
                    raise SandboxDied("the jail ended before it was ready")
                frames = self._frames.feed(data)
        except (OSError, wire.WireError, SandboxDied) as error:
            self.close()
            raise SandboxUnavailable(f"isolation={self.isolation!r} does not start here: {error}") from error
        self._socket.settimeout(None)
        head = frames[0][0]
        if "error" in head:
            self.close()
            raise SandboxUnavailable(_advice(str(head["error"])))

    def _try_session(self) -> None:
        """Makes one session, because some machines refuse nested namespaces only."""
        limits = self.limits_number(Limits())
        head = self.submit({"op": "ready", "s": self.new_session(), "l": limits}).wait().head
        if head["status"] != "ok":
            self.close()
            raise SandboxUnavailable(_advice(str(head["message"])))

    def close(self) -> None:
        """Ends the jail and everything in it; may be called twice."""
        self._on_death("the jail was shut down")
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # also wakes a thread that reads
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._directory is not None:
            self._directory.cleanup()
        with self._send_lock:
            if not self._has_leader:
                self._socket.close()

    def forget(self) -> None:
        """In a forked child: lets go of the parent's jail without ending it."""
        self.died = "the jail belongs to the parent process"
        self._socket.close()
        self._process.returncode = 0  # it is not this process's child


def _start(sock: socket.socket, directory: tempfile.TemporaryDirectory[str] | None) -> subprocess.Popen[bytes]:
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    if directory is None and python.startswith(_COVERED):
        raise SandboxUnavailable(
            f"isolation='namespaces' hides {python}: install Python outside of /tmp and /workspace"
        )
    config = {
        "directory": None if directory is None else directory.name,
        "host_pid": os.getpid(),
        "prefixes": [] if _below_usr(sys.base_prefix) else [os.path.realpath(sys.base_prefix)],
        "hidden": hidden_folders(),
        "packages": _site_packages(),
        "environment": {
            "PATH": f"{os.path.dirname(python)}:/usr/local/bin:/usr/bin:/bin",
            "HOME": "/workspace",
            "TMPDIR": "/tmp",
            "USER": "agent",
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
    }
    return subprocess.Popen(
        [python, "-I", "-S", "-B", str(_MAIN), str(sock.fileno()), json.dumps(config)],
        pass_fds=[sock.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
        start_new_session=True,
    )


def hidden_folders() -> list[str]:
    """What sessions must not see although the interpreter's folders may hold it: our tasks with their answers, where
    this package is installed beside the interpreter, and the programs that container images keep in /usr/src.
    """
    return ["/usr/src", str(_MAIN.parents[2])]


def _processes_count_per_namespace() -> bool:
    """Whether RLIMIT_NPROC counts per user namespace; before Linux 5.14 all sessions would share one count."""
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (5, 14)


def _below_usr(prefix: str) -> bool:
    return Path(os.path.realpath(prefix)).is_relative_to("/usr")


def _site_packages() -> list[str]:
    """Third-party packages of the base interpreter itself; those of a virtual environment stay outside."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    prefix = os.path.realpath(sys.base_prefix)
    candidates = [f"{prefix}/lib/{version}/site-packages", "/usr/lib/python3/dist-packages"]
    return [path for path in candidates if path.startswith(prefix) and os.path.isdir(path)]


def _advice(reason: str) -> str:
    return f"isolation='namespaces' is refused by this machine ({reason}): {_setting()}"


def _setting() -> str:
    for path, blocked, fix in (
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
         "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ):  # fmt: skip
        try:
            if Path(path).read_text(encoding="ascii").strip() == blocked:
                return f"as root, run `{fix}`"
        except OSError:
            continue
    return "it needs Linux 5.12 or newer, user namespaces, and an unmasked /proc (in Docker: --privileged)"

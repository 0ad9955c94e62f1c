"""Jails on this machine: starts a supervisor, isolated as asked for, and says what is missing if that fails."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from ..core.errors import SandboxUnavailable
from .client import JailClient

_COVERED = ("/tmp/", "/workspace/")
"""What each session covers with folders of its own."""
_MAIN = Path(__file__).resolve().parent / "jail" / "main.py"


def start_local(isolation: str) -> JailClient:
    """Starts a jail.

    Raises:
        SandboxUnavailable: This machine cannot isolate code that way; the message says what to change.
    """
    if platform.system() != "Linux":
        raise SandboxUnavailable(
            f"sandbox='local' needs Linux, not {platform.system()}: use sandbox='docker' with Docker Desktop"
        )
    if isolation == "none":
        warnings.warn("isolation='none': code runs with all rights of this process", RuntimeWarning, stacklevel=6)
        return JailClient(ProcessLink("none"))
    try:
        return JailClient(ProcessLink("namespaces"), count_processes=_processes_count_per_namespace())
    except SandboxUnavailable as error:
        raise SandboxUnavailable(_advice(str(error))) from error


class ProcessLink:
    """A jail whose supervisor is a child of this process, at the other end of a socket.

    Args:
        isolation: `"namespaces"` or `"none"`.

    Raises:
        SandboxUnavailable: The interpreter lies where sessions cannot see it.
    """

    def __init__(self, isolation: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="palaestra-") if isolation == "none" else None
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = _start(theirs, self._directory)

    def receive(self) -> bytes:
        """See `JailLink`."""
        return self._socket.recv(1 << 18)

    def send(self, data: bytes) -> None:
        """See `JailLink`."""
        self._socket.sendall(data)

    def set_timeout(self, seconds: float | None) -> None:
        """See `JailLink`."""
        self._socket.settimeout(seconds)

    def hang_up(self) -> None:
        """See `JailLink`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """See `JailLink`."""
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._directory is not None:
            self._directory.cleanup()

    def close(self) -> None:
        """See `JailLink`."""
        self._socket.close()

    def forget(self) -> None:
        """See `JailLink`."""
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

"""Jails on this machine: starts a supervisor, isolated as asked for, and says what is missing if that fails."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import SandboxUnavailable
from .client import JailClient
from .environment import session_environment
from .jail import wire
from .jail.copying import remove_tree

_MODES = ("namespaces", "landlock")
"""The best first."""
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache", "/etc/alternatives")
_SESSIONS = "palaestra-sessions-"
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
    reasons: list[str] = []
    for mode in _MODES if isolation == "auto" else (isolation,):
        try:
            return JailClient(ProcessLink(mode), count_processes=mode == "namespaces" and _counts_per_namespace())
        except SandboxUnavailable as error:
            reasons.append(f"isolation={mode!r} is refused by this machine ({error}): {_advice(mode)}")
    raise SandboxUnavailable("; ".join(reasons))


class ProcessLink:
    """A jail whose supervisor is a child of this process, at the other end of a socket.

    Args:
        isolation: `"namespaces"`, `"landlock"` or `"none"`.

    Raises:
        SandboxUnavailable: The interpreter lies where sessions cannot see it.
    """

    def __init__(self, isolation: str) -> None:
        from .control_groups import ControlGroups  # these two only Unix can import
        from .leftovers import HeldFolder

        self._held: list[HeldFolder | ControlGroups] = []
        config = _config(isolation)
        if isolation != "namespaces":
            folder = HeldFolder(tempfile.gettempdir(), _SESSIONS, remove_tree)
            os.chmod(folder.path, 0o711)
            config["directory"] = folder.path
            self._held.append(folder)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = _start(theirs)
        if isolation != "none":
            with contextlib.suppress(OSError):  # watching processes must do, then
                groups = ControlGroups(self._process.pid)
                config["groups"] = groups.folders
                self._held.append(groups)
        self._socket.sendall(wire.pack(config))

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
        for held in self._held:
            held.remove()

    def close(self) -> None:
        """See `JailLink`."""
        self._socket.close()

    def forget(self) -> None:
        """See `JailLink`."""
        self._socket.close()
        self._process.returncode = 0  # it is not this process's child
        for held in self._held:
            held.forget()


def _python() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _start(sock: socket.socket) -> subprocess.Popen[bytes]:
    fd = str(sock.fileno())
    return subprocess.Popen(
        [_python(), "-s", "-P", "-S", "-B", str(_MAIN), fd, fd],  # not -I, which would ignore the seed of hashes
        pass_fds=[sock.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
        start_new_session=True,
    )


def _config(isolation: str) -> dict[str, Any]:
    python = _python()
    if isolation == "namespaces" and python.startswith(_COVERED):
        raise SandboxUnavailable(f"sessions would hide {python}")
    prefixes = [] if _below_usr(sys.base_prefix) else [os.path.realpath(sys.base_prefix)]
    hidden = hidden_folders()
    look, names = _readable([*_SYSTEM, *prefixes], hidden) if isolation == "landlock" else ([], [])
    return {
        "isolation": isolation,
        "directory": None,
        "groups": {},
        "host_pid": os.getpid(),
        "prefixes": prefixes,
        "hidden": hidden,
        "look": look,
        "names": names,
        "packages": _site_packages(),
        "environment": session_environment(f"{os.path.dirname(python)}:/usr/local/bin:/usr/bin:/bin"),
    }


def _readable(folders: Sequence[str], hidden: Sequence[str]) -> tuple[list[str], list[str]]:
    """Gives what a Landlock domain may read so that it reads `folders` but nothing that is hidden, and what it may list
    on the way there. Landlock allows whole trees and takes nothing back."""
    look: list[str] = []
    names: list[str] = []
    waiting = [os.path.realpath(folder) for folder in folders if os.path.exists(folder)]
    while waiting:
        path = waiting.pop()
        if path in hidden:
            continue
        if not any(folder.startswith(path + "/") for folder in hidden):
            look.append(path)
        else:
            names.append(path)
            waiting += [entry.path for entry in os.scandir(path) if not entry.is_symlink()]
    return sorted(set(look)), sorted(set(names))


def hidden_folders() -> list[str]:
    """What sessions must not see although the interpreter's folders may hold it: our tasks with their answers, where
    this package is installed beside the interpreter, and the programs that container images keep in /usr/src.
    """
    return ["/usr/src", str(_MAIN.parents[2])]


def _counts_per_namespace() -> bool:
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


def _advice(mode: str) -> str:
    if mode == "landlock":
        return "it needs Linux 6.12 or newer with Landlock enabled"
    if mode != "namespaces":
        return "see the reason"
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

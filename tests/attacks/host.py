"""The host that attacks are after: its secret, the sentinel that keeps it, and whether anything happened to them."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import palaestra.envs.tasks.code.compose as tasks

_SENTINEL = Path(__file__).with_name("sentinel.py")


def new_secret() -> str:
    """Gives text that programs know for a secret."""
    return f"secret-{secrets.token_hex(16)}"


class Host:
    """The sentinel process and what it said about itself.

    Args:
        folder: An empty folder that everybody may read, and whose name nobody else has.
        lock: A file that all test processes of a run share.
    """

    def __init__(self, folder: Path, lock: Path) -> None:
        self.secret = new_secret()
        self._lock = lock
        command = [sys.executable, str(_SENTINEL), str(folder), self.secret]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "API_KEY": self.secret},
        )  # fmt: skip
        assert self._process.stdout is not None
        self.places: dict[str, Any] = {**json.loads(self._process.stdout.readline()), **_about(folder)}
        self._precious = Path(self.places["precious"])
        self._before = self._report()

    def _report(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("report\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            return {"alive": False}

    def changes(self) -> list[str]:
        """Gives what happened to the sentinel and its files since the last look."""
        now = self._report()
        changed = [name for name in self._before if now.get(name) != self._before[name]]
        self._before = now
        return [f"the host's {name}: {str(now.get(name))[-300:]}" for name in changed]

    def restore(self) -> None:
        """Puts the precious files back as they were, and takes the present state for the one to keep."""
        self._precious.mkdir(exist_ok=True)
        self._precious.chmod(0o755)
        for path in self._precious.iterdir():
            path.unlink()
        for name in ("keep.txt", "other.txt"):
            (self._precious / name).write_text("precious\n", encoding="utf-8")
        self._before = self._report()

    @contextlib.contextmanager
    def kernel_memory(self, watch: bool) -> Iterator[list[float]]:
        """Gives a list that ends up with the MiB by which the kernel's own memory grew at most, if that is watched.

        One at a time, whatever the number of test processes.
        """
        if not watch:
            yield [0.0]
            return
        with self._lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before, peak, done = _settled_kernel_mib(), [0.0], threading.Event()

            def look() -> None:
                while not done.wait(0.05):
                    peak[0] = max(peak[0], _growth_mib(before))

            thread = threading.Thread(target=look)
            thread.start()
            try:
                yield peak
            finally:
                done.set()
                thread.join()

    def close(self) -> None:
        """Ends the sentinel, which removes what it made."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def processes_with(mark: str) -> list[int]:
    """Gives the host's processes that have a text in their name, arguments or environment."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            seen = b""
            for name in ("comm", "cmdline", "environ"):
                with contextlib.suppress(OSError):
                    seen += (folder / name).read_bytes()
            if mark.encode() in seen and not _is_zombie(folder):
                found.append(int(folder.name))
    return found


def outliving(mark: str, patience_s: float) -> list[int]:
    """Gives the processes with a mark that are still there after a while; one that changes its id is missed at times."""
    deadline, missed, found = time.monotonic() + patience_s, 0, list[int]()
    while missed < 5 and time.monotonic() < deadline:
        seen = processes_with(mark)
        found, missed = (seen, 0) if seen else (found, missed + 1)
        time.sleep(0.01)
    return found if missed < 5 else []


def kill_all_with(mark: str) -> None:
    """Ends the processes with a mark, however fast they make new ones."""
    for _ in range(200):
        found = processes_with(mark)
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _is_zombie(folder: Path) -> bool:
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _kernel_mib() -> tuple[float, float]:
    """What the kernel holds for itself and cannot give back, without the pages of processes and files.

    By pages, of which some are free inside, and by objects, which leaves out large ones and needs root. Growth of
    either is growth.
    """
    sizes = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    pages, tables, stacks = (int(sizes[name].split()[0]) for name in ("SUnreclaim", "PageTables", "KernelStack"))
    held = 0
    with contextlib.suppress(OSError):
        for line in Path("/proc/slabinfo").read_text(encoding="ascii").splitlines()[2:]:
            name, active, _, size, *_ = line.split()
            if not any(part in name for part in _CACHES):
                held += int(active) * int(size)
    return (pages + tables + stacks) / 1024, held / (1 << 20) + (tables + stacks) / 1024


def _growth_mib(before: tuple[float, float]) -> float:
    return max(now - then for now, then in zip(_kernel_mib(), before, strict=True))


def _settled_kernel_mib(patience_s: float = 4.0) -> tuple[float, float]:
    """The same, once what earlier attacks left has been given back, which the kernel does in its own time."""
    deadline = time.monotonic() + patience_s
    before = _kernel_mib()
    while time.monotonic() < deadline:
        time.sleep(0.15)
        last, before = before, _kernel_mib()
        if max(abs(a - b) for a, b in zip(last, before, strict=True)) < 1:
            break
    return before


_CACHES = ("inode", "dentry", "radix", "buffer_head", "kernfs", "names", "bio")
"""The kernel's objects that come and go with files that anybody reads."""


def _about(folder: Path) -> dict[str, Any]:
    root = os.stat("/").st_dev
    return {
        "host_name": socket.gethostname(),
        "source": tasks.__file__,
        "root_device": [os.major(root), os.minor(root)],
        "handle": _handle(str(folder / "secret.txt")),
        "addresses": _addresses(),
        "test_pid": os.getpid(),
    }


def _handle(path: str) -> list[Any] | None:
    """A file's handle (its type and bytes), with which open_by_handle_at(2) finds it from any mount; None if none."""
    handle = ctypes.create_string_buffer((128).to_bytes(4, sys.byteorder) + bytes(4 + 128))
    mount = ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "name_to_handle_at") or libc.name_to_handle_at(
        -100, path.encode(), handle, ctypes.byref(mount), 0
    ):
        return None
    size = int.from_bytes(handle.raw[:4], sys.byteorder)
    return [int.from_bytes(handle.raw[4:8], sys.byteorder), handle.raw[8 : 8 + size].hex()]


def _addresses() -> list[str]:
    """The hardware addresses of the host's network interfaces."""
    found: list[str] = []
    for path in Path("/sys/class/net").glob("*/address"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(encoding="ascii").strip())
    return sorted({address for address in found if address.strip("0:")})

"""The host's process that attacks are after: `python sentinel.py FOLDER SECRET`; not a test, and no part of the harness.

It holds the secret in every way in which a process can, gives it to everybody who reaches it, and notes what is done to
it. First it prints where all that is, as JSON; then it answers each line of stdin with a report, until stdin ends.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
UNTOUCHED = b"untouched by anybody"
IPC_CREAT, IPC_RMID, IPC_NOWAIT = 0o1000, 0, 0o4000
USER_KEYRING = -4
KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}
"""The numbers of add_key(2) and keyctl(2)."""
SIGNALS = (signal.SIGURG, signal.SIGWINCH, signal.SIGIO, signal.SIGUSR1)


class Sentinel:
    """The secret's keeper."""

    def __init__(self, folder: Path, secret: bytes) -> None:
        self.folder = folder
        self.secret = secret
        self.name = folder.name
        self.knocks: list[str] = []
        self.signals = 0
        self._closing: list[Callable[[], object]] = []
        self._memory = ctypes.create_string_buffer(secret)
        self._scratch = ctypes.create_string_buffer(UNTOUCHED)
        for number in SIGNALS:
            signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, _frame: object) -> None:
        self.signals += 1

    def places(self) -> dict[str, Any]:
        """Sets everything up and says where it is."""
        return {
            "pid": os.getpid(),
            "name": self.name,
            "folder": str(self.folder),
            "address": ctypes.addressof(self._memory),
            "scratch": ctypes.addressof(self._scratch),
            "size": len(self.secret),
            **self._files(),
            **self._servers(),
            **self._kernel_objects(),
        }

    def _files(self) -> dict[str, Any]:
        secret_file = self.folder / "secret.txt"
        secret_file.write_bytes(self.secret)
        precious = self.folder / "precious"
        precious.mkdir()
        for name in ("keep.txt", "other.txt"):
            (precious / name).write_text("precious\n", encoding="utf-8")
        shared = Path("/dev/shm", self.name)
        shared.write_bytes(self.secret)
        self._closing.append(shared.unlink)
        cwd = self.folder / "cwd"
        cwd.mkdir()
        (cwd / "note.txt").write_bytes(self.secret)
        os.chdir(cwd)
        deleted = self.folder / "deleted.txt"
        deleted.write_bytes(self.secret)
        fd = os.open(deleted, os.O_RDWR)
        deleted.unlink()
        playground = self.folder / "playground"
        playground.mkdir()
        return {
            "secret_file": str(secret_file),
            "precious": str(precious),
            "shared_file": str(shared),
            "fd": fd,
            "playground": str(playground),
        }

    # --- servers

    def _servers(self) -> dict[str, Any]:
        path = str(self.folder / "socket")
        return {
            "tcp": self._serve(socket.AF_INET, ("127.0.0.1", 0)),
            "tcp6": self._serve(socket.AF_INET6, ("::1", 0)),
            "udp": self._answer(socket.AF_INET, ("127.0.0.1", 0), 0),
            "udplite": self._answer(socket.AF_INET, ("127.0.0.1", 0), 136),
            "path_socket": self._serve(socket.AF_UNIX, path) and path,
            "abstract": self._serve(socket.AF_UNIX, f"\0{self.name}") and self.name,
            "abstract_datagrams": self._answer(socket.AF_UNIX, f"\0{self.name}-d", 0) and f"{self.name}-d",
        }

    def _serve(self, family: int, address: Any) -> int | None:
        """Gives the secret to whoever connects; gives the port, or 1 where there is none."""
        try:
            server = socket.socket(family)
            server.bind(address)
        except OSError:
            return None
        server.listen(64)

        def serve() -> None:
            while True:
                connection, _ = server.accept()
                self.knocks.append(f"connection to {address}")
                with connection, contextlib.suppress(OSError):
                    connection.sendall(self.secret)

        threading.Thread(target=serve, daemon=True).start()
        return 1 if family == socket.AF_UNIX else server.getsockname()[1]

    def _answer(self, family: int, address: Any, protocol: int) -> int | None:
        """Answers each datagram with the secret; gives the port, or 1 where there is none."""
        try:
            server = socket.socket(family, socket.SOCK_DGRAM, protocol)
            server.bind(address)
        except OSError:
            return None

        def answer() -> None:
            while True:
                _, sender = server.recvfrom(4096)
                self.knocks.append(f"datagram to {address}")
                with contextlib.suppress(OSError, TypeError):
                    server.sendto(self.secret, sender)

        threading.Thread(target=answer, daemon=True).start()
        return 1 if family == socket.AF_UNIX else server.getsockname()[1]

    # --- what the kernel keeps

    def _kernel_objects(self) -> dict[str, Any]:
        key = 0x50000000 + os.getpid()
        return {"ipc": key, **self._shared_memory(key), **self._queues(key), "key": self._key()}

    def _shared_memory(self, key: int) -> dict[str, Any]:
        segment = libc.shmget(key, 4096, IPC_CREAT | 0o666)
        if segment < 0:
            return {"shm": None}
        libc.shmat.restype = ctypes.c_void_p
        ctypes.memmove(libc.shmat(segment, None, 0), self.secret, len(self.secret))
        self._closing.append(lambda: libc.shmctl(segment, IPC_RMID, None))
        return {"shm": segment}

    def _queues(self, key: int) -> dict[str, Any]:
        queue = libc.msgget(key, IPC_CREAT | 0o666)
        if queue >= 0:
            self._closing.append(lambda: libc.msgctl(queue, IPC_RMID, None))
        message = (1).to_bytes(8, sys.byteorder) + self.secret
        os.umask(0)
        posix = libc.mq_open(b"/" + self.name.encode(), os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666, None)
        os.umask(0o022)
        if posix >= 0:
            self._closing.append(lambda: libc.mq_unlink(b"/" + self.name.encode()))

        def refill() -> None:
            while True:  # readers take messages away
                if queue >= 0:
                    libc.msgsnd(queue, message, len(self.secret), IPC_NOWAIT)
                if posix >= 0:
                    libc.mq_send(posix, self.secret, ctypes.c_size_t(len(self.secret)), 0)
                time.sleep(0.05)

        threading.Thread(target=refill, daemon=True).start()
        return {"queue": queue if queue >= 0 else None, "posix_queue": self.name if posix >= 0 else None}

    def _key(self) -> str | None:
        add_key, keyctl = KEYCTL.get(os.uname().machine, (0, 0))
        description = f"{self.name}-key"
        key = libc.syscall(add_key, b"user", description.encode(), self.secret, len(self.secret), USER_KEYRING)
        if not add_key or key < 0:
            return None
        set_permissions, revoke, everybody = 5, 3, 0x3F3F3F3F
        libc.syscall(keyctl, set_permissions, key, everybody, 0, 0)
        self._closing.append(lambda: libc.syscall(keyctl, revoke, key, 0, 0, 0))
        return description

    # --- what was done to it

    def report(self) -> dict[str, Any]:
        """Everything that nobody may change."""
        return {
            "knocks": self.knocks,
            "signals": self.signals,
            "scratch": self._scratch.value.decode("latin-1"),
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
            "processors": sorted(os.sched_getaffinity(0)),
            "policy": os.sched_getscheduler(0),
            "limits": [resource.getrlimit(kind) for kind in range(16)],
            "umask": _umask(),
            "tracer": next(line for line in Path("/proc/self/status").read_text().splitlines() if "Tracer" in line),
            "host name": socket.gethostname(),
            "files": _listing(self.folder),
            "shared memory": _read_shared(self.name, len(self.secret)),
        }

    def close(self) -> None:
        """Removes what outlives processes."""
        for action in self._closing:
            with contextlib.suppress(OSError):
                action()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _listing(folder: Path) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for path in sorted(folder.rglob("*")):
        if "playground" in path.parts:
            continue
        info = path.lstat()
        content = path.read_bytes().hex() if path.is_file() and not path.is_symlink() else ""
        links = 0 if path.is_dir() else info.st_nlink
        what = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_size, links, content)
        found.append((str(path.relative_to(folder)), *what))
    return found


def _read_shared(name: str, size: int) -> str:
    with contextlib.suppress(OSError):
        return Path("/dev/shm", name).read_bytes()[: 2 * size].hex()
    return "gone"


def main() -> None:
    sentinel = Sentinel(Path(sys.argv[1]), sys.argv[2].encode())
    print(json.dumps(sentinel.places()), flush=True)
    for _ in sys.stdin:
        print(json.dumps(sentinel.report()), flush=True)
    sentinel.close()


if __name__ == "__main__":
    main()

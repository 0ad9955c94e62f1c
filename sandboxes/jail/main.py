"""Start of the jail's processes: `python -I -S main.py SOCKET_FD CONFIG_JSON`, run by the host's client.

Builds the outer jail around itself, forks the zygote off while there is no data yet, and becomes the supervisor.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

TYPE_CHECKING = False  # importing `typing` would make every clone of the zygote dearer
if TYPE_CHECKING:
    from typing import Any, NoReturn

_FOLDER = os.path.dirname(os.path.abspath(__file__))


def main() -> NoReturn:
    """Starts zygote and supervisor; says hello or what failed as frame 0."""
    sys.path.insert(0, os.path.dirname(_FOLDER))
    import jail
    from jail import kernel, outer, wire

    del sys.path[0]
    host = socket.socket(fileno=int(sys.argv[1]))
    config: dict[str, Any] = json.loads(sys.argv[2])
    host_process = _open_host_process(config["host_pid"])
    try:
        if config["directory"] is None:
            outer.enter(config["prefixes"], config["hidden"], _FOLDER)
            jail.__path__ = [outer.JAIL_FILES]
        sys.path += config["packages"]
        os.environ.clear()
        os.environ.update(config["environment"])
        sys.argv = [""]  # sessions inherit it, and it is the host's
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
    except OSError as error:
        host.sendall(wire.pack({"id": 0, "error": error.strerror or str(error), "errno": error.errno}))
        os._exit(1)
    if pid == 0:
        ours.close()
        host.close()
        if host_process >= 0:
            os.close(host_process)
        _clone_sessions(theirs, config["directory"])
    theirs.close()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _supervise(host, ours, host_process)


def _clone_sessions(orders: socket.socket, directory: str | None) -> NoReturn:
    from jail.zygote import Zygote  # it loads only what it needs: all that it has, every session has too

    try:
        zygote = Zygote(orders, directory)
    except OSError as error:
        os.write(3, f"E {error.strerror or error}".encode())  # where it put its end of the socket first of all
        os._exit(1)
    zygote.serve()


def _supervise(host: socket.socket, orders: socket.socket, host_process: int) -> NoReturn:
    import resource
    import traceback

    from jail import wire
    from jail.supervisor import Supervisor

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each session takes four
    hello = orders.recv(4096)
    if hello != b"H":
        host.sendall(wire.pack({"id": 0, "error": hello[2:].decode() or "the zygote ended"}))
        os._exit(1)
    try:
        host.sendall(wire.pack({"id": 0, "status": "ok"}))
        Supervisor(host, orders, host_process).serve()
    except Exception:
        host.setblocking(True)
        host.sendall(wire.pack({"id": 0, "fatal": traceback.format_exc()[-2000:]}))
        os._exit(1)


def _open_host_process(pid: int) -> int:
    """A descriptor of the host process, so that its end is noticed even if a child of it holds our socket."""
    if os.getppid() != pid:
        os._exit(1)
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


if __name__ == "__main__":
    main()

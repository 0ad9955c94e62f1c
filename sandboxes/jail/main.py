"""Start of the jail's processes: `python -I -S main.py SOCKET_FD CONFIG_JSON`, run by the host's client.

Builds the outer jail around itself, forks the zygote off while there is no data yet, and becomes the supervisor.
"""

import json
import os
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main() -> NoReturn:
    """Starts zygote and supervisor; says hello or what failed as frame 0."""
    sys.path.insert(0, _FOLDER)
    from jail import outer, supervisor, wire, zygote

    sys.path[:] = [path for path in sys.path if path != _FOLDER]
    host = socket.socket(fileno=int(sys.argv[1]))
    config: dict[str, Any] = json.loads(sys.argv[2])
    host_process = _open_host_process(config["host_pid"])
    try:
        if config["isolation"] != "none":
            outer.enter(config["prefixes"])
        sys.path += config["packages"]
        os.environ.clear()
        os.environ.update(config["environment"])
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
        zygote.Zygote(theirs, config["isolation"] != "none").serve()
    theirs.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    host.sendall(wire.pack({"id": 0, "status": "ok"}))
    try:
        supervisor.Supervisor(host, ours, host_process).serve()
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

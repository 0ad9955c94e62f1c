"""Start of a jail: `python -I -S main.py READ_FD WRITE_FD [MORE]`, with descriptors of the line to the host.

Builds the outer jail around itself, forks the zygote off while there is no data yet, and becomes the supervisor.

The first frame of the host is the configuration (no argument, because sessions may see those), to which MORE adds what
only this machine knows (JSON); with
    isolation           `namespaces`, `landlock`, `uid` or `none`
    directory           where sessions have their folders, in modes without mount namespaces; else null
    host_pid            the process whose end ends the jail, or null
    prefixes, hidden    folders to show beside the system's, and folders to hide although they lie below one of those
    look, names         folders to read and folders to list, for `landlock`; null means what the root directory holds
    packages            folders to add to the module search path
    environment         all of a session's environment variables
    groups              folders for control groups of sessions, see `jail.control_groups`; none where there can be none
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

TYPE_CHECKING = False  # importing `typing` would make every clone of the zygote dearer
if TYPE_CHECKING:
    import types
    from typing import Any, NoReturn

_FOLDER = os.path.dirname(os.path.abspath(__file__))


def main() -> NoReturn:
    """Starts zygote and supervisor; says hello or what failed as frame 0."""
    sys.path.insert(0, os.path.dirname(_FOLDER))
    import jail
    from jail import kernel, outer, wire

    del sys.path[0]
    ends = int(sys.argv[1]), int(sys.argv[2])
    config, _ = wire.read_frame(ends[0])
    config.update(json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
    host_process = -1 if config["host_pid"] is None else _open_host_process(config["host_pid"])
    groups = {kind: os.open(path, os.O_RDONLY | os.O_DIRECTORY) for kind, path in config["groups"].items()}
    try:
        _enter(config, outer, list(groups.values()))
        if config["isolation"] == "namespaces":
            jail.__path__ = [outer.JAIL_FILES]
        sys.path += config["packages"]
        os.environ.clear()
        os.environ.update(config["environment"])
        sys.argv = [""]  # sessions inherit it, and it is the host's
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
    except OSError as error:
        wire.write_all(ends[1], wire.pack({"id": 0, "error": error.strerror or str(error), "errno": error.errno}))
        os._exit(1)
    if pid == 0:
        ours.close()
        for fd in {*ends, host_process, *groups.values()} - {-1}:
            os.close(fd)
        _clone_sessions(theirs, config)
    theirs.close()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans that come to process 1 of a container leave no zombies
    _supervise(ends, ours, host_process, groups, config)


def _enter(config: dict[str, Any], outer: types.ModuleType, groups: list[int]) -> None:
    """Gives this process the surroundings of its mode."""
    if config["isolation"] == "namespaces":
        outer.enter(config["prefixes"], config["hidden"], _FOLDER, groups)
    elif config["isolation"] != "none":
        config["look"] = config["look"] or outer.visible_folders()
        outer.lose_privileges(config["isolation"])


def _clone_sessions(orders: socket.socket, config: dict[str, Any]) -> NoReturn:
    from jail.zygote import Zygote  # it loads only what it needs: all that it has, every session has too

    try:
        zygote = Zygote(orders, config)
    except OSError as error:
        os.write(3, f"E {error.strerror or error}".encode())  # where it put its end of the socket first of all
        os._exit(1)
    zygote.serve()


def _supervise(
    ends: tuple[int, int], orders: socket.socket, host_process: int, groups: dict[str, int], config: dict[str, Any]
) -> NoReturn:
    import resource
    import traceback

    from jail import wire
    from jail.control_groups import ControlGroups
    from jail.supervisor import Supervisor

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each session takes four
    hello = orders.recv(4096)
    if hello != b"H":
        wire.write_all(ends[1], wire.pack({"id": 0, "error": hello[2:].decode() or "the zygote ended"}))
        os._exit(1)
    try:
        wire.write_all(ends[1], wire.pack({"id": 0, "status": "ok"}))
        counting = ControlGroups(groups) if groups else None
        Supervisor(ends, orders, host_process, config["isolation"], config["directory"], counting).serve()
    except Exception:
        os.set_blocking(ends[1], True)
        wire.write_all(ends[1], wire.pack({"id": 0, "fatal": traceback.format_exc()[-2000:]}))
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

"""Which process a container belongs to, written on the container, so that orphans are recognised.

A container ends when its owner's connection does; this is for those that an engine could not end at the time. Process
ids are read from Linux's /proc. Where there is none, owners count as alive and nothing is removed.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from .engine import Engine

_MACHINE, _PROCESS = "palaestra.machine", "palaestra.process"


def owner_labels() -> dict[str, str]:
    """Labels that name this process: where its id has a meaning, and its id with the time of its start."""
    return {_MACHINE: _machine(), _PROCESS: f"{os.getpid()} {_started(os.getpid())}"}


def remove_orphans(engine: Engine) -> None:
    """Removes the containers of processes of this machine that have ended; what cannot be removed stays."""
    if not _machine():
        return
    with contextlib.suppress(*engine.errors):
        for container in engine.api.containers(all=True, filters={"label": f"{_MACHINE}={_machine()}"}):
            if not _is_alive(container["Labels"].get(_PROCESS, "")):
                with contextlib.suppress(*engine.errors):
                    engine.remove(container["Id"])


def _machine() -> str:
    """Names the space of process ids that this process lives in; empty where that cannot be told."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in ticks since the machine did; empty if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _is_alive(process: str) -> bool:
    pid, _, started = process.partition(" ")
    return pid.isdigit() and _started(int(pid)) == started

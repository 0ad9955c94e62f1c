"""The jails of this process: one for each configuration, shared by all its sessions.

Opening a session or resetting one so costs a fresh session, never a fresh jail. A process that was forked off this one
must not use its jails: it gets jails of its own.
"""

from __future__ import annotations

import atexit
import os
import threading

from .base import SandboxConfig
from .client import JailClient

_Key = tuple[str, str, str | None, str | None]
_jails: dict[_Key, JailClient] = {}
_starting: dict[_Key, threading.Lock] = {}
"""One lock for each configuration: what needs another jail does not wait while an image is pulled."""
_starting_lock = threading.Lock()


def jail(config: SandboxConfig) -> JailClient:
    """Gives this process's jail of a configuration; starts it, or another one if it died.

    Raises:
        SandboxUnavailable: This machine cannot isolate code that way; the message says what to change.
    """
    key = config.backend, config.isolation, config.image, config.runtime
    with _starting_lock:
        lock = _starting.setdefault(key, threading.Lock())
    with lock:
        found = _jails.get(key)
        if found is not None and found.died is None:
            return found
        if found is not None:
            del _jails[key]
            found.close()
        _jails[key] = _start(config)
        return _jails[key]


def _start(config: SandboxConfig) -> JailClient:
    if config.backend == "docker":
        from .docker import start_container  # needs the package `docker`

        return start_container(config)
    from .local import start_local  # Linux only

    return start_local(config.isolation)


def shutdown() -> None:
    """Closes the jails of this process; sessions that are still open are lost. Also runs at exit."""
    with _starting_lock:
        locks = list(_starting.items())
    for key, lock in locks:
        with lock:
            client = _jails.pop(key, None)
            if client is not None:
                client.close()


def _forget_jails() -> None:
    """In a forked child: lets go of the parent's jails."""
    global _starting_lock
    _starting_lock = threading.Lock()
    _starting.clear()
    for client in _jails.values():
        client.forget()
    _jails.clear()


atexit.register(shutdown)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_jails)

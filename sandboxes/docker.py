"""Jails in containers: one container for each image, runtime and mode of this process, many sessions in each.

The engine may be on another machine or in a VM: nothing is mounted from the host, and nothing here needs Linux on the
host's side. A container may do the least that its jail needs: no network, no shared memory, a root that cannot be
written to, Docker's own seccomp profile, and no capabilities but those with which a supervisor gives each session a
user of its own. Sessions have none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.errors import SandboxUnavailable
from .base import DEFAULT_IMAGE, ISOLATIONS, SandboxConfig
from .client import JailClient
from .container import ContainerLink
from .engine import Engine, reason_of
from .environment import session_environment
from .jail import wire
from .owner import owner_labels, remove_orphans

_JAIL = Path(__file__).resolve().parent / "jail"
_ENGINE_TIMEOUT_S = 60.0
"""How long the engine may take for one request, such as to start a container."""
_CAPABILITIES = ("SETUID", "SETGID", "KILL", "CHOWN", "DAC_OVERRIDE", "FOWNER", "SYS_PTRACE")
"""Of the supervisor under `uid`: to give sessions users and folders of their own, to see them, and to end them."""
_USERS = {"uid": 0, "landlock": 1000}
_SESSIONS = "/sessions"
"""Where sessions have their folders."""
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MIB = 1 << 20

# The jail limits each session. These limits of the whole container only save the machine, and are so wide that no
# session reaches them before the jail has stopped it, which takes 0.05 s: what one session can still take from its
# neighbours is what it gets in that time. When memory does run out, the kernel ends sessions and never the supervisor.
_MEMORY_SHARE, _LEAST_MEMORY = 0.5, 1 << 30
"""Of the engine's memory; there is no swap. Files of sessions count as memory, and may take half of it."""
_PROCESSES = 8192
"""128 sessions with all the processes that they may have, and a quarter of what a small machine can number."""
_INODES = 1_000_000
"""50 sessions with all the files that they may have; a million take about 1 GiB of the container's memory."""


def start_container(config: SandboxConfig) -> JailClient:
    """Starts a container with a jail in it.

    Raises:
        SandboxUnavailable: There is no engine, image or runtime, or the image cannot hold a jail; the message says what
            to change.
    """
    modes = ISOLATIONS["docker"][1:] if config.isolation == "auto" else (config.isolation,)
    reasons: dict[str, str] = {}
    for mode in modes:
        engine, container, config_of_jail = _create(config, mode)
        try:
            link = ContainerLink(engine, container, _archive() + wire.pack(config_of_jail))
            return JailClient(link, count_processes=mode == "uid")
        except SandboxUnavailable as error:
            reasons[mode] = _readable(str(error))
    if len(set(reasons.values())) > 1:
        raise SandboxUnavailable("; ".join(f"isolation={mode!r}: {reason}" for mode, reason in reasons.items()))
    raise SandboxUnavailable(f"image={_image_of(config)!r}: {reasons[modes[0]]}")


def _readable(reason: str) -> str:
    if '"python3"' in reason and "not found" in reason:
        return "there is no python3 on its PATH: use an image with Python 3.11 or newer"
    if "network enabled in root network namespace" in reason:  # gVisor of 2022 takes every namespace of Linux 6 for it
        return f'{reason}: give the runtime "runtimeArgs": ["--network=none"] in the engine\'s daemon.json'
    return reason


def _image_of(config: SandboxConfig) -> str:
    return config.image or DEFAULT_IMAGE


def _archive() -> bytes:
    """The jail's files, as `jail/boot.py` reads them."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in _JAIL.glob("*.py") if path.name != "boot.py"}
    data = json.dumps(texts).encode()
    return len(data).to_bytes(4, "big") + data


def _create(config: SandboxConfig, mode: str) -> tuple[Engine, str, dict[str, Any]]:
    """Creates a container, to be started; gives the engine, the container's id, and what its jail must know."""
    engine = Engine(_ENGINE_TIMEOUT_S)
    try:
        remove_orphans(engine)
        facts: dict[str, Any] = engine.api.info()
        if facts["OSType"] != "linux":
            raise SandboxUnavailable(f"the Docker engine runs {facts['OSType']} containers: switch it to Linux ones")
        environment = engine.environment_of(_image_of(config))
        boot = (_JAIL / "boot.py").read_text(encoding="utf-8")
        created: dict[str, Any] = engine.api.create_container(
            _image_of(config),
            entrypoint=["python3", "-s", "-S", "-B", "-c", boot],
            environment={"PYTHONHASHSEED": "0"},
            user=f"{_USERS[mode]}:{_USERS[mode]}",
            working_dir="/",
            hostname="sandbox",
            labels=owner_labels(),
            healthcheck={"test": ["NONE"]},
            stdin_open=True,  # and once: the container's stdin is closed when our connection is
            host_config=engine.api.create_host_config(**_host_config(mode, config.runtime, facts["MemTotal"])),
        )
    except BaseException as error:
        engine.close()
        if isinstance(error, engine.errors):
            raise SandboxUnavailable(_refused(config, reason_of(error))) from error
        raise
    return engine, created["Id"], _jail_config(mode, environment)


def _refused(config: SandboxConfig, reason: str) -> str:
    if config.runtime is not None and "runtime" in reason:
        return f"runtime={config.runtime!r}: {reason}; install it, and list it in the engine's daemon.json"
    return f"the Docker engine creates no container: {reason}"


def _jail_config(mode: str, environment: dict[str, str]) -> dict[str, Any]:
    """What `jail/main.py` reads; `jail/boot.py` adds the packages of the image."""
    return {
        "isolation": mode,
        "directory": _SESSIONS,
        "host_pid": None,
        "prefixes": [],
        "hidden": [],
        "look": None,
        "names": [],
        "packages": [],
        "groups": {},
        "environment": session_environment(environment.get("PATH", _DEFAULT_PATH), environment),
    }


def _host_config(mode: str, runtime: str | None, engine_memory: int) -> dict[str, Any]:
    memory = max(_LEAST_MEMORY, int(engine_memory * _MEMORY_SHARE))
    user = _USERS[mode]
    owned = f"uid={user},gid={user}"
    return {
        "runtime": runtime,
        "network_mode": "none",
        "ipc_mode": "none",
        "read_only": True,
        "cap_drop": ["ALL"],
        "cap_add": list(_CAPABILITIES) if mode == "uid" else [],
        "security_opt": ["no-new-privileges"],
        "mem_limit": memory,
        "memswap_limit": memory,
        "pids_limit": _PROCESSES,
        "init": False,
        "tmpfs": {
            _SESSIONS: f"exec,mode=0711,{owned},size={memory // 2 // _MIB}m,nr_inodes={_INODES}",
            "/palaestra": f"mode=0755,{owned},size=1m",
        },
        "log_config": {"type": "none"},
        "auto_remove": True,
    }

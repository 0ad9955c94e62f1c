"""Tries what can hold untrusted code on this machine: each isolation mode, and the container engine."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..core.errors import PalaestraError
from ..sandboxes.base import DEFAULT_IMAGE, ISOLATIONS, Sandbox, SandboxConfig
from .findings import Finding, pip_line
from .plain_text import one_line

_NO_ISOLATION = ("auto", "none")
_ENGINE_TIMEOUT_S = 5
_SOCKET = "/var/run/docker.sock"
_INSTALL_ENGINE = (
    "install Docker (https://docs.docker.com/engine/install; on Debian and Ubuntu `sudo apt install docker.io`)"
)


def try_isolations(open_sandbox: Callable[[SandboxConfig], Sandbox] | None = None) -> Iterator[Finding]:
    """Opens a session in each isolation mode and has it compute something.

    Args:
        open_sandbox: Opens a session; ours by default.
    """
    if open_sandbox is None:
        from ..sandboxes import open_sandbox
    for backend, modes in ISOLATIONS.items():
        is_first = True
        for mode in modes:
            if mode in _NO_ISOLATION:
                continue
            finding = _try_isolation(backend, mode, open_sandbox, is_first)
            is_first = is_first and not finding.works
            yield finding


def _try_isolation(
    backend: str, mode: str, open_sandbox: Callable[[SandboxConfig], Sandbox], is_first: bool
) -> Finding:
    name = f"{backend}/{mode}"
    started = time.perf_counter()
    try:
        with open_sandbox(SandboxConfig(backend=backend, isolation=mode)) as sandbox:
            result = sandbox.exec("6 * 7")
    except Exception as error:  # a refusal says what to do; anything else is just as good a reason to see a doctor
        said = str(error) if isinstance(error, PalaestraError) else f"{type(error).__name__}: {error}"
        return Finding(section="isolation", name=name, works=False, detail=one_line(said))
    seconds = time.perf_counter() - started
    if result.stdout != "42\n":
        said = one_line(result.message or result.stdout)
        return Finding(section="isolation", name=name, works=False, detail=f"6 * 7 gave '{result.status}': {said}")
    detail = f"what sandbox={backend!r} takes by itself" if is_first else ""
    return Finding(section="isolation", name=name, works=True, detail=detail, seconds=seconds)


def find_engines(connect: Callable[[], Any] | None = None) -> Iterator[Finding]:
    """Asks the container engine who it is and what it has.

    Args:
        connect: Gives a client of the `docker` SDK; by default that of the environment (`DOCKER_HOST`).
    """
    try:
        client = (connect or _connect)()
    except ModuleNotFoundError:
        detail, fix = "the Python package docker is not installed", pip_line("docker")
        yield Finding(section="engines", name="docker", works=False, detail=detail, fix=fix)
        return
    except Exception as error:  # the SDK, its HTTP library or the operating system
        yield _unreachable(error)
        return
    try:
        yield from _ask_engine(client)
    except Exception as error:
        yield _unreachable(error)
    finally:
        client.close()


def _connect() -> Any:
    import docker  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    from ..sandboxes.engine import Engine

    Engine(_ENGINE_TIMEOUT_S).close()  # which leaves nothing open where no engine answers, unlike the SDK
    return docker.from_env(timeout=_ENGINE_TIMEOUT_S)


def _ask_engine(client: Any) -> Iterator[Finding]:
    version, info = client.version(), client.info()
    engine = (version.get("Platform") or {}).get("Name") or "engine"
    runtimes = ", ".join(sorted(info.get("Runtimes") or {})) or "none named"
    detail = one_line(f"{engine} {version.get('Version', '?')}, runtimes: {runtimes}")
    yield Finding(section="engines", name="docker", works=True, detail=detail)
    tags = [tag for image in client.images.list() for tag in image.tags]
    present = any(tag in (DEFAULT_IMAGE, f"docker.io/library/{DEFAULT_IMAGE}") for tag in tags)
    yield Finding(
        section="engines",
        name=f"image {DEFAULT_IMAGE}",
        works=present,
        detail="the default image" if present else "the default image is missing",
        fix="" if present else f"docker pull {DEFAULT_IMAGE}",
    )


def _unreachable(error: Exception) -> Finding:
    detail = f"no engine answers: {one_line(str(error))[:200]}"
    return Finding(section="engines", name="docker", works=False, detail=detail, fix=_how_to_reach())


def _how_to_reach() -> str:
    address = os.environ.get("DOCKER_HOST", f"unix://{_SOCKET}")
    path = address.removeprefix("unix://")
    if path == address:
        return f"see whether DOCKER_HOST={address} is right"
    if os.path.exists(path) and not os.access(path, os.W_OK):
        return f"you may not write to {path}: `sudo usermod -aG docker $USER`, then log in again"
    if shutil.which("dockerd"):
        return "start it: `sudo systemctl start docker`"
    if shutil.which("podman"):
        socket = "unix://$XDG_RUNTIME_DIR/podman/podman.sock"
        return f"`systemctl --user start podman.socket && export DOCKER_HOST={socket}`"
    return _INSTALL_ENGINE

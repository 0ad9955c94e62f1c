"""Sessions in containers, and the containers that they are in."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from palaestra.sandboxes import Sandbox, SandboxConfig, open_sandbox
from palaestra.sandboxes.owner import owner_labels

Build = Callable[..., str]
"""Makes an image: name, shell script, changes of its configuration."""


def containers(engine: Any) -> list[Any]:
    """The containers that belong to processes of this machine."""
    key, value = next(iter(owner_labels().items()))
    return engine.containers(all=True, filters={"label": f"{key}={value}"})


def none_is_left(engine: Any, seconds: float = 10) -> bool:
    """Whether the containers of this machine's processes are gone, or go soon."""
    deadline = time.monotonic() + seconds
    while (left := containers(engine)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left


def open_docker(image: str, isolation: str = "auto", **settings: Any) -> Sandbox:
    """Opens a session in a container."""
    limits = settings.pop("limits", None)
    config = SandboxConfig(backend="docker", image=image, isolation=isolation, **settings)
    return open_sandbox(config, limits=limits)


def need_runtime(name: str) -> None:
    """Skips a test where the engine has no such runtime."""
    if name not in os.environ.get("PALAESTRA_TEST_RUNTIMES", "").split():
        pytest.skip(f"needs an engine with the runtime {name}: apt-get install {name}, then make test-docker")

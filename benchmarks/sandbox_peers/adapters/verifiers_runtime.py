"""verifiers' runtimes: one child process of the host per execution, or one `docker exec` in a container per caller.

Asynchronous, as it is made to be used. The Docker runtime's `start` wants the engine's bridge network and a published
port, which cost nothing per execution; `attach`, its way to use a container that somebody else started, needs neither
and runs the same `docker exec`. A live process (`open_process`) is a pair of pipes, not an executor, and is left out.
"""

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from verifiers.v1.runtimes import DockerConfig, DockerRuntime, SubprocessConfig, provision_runtime

Run = Callable[[], Awaitable[str]]


@asynccontextmanager
async def caller(settings: dict[str, Any]) -> AsyncIterator[Run]:
    """Gives a function that runs the program once."""
    if settings["backend"] == "docker":
        container = start_container(settings["image"])
        try:
            async with DockerRuntime.attach(DockerConfig(image=settings["image"]), container) as runtime:
                yield program_of(runtime, "python3", settings)
        finally:
            subprocess.run(["docker", "rm", "--force", container], stdout=subprocess.DEVNULL, check=False)
    else:
        async with provision_runtime(SubprocessConfig()) as runtime:
            yield program_of(runtime, sys.executable, settings)


def program_of(runtime: Any, python: str, settings: dict[str, Any]) -> Run:
    async def run() -> str:
        result = await runtime.run([python, "-c", settings["program"]], {})
        return result.stdout + result.stderr or f"nothing, exit status {result.exit_code}"

    return run


def start_container(image: str) -> str:
    """A container that waits, as the runtime itself would start it, without a network."""
    command = ["docker", "run", "--detach", "--rm", "--network", "none", "--entrypoint", "sleep", image, "infinity"]
    started = subprocess.run(command, capture_output=True, text=True, check=False)
    if started.returncode:
        raise RuntimeError(started.stderr.strip())
    return started.stdout.strip()

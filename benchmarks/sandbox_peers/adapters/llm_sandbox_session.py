"""llm-sandbox's sessions: a kept workspace, and per execution a file copied in and a fresh interpreter run on it.

`backend` is "bubblewrap" (a jail per execution), "docker" (one container per caller, an `exec` per execution) or
"interactive" (an interpreter kept in the container, reached through files that both sides poll).
`defaults` leaves out what makes it faster: by default a session makes itself a virtual environment and runs its
interpreter, which starts later than the system's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llm_sandbox import SandboxSession
from llm_sandbox.const import SandboxBackend
from llm_sandbox.interactive import InteractiveSandboxSession

# No image needs a command of its own, and a container that gets SIGTERM ends at once: closing does not wait 10 s.
CONTAINER = {
    "network_mode": "none",
    "command": ["sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait"],
    "environment": {"PIP_NO_INDEX": "1"},
}


@contextmanager
def caller(settings: dict[str, Any]) -> Iterator[Callable[[], str]]:
    """Gives a function that runs the program once."""
    with session(settings) as opened:

        def run() -> str:
            result = opened.run(settings["program"])
            return result.stdout + result.stderr or f"nothing, exit status {result.exit_code}"

        yield run


def session(settings: dict[str, Any]) -> Any:
    if settings["backend"] == "interactive":
        return InteractiveSandboxSession(image=settings["image"], runtime_configs=dict(CONTAINER))
    if settings["backend"] == "docker":
        made = SandboxSession(
            backend=SandboxBackend.DOCKER,
            lang="python",
            image=settings["image"],
            skip_environment_setup=True,
            runtime_configs=dict(CONTAINER),
        )
        made.language_handler.config.execution_commands = ["python3 {file}"]  # Debian's images have no `python`
        return made
    fast = {} if settings["defaults"] else {"skip_environment_setup": True}
    return SandboxSession(backend="bubblewrap", lang="python", **fast)

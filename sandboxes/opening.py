"""Opens sandboxes and runners by the name of their backend."""

from __future__ import annotations

from .base import Limits, Sandbox, SandboxConfig
from .code_runner import CodeRunner


def open_sandbox(
    backend: str | SandboxConfig = "local",
    *,
    isolation: str = "auto",
    image: str | None = None,
    runtime: str | None = None,
    setup: str | None = None,
    limits: Limits | None = None,
) -> Sandbox:
    """Opens a session in a jail that all sessions of this process share.

    The jail starts with the first session (about 0.1 s, in Docker about 1 s); further sessions are cheap.

    Args:
        backend: `"local"`, `"docker"`, or a whole `SandboxConfig`, which then stands for all others but `limits`.
        isolation: `"auto"` takes the best mode of this machine; `"none"` isolates nothing and warns.
        image: Container image, for `"docker"`.
        runtime: Container runtime, for `"docker"`.
        setup: Shell command that the session runs in its workspace before anything else.
        limits: What the session may use.

    Raises:
        ConfigError: An argument is wrong.
        SandboxUnavailable: This machine cannot isolate code that way; the message says what to change.
    """
    from .jailed import JailedSandbox  # loaded when the first session is opened

    if not isinstance(backend, SandboxConfig):
        backend = SandboxConfig(backend=backend, isolation=isolation, image=image, runtime=runtime, setup=setup)
    return JailedSandbox(backend, limits)


def open_runner(config: SandboxConfig, limits: Limits | None = None) -> CodeRunner:
    """Gives what runs untrusted functions in such a sandbox.

    Raises:
        SandboxUnavailable: This machine cannot isolate code that way; the message says what to change.
    """
    from .runner import JailedRunner

    return JailedRunner(config, limits)


def shutdown() -> None:
    """Closes the jails of this process; sessions that are still open are lost. Also runs at exit."""
    from .pool import shutdown as shutdown_pool

    shutdown_pool()

"""Opens sandboxes by the name of their backend, and closes what they share."""

from __future__ import annotations

from .base import Limits, Sandbox, check_backend


def open_sandbox(
    backend: str = "local", *, isolation: str = "auto", image: str | None = None, limits: Limits | None = None
) -> Sandbox:
    """Opens a session in a jail that all sessions of this process share.

    The jail starts with the first session (about 0.1 s); further sessions are cheap.

    Args:
        backend: `"local"`.
        isolation: `"auto"` takes the best mode of this machine; `"none"` isolates nothing and warns.
        image: Container image; for backends that have one.
        limits: What the session may use.

    Raises:
        ConfigError: An argument is wrong.
        SandboxUnavailable: This machine cannot isolate code that way; the message says what to change.
    """
    check_backend(backend, isolation, image)
    from .local import LocalSandbox  # Linux only, and loaded when the first session is opened

    return LocalSandbox(isolation=isolation, limits=limits or Limits())


def shutdown() -> None:
    """Closes the jails of this process; sessions that are still open are lost. Also runs at exit."""
    from .local import shutdown_jails

    shutdown_jails()

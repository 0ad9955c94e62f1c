"""Jails in containers."""

from __future__ import annotations

from ..core.errors import SandboxUnavailable
from .base import SandboxConfig
from .client import JailClient


def start_container(config: SandboxConfig) -> JailClient:
    """Starts a container with a jail in it.

    Raises:
        SandboxUnavailable: There is no engine, image or runtime; the message says what to install.
    """
    raise SandboxUnavailable("sandbox='docker' is not part of this release; use sandbox='local' (Linux)")

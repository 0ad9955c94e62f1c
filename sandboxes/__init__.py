"""Isolated sessions for code that nobody vouches for."""

from .base import ExecResult, ExecStatus, Limits, Sandbox, SandboxConfig
from .opening import open_sandbox, shutdown

__all__ = ["ExecResult", "ExecStatus", "Limits", "Sandbox", "SandboxConfig", "open_sandbox", "shutdown"]

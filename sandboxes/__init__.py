"""Isolated sessions for code that nobody vouches for."""

from .base import ExecResult, ExecStatus, Limits, Sandbox, SandboxConfig
from .opening import open_sandbox, shutdown
from .self_check import self_check

__all__ = ["ExecResult", "ExecStatus", "Limits", "Sandbox", "SandboxConfig", "open_sandbox", "self_check", "shutdown"]

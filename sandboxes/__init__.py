"""Isolated sessions for code that nobody vouches for."""

from .base import ExecResult, ExecStatus, Limits, Sandbox
from .opening import open_sandbox, shutdown

__all__ = ["ExecResult", "ExecStatus", "Limits", "Sandbox", "open_sandbox", "shutdown"]

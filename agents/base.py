"""What an agent is; see `core.agents`, where environments find it too."""

from __future__ import annotations

from ..core.agents import Agent

__all__ = ["Agent"]

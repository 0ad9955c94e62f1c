"""What an agent is: something that reads observations and writes actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Agent(Protocol):
    """Acts in text environments, one episode at a time, from observations alone."""

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Begins an episode with its first observation."""
        ...

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Gives the next action: raw text."""
        ...

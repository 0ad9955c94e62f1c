"""Chat messages as plain dictionaries, the form that chat templates take."""

from __future__ import annotations

from typing import Literal, TypedDict

Role = Literal["system", "user", "assistant", "tool"]


class Message(TypedDict):
    """One chat message: `{"role": "user", "content": "Take x, ..."}`."""

    role: Role
    content: str


def system(content: str) -> Message:
    """A system message."""
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    """A user message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant message: what a policy wrote."""
    return {"role": "assistant", "content": content}


def tool(content: str) -> Message:
    """A tool message: what an environment answered."""
    return {"role": "tool", "content": content}

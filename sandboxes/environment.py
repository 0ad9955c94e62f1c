"""The environment variables that sessions find, whatever their jail runs in."""

from __future__ import annotations

from collections.abc import Mapping


def session_environment(path: str, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Gives the variables of a session.

    Args:
        path: Its PATH.
        given: What it has besides, such as the variables of an image; ours go first.
    """
    return {
        **(given or {}),
        "PATH": path,
        "HOME": "/workspace",
        "TMPDIR": "/tmp",
        "USER": "agent",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }

"""Calls that may hang, with a limit to how long they are waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class StillRunning(Exception):
    """What was called has not come back in time."""


def in_time(perform: Callable[[], Any], timeout_s: float, name: str) -> None:
    """Calls a function in a thread of its own, and raises what it raises.

    Args:
        perform: What to do.
        timeout_s: How long it may take.
        name: Of the thread.

    Raises:
        StillRunning: It has not come back; the thread goes on, and does not keep the interpreter from ending.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            perform()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise StillRunning(f"it was still running after {timeout_s:g} s")
    if raised:
        raise raised[0]

"""Where an exception came from, as a reader wants it: the last line that is not Palaestra's own."""

from __future__ import annotations

import traceback
from pathlib import Path

_OURS = str(Path(__file__).resolve().parents[1])


def raised_at(error: BaseException) -> str:
    """The exception on one line, with the function and line of the environment that raised it."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not str(Path(frame.filename).resolve()).startswith(_OURS)]
    if not theirs:
        return said
    last = theirs[-1]
    return f"{said} (in {last.name}, {Path(last.filename).name} line {last.lineno})"

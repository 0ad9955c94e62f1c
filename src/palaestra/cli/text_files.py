"""Text files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..core.errors import StorageError


def write_text(path: Path, text: str) -> None:
    """Writes the file, making its folder; a reader never sees half of it. A device or pipe is written to as it is.

    Raises:
        StorageError: The file cannot be written (no permission, a folder of that name, full disk).
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(f"cannot write {path}: {error.strerror}") from error

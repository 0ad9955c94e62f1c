"""Which environment a file's episodes were played in, kept in the file's header: it can be made again from that.

The header of an episodes file (`core.records`, `about`) is plain JSON data::

    {"env_id": "CodeSandbox-v0", "env": {"split": "train", "families": ["compose"], "max_turns": 10}}

Files from before headers said so are read as they are; whoever makes their environment again has to name it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, cast

from ..core.errors import TaskError

_LEFT_OUT = ("on_failure", "render_mode")
"""Keywords that say how an environment is used, not what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeOrigin:
    """An environment's id and keywords.

    Example: `EpisodeOrigin(env_id="CodeSandbox-v0", keywords={"split": "heldout", "max_turns": 10})`.
    """

    env_id: str
    keywords: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def about(self) -> dict[str, Any]:
        """What the header of an episodes file says about it, as JSON data.

        Raises:
            TaskError: The keywords name a task file that cannot be read.
        """
        kept = {name: value for name, value in self.keywords.items() if name not in _LEFT_OUT}
        tasks = kept.get("tasks")
        if isinstance(tasks, str | PathLike):
            kept["tasks"] = os.path.abspath(tasks)
        plain: Any = json.loads(json.dumps(kept, default=str))
        return {"env_id": self.env_id, "env": plain, "tasks_sha256": file_sha256(tasks)}


def origin_of(about: Mapping[str, Any] | None) -> EpisodeOrigin | None:
    """Reads a header; None where it does not name an environment.

    Headers of evaluations have `split`, `families`, `levels` and `tasks` beside `env`, which goes first.
    """
    env_id = about and about.get("env_id")
    if not about or not isinstance(env_id, str):
        return None
    beside = {name: about[name] for name in ("split", "families", "levels", "tasks") if about.get(name)}
    keywords: Any = about.get("env")
    given = cast(dict[str, Any], keywords) if isinstance(keywords, dict) else {}
    return EpisodeOrigin(env_id=env_id, keywords={**beside, **given})


def file_sha256(path: object) -> str | None:
    """The SHA-256 of a task file; None for what is no path, about which the environment has its say.

    Raises:
        TaskError: The file cannot be read.
    """
    if not isinstance(path, str | PathLike):
        return None
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise TaskError(f"cannot read tasks {path}: {error.strerror}") from error

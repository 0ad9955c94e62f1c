"""A repository as files of a sandbox session, for shell commands: what a command changes comes back as texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, cast

from ..core.errors import SandboxDied, SandboxError
from ..sandboxes.base import ExecResult, ExecStatus, Limits, Sandbox, SandboxConfig
from ..sandboxes.opening import open_sandbox

MAX_FILES = 200
MAX_FILE_BYTES = 100_000
_LISTING = f"""
def __list_files():
    import hashlib, json, os
    found = {{}}
    for folder, folders, names in os.walk("."):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(names):
            path = os.path.normpath(os.path.join(folder, name))
            try:
                if name.startswith(".") or os.path.islink(path) or not os.path.isfile(path):
                    continue
                if os.path.getsize(path) > {MAX_FILE_BYTES} or len(found) >= {MAX_FILES}:
                    continue
                with open(path, "rb") as file:
                    data = file.read()
                data.decode()
            except (OSError, ValueError):
                continue
            found[path] = hashlib.blake2b(data, digest_size=8).hexdigest()
    return json.dumps(found)
print(__list_files())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandReport:
    """What a shell command gave."""

    output: str
    """What it printed, and how it ended if not with status 0."""
    files: Mapping[str, str]
    """The repository after it: all text files that are not hidden."""


class Workspace:
    """A session whose files follow a repository; opened by the first command.

    Args:
        config: Which sandbox.
        limits: Of each command.
    """

    def __init__(self, config: SandboxConfig, limits: Limits) -> None:
        self._config, self._limits = config, limits
        self._session: Sandbox | None = None
        self._known: dict[str, str] = {}
        """Digests of the files that the session has."""

    def run(self, command: str, files: Mapping[str, str]) -> CommandReport:
        """Runs a command on a repository.

        Raises:
            SandboxDied: Infrastructure failed; the next command finds a fresh session.
        """
        if self._session is None or not self._session.alive:
            self.close()
            self._session, self._known = open_sandbox(self._config, limits=self._limits), {}
        session = self._session
        try:
            self._push(session, files)
            result = session.run(["bash", "-c", command])
            after = self._pull(session, files) if result.status is not ExecStatus.SANDBOX_DIED else files
        except SandboxError as error:  # the command ended its session, or filled it
            if isinstance(error, SandboxDied):
                self._session = None
                raise
            self.close()
            return CommandReport(output=f"error: {error}; its changes are lost", files=files)
        if result.status is ExecStatus.SANDBOX_DIED:
            self._session = None
            raise SandboxDied(result.message or "the sandbox died")
        if not session.alive:
            self.close()
        return CommandReport(output=_shown(result), files=after)

    def fork(self, n: int) -> list[Workspace]:
        """Gives `n` independent copies; raises `SandboxDied` when infrastructure failed."""
        copies = [Workspace(self._config, self._limits) for _ in range(n)]
        if self._session is not None and self._session.alive:
            for copy, session in zip(copies, self._session.fork(n), strict=True):
                copy._session, copy._known = session, dict(self._known)
        return copies

    def close(self) -> None:
        """Ends the session; the next command opens another one."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _push(self, session: Sandbox, files: Mapping[str, str]) -> None:
        for path, text in files.items():
            digest = _digest(text)
            if self._known.get(path) != digest:
                session.write_file(path, text.encode("utf-8", "replace"))
                self._known[path] = digest

    def _pull(self, session: Sandbox, files: Mapping[str, str]) -> dict[str, str]:
        """The repository as the session has it; only what changed is read."""
        listed = session.exec(_LISTING)
        if listed.status is ExecStatus.SANDBOX_DIED:
            raise SandboxDied(listed.message or "the sandbox died")
        digests = _read_listing(listed)
        after: dict[str, str] = {}
        for path, digest in digests.items():
            if self._known.get(path) == digest and path in files:
                after[path] = files[path]
            else:
                after[path] = session.read_file(path)[:MAX_FILE_BYTES].decode("utf-8", "replace")
        self._known = {path: _digest(text) for path, text in after.items()}
        return after


def _read_listing(listed: ExecResult) -> dict[str, str]:
    try:
        found: Any = json.loads(listed.stdout)
    except ValueError:
        found = None
    if not listed.ok or not isinstance(found, dict):
        raise SandboxError("the session cannot list its files")
    named = cast(dict[str, Any], found)
    return {path: str(digest) for path, digest in named.items()}


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _shown(result: ExecResult) -> str:
    output = (result.stdout + result.stderr).strip("\n")
    if result.status is ExecStatus.ERROR:
        ending = f"exit status {result.exit_status}"
    else:
        ending = "" if result.ok else result.message or f"error: {result.status}"
    return "\n".join(part for part in (output, ending) if part)

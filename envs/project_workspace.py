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
MAX_BYTES = 8 << 20
"""What is read back after one command, at most."""
_LISTING = f"""
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
print(json.dumps(found))
"""
_LOST = "the session has ended, and what the command changed is lost"


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
            result = _checked(session.run(["bash", "-c", command]))
            if session.alive:
                return CommandReport(output=_shown(result), files=self._pull(session, files))
            said = f"{_shown(result)}\n{_LOST}"
        except SandboxDied:
            self._session = None
            raise
        except SandboxError as error:  # the command filled its session, or left something that ended it
            said = f"error: {error}; what the command changed is lost"
        self.close()
        return CommandReport(output=said.strip("\n"), files=files)

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
        listed = _checked(session.run(["python3", "-I", "-S", "-c", _LISTING]))  # modules of the agent's stay out
        after: dict[str, str] = {}
        left = MAX_BYTES
        for path, digest in _read_listing(listed).items():
            if self._known.get(path) == digest and path in files:
                after[path] = files[path]
                continue
            data = session.read_file(path)
            left -= len(data)
            if left < 0:
                raise SandboxError(f"the command changed more than {MAX_BYTES >> 20} MiB of text files")
            after[path] = data[:MAX_FILE_BYTES].decode("utf-8", "replace")
        self._known = {path: _digest(text) for path, text in after.items()}
        return after


def _checked(result: ExecResult) -> ExecResult:
    if result.status is ExecStatus.SANDBOX_DIED:
        raise SandboxDied(result.message or "the sandbox died")
    return result


def _read_listing(listed: ExecResult) -> dict[str, str]:
    try:
        found: Any = json.loads(listed.stdout)
    except ValueError:
        found = None
    if not listed.ok or not isinstance(found, dict):
        raise SandboxError("the session cannot list its files")
    named = cast(dict[str, Any], found)
    return {path: str(digest) for path, digest in list(named.items())[:MAX_FILES]}


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _shown(result: ExecResult) -> str:
    output = (result.stdout + result.stderr).strip("\n")
    if result.status is ExecStatus.ERROR:
        ending = f"exit status {result.exit_status}"
    else:
        ending = "" if result.ok else result.message or f"error: {result.status}"
    return "\n".join(part for part in (output, ending) if part)

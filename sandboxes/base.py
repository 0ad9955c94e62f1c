"""What a sandbox is: limits, results, and the protocol of a session. `opening` opens one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Protocol, Self

from ..core.errors import ConfigError, did_you_mean

ISOLATIONS: Mapping[str, Sequence[str]] = {
    "local": ("auto", "namespaces", "landlock", "none"),
    "docker": ("auto", "uid", "landlock"),
}
"""The modes of each backend; `auto` takes the first of the others that works, and never `none`."""
DEFAULT_IMAGE = "python:3.12-slim"


class ExecStatus(StrEnum):
    """How an execution ended. Only `SANDBOX_DIED` is a failure of infrastructure."""

    OK = "ok"
    ERROR = "error"
    """The code raised, or a command left with a non-zero exit status."""
    TIMEOUT = "timeout"
    """Too much wall-clock or CPU time."""
    KILLED = "killed"
    """The session's process ended itself or was killed (`os._exit`, a crash, too many processes)."""
    OUTPUT_LIMIT = "output_limit"
    DISK_LIMIT = "disk_limit"
    MEMORY_LIMIT = "memory_limit"
    DEAD = "dead"
    """Not run: the session had ended before; `reset()` gives a fresh one."""
    SANDBOX_DIED = "sandbox_died"
    """The sandbox itself failed; the code is not to blame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one session may use. All sizes are binary (MiB = 2**20 bytes)."""

    timeout_s: float = 10.0
    """Wall-clock time of one execution, after which it is interrupted."""
    grace_s: float = 0.5
    """Time that an interrupted execution has to stop before its session is killed."""
    cpu_s: float | None = None
    """CPU time of one execution, over all its processes; None means no limit beyond `timeout_s`.

    What an execution leaves running in its session (threads, background processes) may use as much again before the
    next one; then the session ends. The other limits hold there as they do during an execution.
    """
    memory_mib: int = 512
    """Memory of the session's whole process tree."""
    processes: int = 64
    """Processes and threads at once."""
    workspace_mib: int = 64
    tmp_mib: int = 64
    """Size of /tmp, which is also /dev/shm."""
    inodes: int = 20_000
    """Files and directories, in the workspace and in /tmp each."""
    output_kib: int = 64
    """How much of stdout and of stderr is kept each; of more, the head and the tail are."""
    output_hard_mib: int = 16
    """Output at which an execution is stopped."""

    def __post_init__(self) -> None:
        check_seconds("timeout_s", self.timeout_s)
        if self.cpu_s is not None:
            check_seconds("cpu_s", self.cpu_s)
        for name in _WHOLE:
            value: object = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name}={value!r}: must be a whole number")
            if not 0 < value <= _GREATEST:
                raise ConfigError(f"{name}={value}: must be > 0 and at most {_GREATEST}")
        grace_s: object = self.grace_s
        if type(grace_s) not in (int, float) or not 0 <= self.grace_s <= 60:
            raise ConfigError(f"grace_s={grace_s}: must be in [0, 60]")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Gives limits from plain data; names that are left out keep their defaults.

        Raises:
            ConfigError: An unknown name (the nearest valid one is suggested) or a value out of range.
        """
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise ConfigError(f"limits.{name}: unknown limit{did_you_mean(str(name), names)}")
        return cls(**values)


def check_seconds(name: str, value: object) -> float:
    """Gives a time that may be waited for.

    Raises:
        ConfigError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r}: must be a number")
    if value <= 0:
        raise ConfigError(f"{name}={value}: must be > 0")
    return value


_GREATEST = (1 << 31) - 1
_WHOLE = ("memory_mib", "processes", "workspace_mib", "tmp_mib", "inodes", "output_kib", "output_hard_mib")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """What one execution gave.

    Example: `sandbox.exec("1/0")` gives `ExecResult(stdout="", stderr="Traceback ...", exit_status=1, status="error",
    seconds=0.0004, message="ZeroDivisionError: division by zero")`.
    """

    stdout: str
    stderr: str
    exit_status: int | None
    """0 for success; negative = killed by that signal; None when nothing ran."""
    status: ExecStatus
    seconds: float
    """Wall-clock time inside the sandbox."""
    message: str
    """One readable line about what went wrong; empty when all is well."""

    @property
    def ok(self) -> bool:
        """Whether the code ran to its end without an error."""
        return self.status is ExecStatus.OK


class Sandbox(Protocol):
    """One session: an interpreter whose state is kept, and a workspace of its own. Several threads may hold several."""

    def exec(self, code: str, timeout_s: float | None = None) -> ExecResult:
        """Runs Python code in the session; the last expression is echoed as in a REPL."""
        ...

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        """Runs a command in the workspace."""
        ...

    def write_file(self, path: str, data: bytes) -> None:
        """Writes a file of the workspace, with the directories above it."""
        ...

    def read_file(self, path: str) -> bytes:
        """Gives the content of a file of the workspace."""
        ...

    def fork(self, n: int) -> Sequence[Sandbox]:
        """Gives `n` independent live copies, where the backend can."""
        ...

    def reset(self) -> None:
        """Gives this object a fresh session in an empty workspace."""
        ...

    def close(self) -> None:
        """Ends the session and all its processes; may be called twice."""
        ...

    @property
    def alive(self) -> bool:
        """False once the session ended or was closed; `reset()` revives it."""
        ...

    def __enter__(self) -> Sandbox: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """Which sandbox to open. Sandboxes with equal configurations share a jail.

    Example: `SandboxConfig(backend="docker", image="my-task:1", setup="cp -r /repo/. .")`.

    Raises:
        ConfigError: An unknown name, or a combination that has no meaning.
    """

    backend: str = "local"
    """`"local"` (Linux) or `"docker"`."""
    isolation: str = "auto"
    """What keeps sessions apart; see `ISOLATIONS`. `"none"` isolates nothing, and warns."""
    image: str | None = None
    """Container image, with a `python3` of 3.11 or newer; None means `DEFAULT_IMAGE`."""
    runtime: str | None = None
    """Container runtime that the engine knows, such as `"runsc"` or `"kata"`; None means the engine's default."""
    setup: str | None = None
    """Shell command that a session runs in its empty workspace before anything else, within two minutes. Sessions that
    grade functions do not run it."""

    def __post_init__(self) -> None:
        if self.backend not in ISOLATIONS:
            raise ConfigError(f"sandbox={self.backend!r}: unknown backend{did_you_mean(self.backend, ISOLATIONS)}")
        modes = ISOLATIONS[self.backend]
        if self.isolation not in modes:
            others = [mode for names in ISOLATIONS.values() for mode in names]
            hint = did_you_mean(self.isolation, modes)
            if self.isolation in others:
                hint = f"; sandbox={self.backend!r} has {', '.join(modes)}"
            raise ConfigError(f"isolation={self.isolation!r}: unknown mode{hint}")
        for name in ("image", "runtime", "setup"):
            value: object = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise ConfigError(f"{name}={value!r}: must be text")
        for name in ("image", "runtime"):
            value = getattr(self, name)
            if value is not None and self.backend != "docker":
                raise ConfigError(f"{name}={value!r}: only sandbox='docker' takes it")

"""The one error tree. Each class is also the standard-library kind that it specialises.

    PalaestraError
    ├── ConfigError (ValueError)            a recipe, keyword or command-line value is wrong
    ├── TaskError (ValueError)              a task or task file is wrong
    ├── RecordError (ValueError)            a stored file is damaged or of another schema
    ├── ModelError (ValueError)             a model or tokenizer cannot be loaded or used
    ├── CheckpointError (ValueError)        a checkpoint is missing, damaged or of another run
    ├── StorageError (OSError)              a run folder cannot be written (permissions, full disk)
    ├── SandboxError (RuntimeError)
    │   ├── SandboxUnavailable              this machine cannot isolate code; the message says what to install
    │   └── SandboxDied                     the sandbox itself failed: infrastructure, never the agent's fault
    ├── RankFailed (RuntimeError)           a training process failed or was killed
    ├── RunStopped (RuntimeError)           the user stopped a run; its checkpoint can be resumed
    └── EnvironmentFailure (RuntimeError)   an episode cannot go on because infrastructure failed

All of them can be pickled, so that they cross process boundaries unchanged.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PalaestraError(Exception):
    """Base of every error that Palaestra raises on purpose. Its text is one line that names the fix."""


class ConfigError(PalaestraError, ValueError):
    """A configuration value is wrong."""


class TaskError(PalaestraError, ValueError):
    """A task or a task file is wrong."""


class RecordError(PalaestraError, ValueError):
    """A stored record cannot be read."""


class ModelError(PalaestraError, ValueError):
    """A model or a tokenizer cannot be loaded or used."""


class CheckpointError(PalaestraError, ValueError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class StorageError(PalaestraError, OSError):
    """A folder or file cannot be written."""


class SandboxError(PalaestraError, RuntimeError):
    """Base of what goes wrong with sandboxes themselves."""


class SandboxUnavailable(SandboxError):
    """No isolation of the requested kind works on this machine."""


class SandboxDied(SandboxError):
    """The sandbox died or stopped answering: a failure of infrastructure."""


class RankFailed(PalaestraError, RuntimeError):
    """One of several training processes failed or was killed; the others were stopped."""


class RunStopped(PalaestraError, RuntimeError):
    """The user stopped a run at the end of a step; the message says how to resume it."""


class EnvironmentFailure(PalaestraError, RuntimeError):
    """An episode cannot go on because infrastructure failed; it must be retried or masked, never rewarded.

    Args:
        kind: Short machine-readable class of the failure, such as `"sandbox_died"`.
        message: One readable line.
        retryable: Whether running the same episode again may succeed.
    """

    def __init__(self, kind: str, message: str, retryable: bool = True) -> None:
        super().__init__(kind, message, retryable)
        self.kind = kind
        self.message = message
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Gives `"; did you mean 'x'?"` for the nearest valid name, or the list of valid names when none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; valid names: {', '.join(names)}"

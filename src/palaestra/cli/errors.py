"""How errors reach the user: one line on stderr and exit status 2; bugs keep their traceback."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from ..core.errors import PalaestraError, RunStopped
from .plain_text import one_line

DEBUG_OPTION = "--debug"
FAILED = 2
INTERRUPTED = 130
PIPE_CLOSED = 1
"""The reader of our output went away; typer and rich end with this status too."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_EXTRAS = {
    "train": ("torch", "transformers", "tokenizers", "pydantic", "tomli_w", "tensorboard", "safetensors", "peft"),
    "report": ("jinja2", "matplotlib", "pygments"),
}
"""Optional packages by the extra that installs them."""


class ErrorReportingGroup(TyperGroup):
    """The top-level command: prints a `PalaestraError` as one line and gives it exit status 2.

    `--debug` may stand anywhere on the line, so that it can be appended to the command that failed.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Moves `--debug` to the front, where the group's own parser finds it."""
        if DEBUG_OPTION in args:
            args = [DEBUG_OPTION, *(arg for arg in args if arg != DEBUG_OPTION)]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's last moments
            return result
        except BrokenPipeError:
            _silence_stdout()
            raise typer.Exit(PIPE_CLOSED) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except RunStopped as stop:
            typer.echo(one_line(str(stop)), err=True)
            raise typer.Exit(INTERRUPTED) from None
        except PalaestraError as error:
            if _traceback_wanted(ctx):
                raise
            notes = getattr(error, "__notes__", None)  # the traceback of a training process
            fail(f"{error} (add {DEBUG_OPTION} to see where)" if notes else str(error))
        except OSError as error:
            if error.errno not in _NO_SPACE or error.filename is not None or _traceback_wanted(ctx):
                raise
            _silence_stdout()
            fail(f"cannot write the output: {error.strerror}")
        except ModuleNotFoundError as error:
            extra = _extra_of(error.name)
            if extra is None or _traceback_wanted(ctx):
                raise
            fail(f"{error.name} is not installed; run: pip install 'palaestra[{extra}]'")


def fail(message: str) -> None:
    """Prints `error: message` on stderr and ends the command with status 2."""
    typer.echo(f"error: {one_line(message)}", err=True)
    raise typer.Exit(FAILED) from None


def _traceback_wanted(ctx: Any) -> bool:
    return bool(ctx.params.get("debug")) or os.environ.get("PALAESTRA_TRACEBACK", "") not in ("", "0")


def _extra_of(module: str | None) -> str | None:
    root = (module or "").partition(".")[0]
    return next((extra for extra, modules in _EXTRAS.items() if root in modules), None)


def _silence_stdout() -> None:
    """Points stdout at nothing, so that the interpreter's last flush does not complain."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)

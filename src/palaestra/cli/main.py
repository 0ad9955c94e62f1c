"""The command `palaestra`: its sub-commands, and how errors reach the user.

Command modules import what they need when they run, so that `palaestra --help` answers without torch.
"""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from . import check, compare, demos, doctor, envs, evaluate, play, replay, report, serve, train
from .errors import DEBUG_OPTION, ErrorReportingGroup

app = typer.Typer(
    name="palaestra",
    cls=ErrorReportingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: `palaestra train quickstart` trains a small coding agent in minutes.",
)
app.command("envs")(envs.envs)
app.command("play")(play.play)
app.command("check")(check.check)
app.command("demos")(demos.demos)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("serve")(serve.serve)
app.command("replay")(replay.replay)
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"palaestra {importlib.metadata.version('palaestra')}")
        raise typer.Exit


@app.callback()
def palaestra(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG_OPTION, help="Show the traceback of an error (also: PALAESTRA_TRACEBACK=1).")
    ] = False,
) -> None:
    """Environments, rollouts and learners for agentic RL with language models.

    Every command explains itself: `palaestra COMMAND --help`.
    """


def main() -> None:
    """Runs the command line and exits with its status.

    0 done, 2 wrong input or a failure, 130 interrupted, 1 the reader of the output went away, `doctor` found that code
    cannot be isolated, `check` found something, or `replay` came to a difference.
    """
    app(prog_name="palaestra")

"""`palaestra doctor`: what this machine can use, and how to get what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .findings import Finding
from .plain_text import one_line

if TYPE_CHECKING:
    from rich.table import Table

Probe = Callable[[], Iterable[Finding]]
NOTHING_ISOLATES = 1
"""Exit status when code cannot be isolated in any way."""
_MARKS = {True: ("yes", "green"), False: ("no", "red"), None: ("", "")}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON instead of a table.")] = False,
) -> None:
    """Say what this machine can use, and how to get what is missing.

    Each isolation mode and each browser is tried for real: a session is opened and computes something. Nothing is
    installed or changed.

    Examples:

    ```
    palaestra doctor
    palaestra doctor --json
    ```

    **Output**: a table on the screen, or JSON: `{"ok": ..., "findings": [{"section", "name", "works", "detail", "fix",
    "seconds"}, ...]}`. The exit status is 0 if code can be isolated in at least one way, else 1.
    """
    from . import browser_probes, machine_probes, sandbox_probes

    findings = examine(
        (
            sandbox_probes.try_isolations,
            sandbox_probes.find_engines,
            browser_probes.find_browsers,
            machine_probes.describe_learning,
            machine_probes.describe_machine,
            machine_probes.describe_packages,
        )
    )
    show(findings, as_json)
    if not can_isolate(findings):
        raise typer.Exit(NOTHING_ISOLATES)


def examine(probes: Iterable[Probe]) -> list[Finding]:
    """Gives what the probes find; one that fails is a finding, too."""
    findings: list[Finding] = []
    for probe in probes:
        try:
            findings += probe()
        except Exception as error:  # whatever is broken on a machine is what its doctor is asked about
            detail = one_line(f"{type(error).__name__}: {error}")
            name = getattr(probe, "__name__", "probe").replace("_", " ")
            findings.append(Finding(section="failed", name=name, works=False, detail=detail))
    return findings


def can_isolate(findings: Iterable[Finding]) -> bool:
    """Whether an isolation mode works."""
    return any(finding.works for finding in findings if finding.section == "isolation")


def show(findings: Sequence[Finding], as_json: bool) -> None:
    """Prints findings as a table or as JSON."""
    if as_json:
        told: dict[str, Any] = {"ok": can_isolate(findings), "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(told, indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(_table(findings))
    if not can_isolate(findings):
        console.print("Code cannot be isolated on this machine yet: environments that run code will refuse to start.")


def _table(findings: Sequence[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, expand=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", overflow="fold", max_width=32)
    table.add_column(ratio=1, overflow="fold")
    for i, finding in enumerate(findings):
        starts = i == 0 or findings[i - 1].section != finding.section
        ends = i + 1 < len(findings) and findings[i + 1].section != finding.section
        mark, style = _MARKS[finding.works]
        row = Text(finding.section if starts else ""), Text(mark, style), Text(finding.name), Text(_said(finding))
        table.add_row(*row, end_section=ends)
    return table


def _said(finding: Finding) -> str:
    """Detail, time and fix, as far as there are any."""
    opened = "" if finding.seconds is None else f"opened in {finding.seconds:.2f} s"
    lines = [", ".join(part for part in (finding.detail, opened) if part), finding.fix and f"-> {finding.fix}"]
    return "\n".join(line for line in lines if line)

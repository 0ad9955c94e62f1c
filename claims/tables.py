"""Writes the measured figures of claims/*.json into README.md and docs/*.md, so that no number is typed by hand.

    python claims/tables.py            rewrites every marked table
    python claims/tables.py --check    fails when one differs from its claim file

A document marks a place with two comment lines, `<!-- claims: NAME -->` and `<!-- /claims -->`; what stands between
them is the table of targets of claims/NAME.json, with the machine and revision that it was measured on.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_MET = {True: "yes", False: "**no**", None: "-"}
"""None: a figure that is reported beside the others and has no target."""
_BLOCK = re.compile(r"(?P<start><!-- claims: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(?P<end><!-- /claims -->)", re.DOTALL)


def table(claim: dict[str, Any]) -> str:
    """The targets of one claim file as a Markdown table, and a line that says where they come from."""
    lines = ["| figure | target | measured | met |", "|---|---|---|---|"]
    for name, entry in claim["targets"].items():
        target, value = shown(entry["target"]), shown(entry["value"])
        lines.append(f"| {name} | {target} | {value} | {_MET[entry['met']]} |")
    machine, versions = claim["machine"], claim["versions"]
    software = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch") if name in versions)
    revision = claim["revision"][:10] + (" with uncommitted changes" if claim["uncommitted_changes"] else "")
    origin = f"Measured on {claim['date']} at revision {revision} by `benchmarks/{claim['benchmark']}`"
    lines += ["", f"{origin}: {machine['processor']}, {machine['cores']} cores, {software}."]
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A figure as a reader wants it: three significant digits, lists joined."""
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value)
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def with_tables(text: str, claims: Path) -> str:
    """A document with its marked tables written anew."""

    def replace(match: re.Match[str]) -> str:
        path = claims / f"{match['name']}.json"
        if not path.exists():
            sys.exit(f"error: the table {match['name']!r} has no claim file {path}")
        return match["start"] + table(json.loads(path.read_text())) + match["end"]

    return _BLOCK.sub(replace, text)


def documents(root: Path) -> list[Path]:
    """Every document that may hold a marked table."""
    return [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a table is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args()
    stale: list[str] = []
    for path in documents(options.root):
        text = path.read_text()
        renewed = with_tables(text, options.root / "claims")
        if renewed != text:
            stale.append(path.name)
            if not options.check:
                path.write_text(renewed)
    if stale and options.check:
        sys.exit(f"error: tables differ from claims/*.json in {', '.join(stale)}; run: python claims/tables.py")


if __name__ == "__main__":
    main()

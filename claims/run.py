"""Runs benchmarks and keeps what they measured, with all that a reader needs to judge it.

    python claims/run.py --out claims            every script of benchmarks/, into claims/NAME.json
    python claims/run.py --out FOLDER --only learning -- --only quickstart    one of them, with arguments of its own
    python claims/run.py --out claims --only learning --name families -- --only trace project    into families.json

Each script takes `--json FILE` and writes its figures and `"targets": {name: {"target", "value", "met"}}`. The claim
file adds the git revision, versions, machine, arguments and duration. A failing script fails the run, after the others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("gymnasium", "numpy", "torch", "transformers", "tokenizers", "trl")


def git(*arguments: str) -> str:
    """What a git command prints, or "" outside a checkout."""
    try:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return result.stdout.strip()


def provenance() -> dict[str, Any]:
    """Revision, versions and machine: what decides whether a figure can be compared with another."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "revision": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions,
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "memory_gib": memory_gib(),
            "system": f"{platform.system()} {platform.release()}",
        },
    }


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def memory_gib() -> float | None:
    """The machine's memory in GiB, where the system tells."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError):
        return None


def run_benchmark(script: Path, arguments: Sequence[str], target: Path) -> bool:
    """Runs one script; writes its claim file, and gives whether it succeeded."""
    print(f"== {script.name} {' '.join(arguments)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        start = time.monotonic()
        status = subprocess.run([sys.executable, script, "--json", figures, *arguments], check=False).returncode
        seconds = round(time.monotonic() - start, 1)
        if not figures.exists():
            print(f"error: {script.name} ended with status {status} and wrote no figures", file=sys.stderr)
            return False
        result = json.loads(figures.read_text())
    claim = {"benchmark": script.name, "arguments": list(arguments), "seconds": seconds, **provenance()}
    claim |= {name: value for name, value in result.items() if name not in claim}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(claim, indent=1, ensure_ascii=False) + "\n")
    return status == 0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the claim files")
    parser.add_argument("--benchmarks", type=Path, default=ROOT / "benchmarks", help="folder of the scripts")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="scripts to run, without .py")
    parser.add_argument("--name", help="of the claim file, where it is not the only script's own")
    parser.add_argument("arguments", nargs="*", help="after --: arguments for the scripts")
    options = parser.parse_args()
    scripts = {path.stem: path for path in sorted(options.benchmarks.glob("[!_]*.py"))}
    unknown = sorted(set(options.only) - set(scripts))
    if unknown or not scripts:
        parser.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(scripts)}")
    if options.name and len(options.only) != 1:
        parser.error("--name: needs --only with one script")
    failed = [
        name
        for name in options.only or scripts
        if not run_benchmark(scripts[name], options.arguments, options.out / f"{options.name or name}.json")
    ]
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

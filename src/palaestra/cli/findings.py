"""What `palaestra doctor` finds, and the pip line that brings a package."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass

_REQUIREMENT = re.compile(r"^([\w.-]+)[^;]*(?:;.*extra\s*==\s*[\"']([\w-]+)[\"'])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that this machine has, or lacks.

    Example: `Finding(section="isolation", name="docker/uid", works=False, detail="no engine answers", fix="...")`.
    """

    section: str
    name: str
    works: bool | None = None
    """None for a mere fact."""
    detail: str = ""
    fix: str = ""
    """One line that says how to get it; empty when nothing is missing."""
    seconds: float | None = None
    """How long it took to open, where it was tried."""


def extras() -> Mapping[str, tuple[str, ...]]:
    """The packages of each of our extras; none where we are not installed as a package."""
    found: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires("palaestra") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match and match[2] and match[1] != "palaestra":
            found.setdefault(match[2], []).append(match[1])
    return {extra: tuple(packages) for extra, packages in found.items()}


def version_of(package: str) -> str | None:
    """The installed version of a package; None if it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pip_line(package: str) -> str:
    """How to install a package: with the extra that it belongs to, if there is one."""
    extra = next((extra for extra, packages in extras().items() if package in packages), None)
    return f"pip install 'palaestra[{extra}]'" if extra else f"pip install {package}"

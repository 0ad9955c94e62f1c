"""Facts about this machine: what learning runs on, what the kernel offers, and which packages are installed."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from .findings import Finding, extras, pip_line, version_of
from .plain_text import one_line

RUN_FOLDER = "runs"
_LANDLOCK_CREATE_RULESET = 444  # the same number on every architecture
_FOR_DEVELOPERS = ("test", "lint", "dev", "all")
_GIB = 1 << 30
_DELEGATE = (
    "run as root, or below a service manager that delegates groups to you, for example with "
    "`systemd-run --user --scope -p Delegate=yes COMMAND`"
)


def describe_learning(load_torch: Any = None) -> Iterator[Finding]:
    """What models are trained on: torch, its device, and whether bfloat16 has units of its own there.

    Args:
        load_torch: Gives the module; an import by default.
    """
    try:
        torch = (load_torch or _load_torch)()
    except ModuleNotFoundError:
        yield Finding(section="learning", name="torch", works=False, detail="not installed", fix=pip_line("torch"))
        return
    except Exception as error:  # a build for another machine fails in many ways
        detail = f"it cannot be loaded: {type(error).__name__}: {error}"
        yield Finding(section="learning", name="torch", works=False, detail=detail, fix=pip_line("torch"))
        return
    yield Finding(section="learning", name="torch", works=True, detail=str(torch.__version__))
    yield Finding(section="learning", name="device", detail=_device(torch))


def _load_torch() -> Any:
    import torch

    return torch


def _device(torch: Any) -> str:
    from ..learners.precision import has_bfloat16_units

    if torch.cuda.is_available():
        kind, name = "cuda", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    elif torch.backends.mps.is_available():
        kind, name = "mps", "Apple GPU"
    else:
        kind, name = "cpu", platform.processor() or platform.machine()
    units = "with" if has_bfloat16_units(torch.device(kind)) else "without"
    return f"{kind} ({name}), {units} bfloat16 matrix units"


def describe_machine(run_folder: str = RUN_FOLDER) -> Iterator[Finding]:
    """Processors, memory, disk space, and what the kernel offers to sandboxes."""
    yield Finding(section="machine", name="Python", detail=f"{platform.python_version()}, {sys.executable}")
    yield Finding(
        section="machine", name="system", detail=f"{platform.system()} {platform.release()}, {platform.machine()}"
    )
    yield Finding(section="machine", name="processors", detail=_processors())
    yield Finding(section="machine", name="memory", detail=_memory())
    for folder in (run_folder, tempfile.gettempdir()):
        yield Finding(section="machine", name=f"disk at {folder}", detail=_disk(folder))
    if platform.system() == "Linux":
        yield _landlock()
        yield _control_groups()


def _processors() -> str:
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    return f"{usable} of {total}" if usable != total else f"{total}"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    except (AttributeError, ValueError, OSError):
        return "unknown"
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024 / _GIB
    except (OSError, StopIteration):
        return f"{total:.1f} GiB"
    return f"{available:.1f} GiB free of {total:.1f} GiB"


def _disk(folder: str) -> str:
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        return f"unknown: {error.strerror}"
    return f"{usage.free / _GIB:.1f} GiB free of {usage.total / _GIB:.1f} GiB"


def _landlock() -> Finding:
    version = ctypes.CDLL(None, use_errno=True).syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version > 0:
        return Finding(section="machine", name="Landlock", works=True, detail=f"ABI {version}")
    detail = "not in this kernel, or switched off"
    fix = "it needs Linux 5.13 or newer, with landlock among the names of the boot parameter lsm="
    return Finding(section="machine", name="Landlock", works=False, detail=detail, fix=fix)


def _control_groups(version: Callable[[], int] | None = None) -> Finding:
    """Says how the memory and the CPU time of local sessions are counted."""
    if version is None:
        from ..sandboxes.control_groups import version
    try:
        detail = f"count what sessions use, version {version()}"
        return Finding(section="machine", name="control groups", works=True, detail=detail)
    except OSError as error:
        detail = f"sessions are counted by watching their processes: {one_line(error.strerror or str(error))}"
        return Finding(section="machine", name="control groups", works=False, detail=detail, fix=_DELEGATE)


def describe_packages() -> Iterator[Finding]:
    """Our version, and for each extra what is there of it."""
    yield Finding(section="packages", name="palaestra", works=True, detail=__version__)
    for extra, packages in extras().items():
        if extra not in _FOR_DEVELOPERS:
            yield _describe_extra(extra, packages)


def _describe_extra(extra: str, packages: Sequence[str]) -> Finding:
    versions = {package: version_of(package) for package in packages}
    missing = [package for package, version in versions.items() if version is None]
    detail = ", ".join(f"{package} {version or '(missing)'}" for package, version in versions.items())
    fix = f"pip install 'palaestra[{extra}]'" if missing else ""
    return Finding(section="packages", name=f"[{extra}]", works=not missing, detail=detail, fix=fix)

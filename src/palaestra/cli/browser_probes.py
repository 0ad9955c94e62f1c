"""Tries the browsers of this machine: Playwright, its own Chromium, and those of the system."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .findings import Finding, pip_line, version_of
from .plain_text import one_line

_SYSTEM_NAMES = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "chrome-headless-shell",
    "google-chrome",
    "google-chrome-stable",
)
_PLAYWRIGHT_NAMES = ("headless_shell", "chrome-headless-shell", "chrome", "Chromium", "Google Chrome for Testing")
_CACHES = {"Darwin": "~/Library/Caches", "Windows": "~/AppData/Local"}
_PAGE = "data:text/html,<p></p><script>document.querySelector('p').textContent = 'gives ' + 6 * 7</script>"
_TIMEOUT_S = 30.0


def find_browsers(
    paths: Sequence[str] | None = None, dump_page: Callable[[str], str] | None = None
) -> Iterator[Finding]:
    """Says whether Playwright is installed, and has each Chromium that is found run a script.

    Args:
        paths: Executables; those of Playwright and of the system by default.
        dump_page: Has an executable load a page and gives its text; raises OSError or a subprocess error.
    """
    version = version_of("playwright")
    fix = "" if version else pip_line("playwright")
    yield Finding(section="browsers", name="playwright", works=version is not None, detail=version or "", fix=fix)
    found = list(paths) if paths is not None else [*_of_playwright(), *_of_the_system()]
    for path in found:
        yield _try_browser(path, dump_page or _dump_page)
    if not found:
        command = "playwright install --only-shell chromium" if version else "sudo apt install chromium-headless-shell"
        yield Finding(section="browsers", name="chromium", works=False, detail="none found", fix=f"`{command}`")


def _of_playwright() -> list[str]:
    cache = os.path.expanduser(_CACHES.get(platform.system(), "~/.cache"))
    folder = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or os.path.join(cache, "ms-playwright"))
    executables = [path for name in _PLAYWRIGHT_NAMES for path in folder.glob(f"chromium*/**/{name}")]
    return [str(path) for path in executables if path.is_file() and os.access(path, os.X_OK)]


def _of_the_system() -> list[str]:
    return [path for name in _SYSTEM_NAMES if (path := shutil.which(name))]


def _try_browser(path: str, dump_page: Callable[[str], str]) -> Finding:
    started = time.perf_counter()
    try:
        text = dump_page(path)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(section="browsers", name=path, works=False, detail=one_line(str(error))[:200])
    if "gives 42" not in text:
        return Finding(section="browsers", name=path, works=False, detail="it started, but ran no script")
    return Finding(section="browsers", name=path, works=True, seconds=time.perf_counter() - started)


def _dump_page(path: str) -> str:
    as_root = ["--no-sandbox"] if getattr(os, "getuid", lambda: 1)() == 0 else []  # its own sandbox refuses root
    with tempfile.TemporaryDirectory(prefix="palaestra-", ignore_cleanup_errors=True) as profile:
        command = [path, "--headless", "--disable-gpu", f"--user-data-dir={profile}", *as_root, "--dump-dom", _PAGE]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
        ) as process:
            try:
                page, complaints = process.communicate(timeout=_TIMEOUT_S)
            finally:
                _kill_group(process)
    if process.returncode:
        last = complaints.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(f"it ended with status {process.returncode}: {last}")
    return page.decode(errors="replace")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if not hasattr(os, "killpg"):
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)

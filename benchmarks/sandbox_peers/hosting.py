"""Environments of the peers, and worker processes in which contenders run and are timed (`worker.py`)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .contenders import PEERS, Contender, Peer

FOLDER = Path(__file__).parent
STARTING_S = 300.0
"""Time for a worker to open all its callers; the slowest peer takes several seconds for each."""


class Unavailable(Exception):
    """A contender cannot take part; the message says why."""


def installed(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there.

    Raises:
        Unavailable: It cannot be installed.
    """
    home, wanted = folder / name, repr(PEERS[name])
    python, mark = home / "bin" / "python", home / "installed"
    if mark.exists() and mark.read_text() == wanted:
        return python
    print(f"installing {PEERS[name].package} into {home}", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    for command in _installation(PEERS[name], home, python):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_without_pythonpath())
        if done.returncode:
            raise Unavailable(f"not installed: {_last_line(done.stderr or done.stdout)}")
    mark.write_text(wanted)
    return python


def _installation(peer: Peer, home: Path, python: Path) -> list[list[str]]:
    """The commands that make an environment without pip of its own, whose start-up files would slow its interpreter."""
    system = peer.on_system_python and Path("/usr/bin/python3").exists()
    base = "/usr/bin/python3" if system else sys.executable
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install", "--quiet"]
    dependencies = [] if peer.with_dependencies else ["--no-deps"]
    make = [base, "-m", "venv", "--without-pip", *(["--copies"] if system else []), str(home)]
    return [make, [*pip, *dependencies, peer.package]]


def _without_pythonpath() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1][:300]


class Worker:
    """A contender in a process of its own, which takes orders and gives answers.

    Raises:
        Unavailable: Here and in `ask`: it failed, or did not answer in time.
    """

    def __init__(self, contender: Contender, python: Path, settings: Mapping[str, Any], home: Path) -> None:
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        if contender.peer is not None:  # a peer finds its own interpreter first, and leaves nothing behind
            path = f"{python.parent}:{environment['PATH']}"
            environment = {"OMP_NUM_THREADS": "1", **_without_pythonpath(), "PATH": path, "HOME": str(home)}
        if "docker_host" in settings:
            environment["DOCKER_HOST"] = settings["docker_host"]
        adapter = FOLDER / "adapters" / f"{contender.adapter}.py"
        self._log = home / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-P", FOLDER / "worker.py", adapter, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=home,
                env=environment,
                start_new_session=True,  # Ctrl-C is the benchmark's to handle: it closes its workers
            )

    def ask(self, order: Mapping[str, Any], timeout_s: float = STARTING_S) -> dict[str, Any]:
        """Gives the answer to an order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        clock = threading.Timer(timeout_s, self._kill)
        clock.start()
        try:
            print(json.dumps(order), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = self._process.stdout.readline()  # it may have said why it ended
        finally:
            clock.cancel()
        answer = json.loads(line) if line else {"failed": f"ended or took too long: {self._last_words()}"}
        if "failed" in answer:
            raise Unavailable(answer["failed"])
        return answer

    def _last_words(self) -> str:
        return _last_line(self._log.read_text(errors="replace"))

    def close(self) -> None:
        """Lets it close its callers and end; kills it if that takes long. May be called twice."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(120)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        finally:
            self._kill()
            self._process.wait()
            self._process.stdout.close()

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

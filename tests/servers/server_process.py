"""A model server as a process of its own, started on a free port and ended with everything that it started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Self

PATIENCE_S = 120.0


class ServerProcess:
    """`with ServerProcess(command, pattern) as server:` runs a command until the end; `server.url` is what it prints.

    Args:
        command: The program and its arguments.
        pattern: Finds the address in a line of its output, as group 1.
        variables: Further variables of its environment.
    """

    def __init__(self, command: Sequence[str], pattern: str, variables: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **(variables or {})},
        )
        self.lines: list[str] = []
        self._pattern = re.compile(pattern)
        self._found = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._found.wait(PATIENCE_S) or not self.url:
            self.kill()
            raise AssertionError("the server did not start:\n" + "".join(self.lines))

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append(line)
                match = self._pattern.search(line)
                if match and not self.url:
                    self.url = match[1]
                    self._found.set()
        self._found.set()

    def kill(self) -> None:
        """SIGKILL, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self._ended()

    def interrupt(self) -> int:
        """Ctrl-C; gives the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self._ended()

    def _ended(self) -> int:
        status = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

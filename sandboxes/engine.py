"""The Docker engine that DOCKER_HOST names: finding it, and saying in one line what is wrong with it or with an image.

It is spoken to through the SDK, the Python package docker, which is imported with the first engine.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
from typing import Any

from ..core.errors import SandboxUnavailable
from .jail.wire import one_line

_DEFAULT_HOST = "npipe:////./pipe/docker_engine" if os.name == "nt" else "unix:///var/run/docker.sock"
_UNIX = "unix://"
_KNOCK_TIMEOUT_S = 10.0


class Engine:
    """A client of the engine.

    Args:
        timeout_s: How long the engine may take for an answer.

    Raises:
        SandboxUnavailable: The SDK is not installed, or no engine answers; the message says what to do.
    """

    def __init__(self, timeout_s: float) -> None:
        try:
            docker: Any = importlib.import_module("docker")
        except ImportError:
            raise SandboxUnavailable(
                "sandbox='docker' needs the Python package docker: pip install 'palaestra[docker]'"
            ) from None
        self.host = os.environ.get("DOCKER_HOST") or _DEFAULT_HOST
        self.errors: tuple[type[Exception], ...] = (OSError, docker.errors.DockerException)
        """What requests raise when the engine says no, or nothing."""
        self.not_found: type[Exception] = docker.errors.NotFound
        try:
            self._knock()
            self._api: Any = docker.from_env(timeout=timeout_s).api
        except self.errors as error:
            raise SandboxUnavailable(self._unreachable(error)) from error

    @property
    def api(self) -> Any:
        """The SDK's low-level client, for one request.

        Raises:
            OSError: The engine is gone.
        """
        self._knock()
        return self._api

    def _knock(self) -> None:
        """Tells a socket that is not there from other trouble; the SDK would leave one of its own unclosed."""
        if self.host.startswith(_UNIX) and hasattr(socket, "AF_UNIX"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(_KNOCK_TIMEOUT_S)
                sock.connect(self.host.removeprefix(_UNIX))

    def set_timeout(self, seconds: float) -> None:
        """How long the engine may take for an answer from now on."""
        self._api.timeout = seconds

    def remove(self, container: str) -> None:
        """Ends a container that removes itself, and waits until it is gone.

        Raises:
            Exception: One of `errors`.
        """
        try:
            try:
                self.api.remove_container(container, force=True, v=True)
            except self.not_found:
                raise
            except self.errors:  # it is already on its way
                self.api.wait(container, timeout=self._api.timeout, condition="removed")
        except self.not_found:
            return

    def environment_of(self, image: str) -> dict[str, str]:
        """Gives the variables that an image sets; it is pulled if the engine does not have it.

        Raises:
            SandboxUnavailable: There is no such image.
        """
        try:
            found = self.api.inspect_image(image)
        except self.not_found:
            reason = self._pull(image)
            try:
                found = self.api.inspect_image(image)
            except self.not_found:
                raise SandboxUnavailable(
                    f"image={image!r} is not there and cannot be pulled ({reason}): try `docker pull {image}`, "
                    "build it, or name another"
                ) from None
        return dict(entry.split("=", 1) for entry in found["Config"]["Env"] or ())

    def _pull(self, image: str) -> str:
        """Has the engine pull an image; gives what went wrong, if something did."""
        print(f"palaestra: pulling the Docker image {image}", file=sys.stderr)
        utils: Any = importlib.import_module("docker.utils")
        repository, tag = utils.parse_repository_tag(image)
        reason = "unknown reason"
        try:
            for line in self.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
                reason = one_line(line.get("error", reason))
        except self.errors as error:
            reason = reason_of(error)
        return reason

    def close(self) -> None:
        """Closes the connections."""
        self._api.close()

    def _unreachable(self, error: BaseException) -> str:
        cause = _cause_of(error)
        if self.host.startswith("ssh:"):
            return (
                f"DOCKER_HOST={self.host}: forward that engine's socket (ssh -nNT -L) and let DOCKER_HOST name "
                "the local end"
            )
        if isinstance(cause, PermissionError):
            return (
                f"no permission to use the Docker engine at {self.host}: join its group "
                "(sudo usermod -aG docker $USER), then log in again"
            )
        if isinstance(cause, FileNotFoundError):
            return f"no Docker engine at {self.host}: install or start one, or let DOCKER_HOST name another"
        reason = reason_of(error)
        return f"no Docker engine answers at {self.host} ({reason}): start it, or let DOCKER_HOST name another"


def reason_of(error: BaseException) -> str:
    """What an error of the SDK comes from, in one line: the engine's own words, or the system's."""
    said = getattr(error, "explanation", None)
    if isinstance(said, bytes):
        said = said.decode("utf-8", "replace")
    if said:
        return one_line(str(said))
    return one_line(getattr(_cause_of(error), "strerror", None) or str(error) or type(error).__name__)


def _cause_of(error: BaseException) -> BaseException:
    """The error at the bottom: the SDK, requests and urllib3 each wrap what they caught."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error

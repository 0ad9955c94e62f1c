"""Requests to a model server that may be busy, restarting or gone: retries with growing pauses, one-line refusals.

One blocking request at a time; callers bring their own threads. What may pass (a busy or restarting server, a lost
connection) is tried again; what is wrong with the request is an error at once. It knows no request by name.
"""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..core.errors import ConfigError, EnvironmentFailure

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses after which the same request may succeed."""
CHECK_S = 20.0
"""Seconds that a server has to show that it is there."""
SHOWN = 200
"""Characters of a server's error message that are passed on."""
T = TypeVar("T")


class Refused(Exception):
    """The server refuses the request; sending it again would not help."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(status, said)
        self.status, self.said = status, said

    def __str__(self) -> str:
        return f"status {self.status}: {self.said}"

    @property
    def is_context_limit(self) -> bool:
        """Whether the conversation is too long for the model."""
        asked = self.status in (400, 413, 422) and "context" in self.said
        return asked and ("length" in self.said or "window" in self.said)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """Which model of which server, and how patient to be."""

    base_url: str
    """Up to and including the version, such as `http://127.0.0.1:8000/v1`."""
    model: str
    api_key: str = field(default="", repr=False)
    """Sent as a bearer token, where there is one; never stored."""
    timeout_s: float = 600.0
    """Seconds without an answer until a request is given up and tried again."""
    tries: int = 8
    """How often one request is sent before its episode fails."""
    first_pause_s: float = 0.5
    """The pause after the first failure; each further one is twice as long."""
    longest_pause_s: float = 60.0

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number
            usable = False
        if not usable:
            raise ConfigError(f"base_url={self.base_url}: write http://HOST:PORT/v1 or https://HOST/v1")
        if not self.model:
            raise ConfigError("model: name the model that the server is to use")
        if self.tries < 1:
            raise ConfigError(f"tries={self.tries}: must be at least 1")


class HttpClient:
    """A server's address, key and our patience with it; may be used from several threads.

    Args:
        config: Patience and key.
        root: What paths are relative to; None means the config's `base_url`.
    """

    def __init__(self, config: EndpointConfig, root: str | None = None) -> None:
        self.config = config
        self.root = (root or config.base_url).rstrip("/")

    def post(self, path: str, body: Any, read: Callable[[bytes], T], *, tries: int | None = None) -> tuple[T, int]:
        """Sends JSON until it is answered; gives the answer, as it was read, and how often it was sent.

        Args:
            path: Begins with a slash.
            body: JSON data.
            read: Reads the answer's body. A `ValueError` means that it is none: the request is sent again.
            tries: How often to send it; None means the config's.

        Raises:
            Refused: The server refuses the request.
            EnvironmentFailure: The server could not be reached or kept failing.
            ConfigError: Raised by `read`, passed on.
        """
        request = urllib.request.Request(self.root + path, json.dumps(body).encode(), self._headers())
        allowed = tries or self.config.tries
        said = ""
        for sent in range(1, allowed + 1):
            pause_s = self._pause_s(sent)
            try:
                return read(self._open(request, self.config.timeout_s)), sent
            except ConfigError:
                raise
            except urllib.error.HTTPError as error:
                refused = Refused(error.code, _server_message(error))
                if error.code not in PASSING:
                    raise refused from error
                said = str(refused)
                pause_s = max(pause_s, _retry_after_s(error, self.config.longest_pause_s))
            except (OSError, http.client.HTTPException, ValueError) as error:  # unreachable, cut off, or not an answer
                said = _said(error)
            if sent < allowed:
                time.sleep(pause_s)
        raise EnvironmentFailure("endpoint", f"{self.root} failed {allowed} times, last with {said}")

    def get(self, path: str) -> Any:
        """Asks once for JSON, and does not wait long.

        Raises:
            Refused: Somebody answers, but not to this.
            ConfigError: There is no server, or it does not speak JSON.
        """
        try:
            return json.loads(self._open(urllib.request.Request(self.root + path, headers=self._headers()), CHECK_S))
        except urllib.error.HTTPError as error:
            raise Refused(error.code, _server_message(error)) from error
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(f"no server answers at {self.root}: {_said(error)}") from error
        except ValueError as error:
            raise ConfigError(f"{self.root}{path} answers, but not with JSON: is it a model server?") from error

    def _open(self, request: urllib.request.Request, timeout_s: float) -> bytes:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return answer.read()

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self.config.api_key}"} if self.config.api_key else {}
        return {"Content-Type": "application/json", "Accept": "application/json", **key}

    def _pause_s(self, sent: int) -> float:
        """Twice as long after each try; the random half keeps many clients from coming back together."""
        longest = min(self.config.longest_pause_s, self.config.first_pause_s * 2 ** (sent - 1))
        return longest * random.uniform(0.5, 1.0)


def _said(error: Exception) -> str:
    return f"{getattr(error, 'reason', None) or error or type(error).__name__}"


def _server_message(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        data = json.loads(text)
        found = data.get("error", data)
        if isinstance(found, dict):
            found = found.get("message", found.get("detail", text))
        text = str(found)
    except (ValueError, AttributeError):
        pass
    return " ".join(str(text).split())[:SHOWN] or str(error.reason)


def _retry_after_s(error: urllib.error.HTTPError, longest_s: float) -> float:
    """Seconds that the server asks to wait, where it names a number."""
    try:
        return min(longest_s, max(0.0, float(error.headers.get("Retry-After") or 0)))
    except ValueError:
        return 0.0

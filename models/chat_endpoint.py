"""Chat completions from an OpenAI-compatible HTTP server: vLLM, `transformers serve`, llama.cpp, a hosted model.

One blocking request at a time; callers bring their own threads. What may pass (a busy or restarting server, a lost
connection) is tried again with growing pauses; what is wrong with the request is an error at once. Only text goes in
and out: no token ids, so that nothing here can be trained on.
"""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ConfigError, EnvironmentFailure
from ..core.messages import Message

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses after which the same request may succeed."""
CHECK_S = 20.0
"""Seconds that a server has to show that it is there."""
SHOWN = 200
"""Characters of a server's error message that are passed on."""


class ContextLimitReached(Exception):
    """The conversation no longer fits into the model's context."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model answered."""

    text: str
    prompt_tokens: int
    """As the server counts them; 0 where it does not say."""
    completion_tokens: int
    tries: int
    """How often the request was sent."""


class ChatEndpoint:
    """A model behind a server; may be used from several threads."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self._root = config.base_url.rstrip("/")

    def complete(self, messages: Sequence[Message], *, temperature: float, max_tokens: int, seed: int) -> Reply:
        """Asks for the next message.

        Args:
            messages: The conversation so far; what environments answered goes out as the user's, because servers take
                messages of role `tool` only in reply to calls in their own form.
            temperature: 0 is greedy.
            max_tokens: Greatest length of the answer.
            seed: For servers that can repeat themselves.

        Raises:
            ContextLimitReached: The conversation is too long for the model.
            EnvironmentFailure: The server could not be reached or kept failing.
            ConfigError: The server refuses the request: no such model, no access, a parameter that it does not take.
        """
        body = {
            "model": self.config.model,
            "messages": [_plain(message) for message in messages],
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed % 2**31,
        }
        said = ""
        for tries in range(1, self.config.tries + 1):
            pause_s = self._pause_s(tries)
            try:
                return _reply(self._post(body), tries)
            except urllib.error.HTTPError as error:
                said = f"status {error.code}: {_server_message(error)}"
                if error.code not in PASSING:
                    raise self._refusal(error.code, said) from error
                pause_s = max(pause_s, _retry_after_s(error, self.config.longest_pause_s))
            except (OSError, http.client.HTTPException, ValueError) as error:  # unreachable, cut off, or not an answer
                said = f"{getattr(error, 'reason', None) or error or type(error).__name__}"
            if tries < self.config.tries:
                time.sleep(pause_s)
        raise EnvironmentFailure("endpoint", f"{self._root} failed {self.config.tries} times, last with {said}")

    def check(self) -> None:
        """Fails at once where nobody answers, rather than after many tries for each episode.

        Raises:
            ConfigError: There is no server.
        """
        try:
            self._open(urllib.request.Request(self._root + "/models", headers=self._headers()), CHECK_S)
        except urllib.error.HTTPError:
            return  # somebody answers
        except (OSError, http.client.HTTPException) as error:
            said = getattr(error, "reason", None) or error or type(error).__name__
            raise ConfigError(f"no server answers at {self._root}: {said}") from error

    def _post(self, body: dict[str, Any]) -> Any:
        url = self._root + "/chat/completions"
        return json.loads(self._open(urllib.request.Request(url, json.dumps(body).encode(), self._headers())))

    def _open(self, request: urllib.request.Request, timeout_s: float | None = None) -> bytes:
        with urllib.request.urlopen(request, timeout=timeout_s or self.config.timeout_s) as answer:
            return answer.read()

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self.config.api_key}"} if self.config.api_key else {}
        return {"Content-Type": "application/json", "Accept": "application/json", **key}

    def _pause_s(self, tries: int) -> float:
        """Twice as long after each try; the random half keeps many clients from coming back together."""
        longest = min(self.config.longest_pause_s, self.config.first_pause_s * 2 ** (tries - 1))
        return longest * random.uniform(0.5, 1.0)

    def _refusal(self, status: int, said: str) -> Exception:
        if status in (400, 413, 422) and "context" in said and ("length" in said or "window" in said):
            return ContextLimitReached(said)
        return ConfigError(f"{self._root} refuses requests for model {self.config.model!r}: {said}")


def _plain(message: Message) -> dict[str, str]:
    return {"role": "user" if message["role"] == "tool" else message["role"], "content": message["content"]}


def _reply(data: Any, tries: int) -> Reply:
    """Reads an answer; whatever else a server sends is a ValueError."""
    try:
        text, usage = data["choices"][0]["message"].get("content"), data.get("usage") or {}
        return Reply(
            text=text if isinstance(text, str) else "",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            tries=tries,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"an answer that is no chat completion: {json.dumps(data)[:SHOWN]}") from error


def _server_message(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        data = json.loads(text)
        found = data.get("error", data)
        text = found.get("message", text) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        pass
    return " ".join(str(text).split())[:SHOWN] or str(error.reason)


def _retry_after_s(error: urllib.error.HTTPError, longest_s: float) -> float:
    """Seconds that the server asks to wait, where it names a number."""
    try:
        return min(longest_s, max(0.0, float(error.headers.get("Retry-After") or 0)))
    except ValueError:
        return 0.0

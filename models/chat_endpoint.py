"""Chat completions from an OpenAI-compatible HTTP server: vLLM, `transformers serve`, llama.cpp, a hosted model.

Only text goes in and out, and tool calls in the servers' own form where tools are named: no token ids, so that nothing
here can be trained on (that is `http_engine`). Retries are `http_client`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigError
from .http_client import SHOWN, EndpointConfig, HttpClient, Refused

__all__ = ["ChatEndpoint", "ContextLimitReached", "EndpointConfig", "NoToolCalls", "Reply", "ToolCall"]

ChatMessage = Mapping[str, Any]
"""A message as servers take it: role and content, and for tool calls `tool_calls` or `tool_call_id`."""


class ContextLimitReached(Exception):
    """The conversation no longer fits into the model's context."""


class NoToolCalls(ConfigError):
    """The server refuses requests that name tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call in a server's own form; nothing about it is checked yet."""

    call_id: str
    name: str
    arguments: str
    """JSON text of an object, as it should be; models write other things too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model answered."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_tokens: int
    """As the server counts them; 0 where it does not say."""
    completion_tokens: int
    tries: int
    """How often the request was sent."""


class ChatEndpoint:
    """A model behind a server; may be used from several threads."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self._client = HttpClient(config)

    def complete(
        self,
        messages: Sequence[ChatMessage],
        *,
        temperature: float,
        max_tokens: int,
        seed: int,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Reply:
        """Asks for the next message.

        Args:
            messages: The conversation so far. Messages of role `tool` that name no call go out as the user's, because
                servers take them only in reply to calls in their own form.
            temperature: 0 is greedy.
            max_tokens: Greatest length of the answer.
            seed: For servers that can repeat themselves.
            tools: Schemas of tools that the model may call in the server's own form.

        Raises:
            ContextLimitReached: The conversation is too long for the model.
            EnvironmentFailure: The server could not be reached or kept failing.
            NoToolCalls: The server takes no tools.
            ConfigError: The server refuses the request: no such model, no access, a parameter that it does not take.
        """
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [_sendable(message) for message in messages],
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed % 2**31,
        }
        if tools:
            body["tools"] = list(tools)
        try:
            reply, tries = self._client.post("/chat/completions", body, _fields)
        except Refused as error:
            raise self._refusal(error, bool(tools)) from error
        return Reply(**reply, tries=tries)

    def check(self) -> None:
        """Fails at once where nobody answers, rather than after many tries for each episode.

        Raises:
            ConfigError: There is no server.
        """
        try:
            self._client.get("/models")
        except Refused:
            return  # somebody answers

    def _refusal(self, error: Refused, with_tools: bool) -> Exception:
        if error.is_context_limit:
            return ContextLimitReached(error.said)
        said = f"{self._client.root} refuses requests for model {self.config.model!r}: {error}"
        if with_tools and error.status in (400, 404, 422, 501) and "tool" in error.said.lower():
            return NoToolCalls(f"{said}; --tool-calls=text works with every server")
        return ConfigError(said)


def _sendable(message: ChatMessage) -> dict[str, Any]:
    if message["role"] == "tool" and "tool_call_id" not in message:
        return {"role": "user", "content": message["content"]}
    return dict(message)


def _fields(raw: bytes) -> dict[str, Any]:
    """Reads an answer; whatever else a server sends is a ValueError."""
    data = json.loads(raw)
    try:
        message, usage = data["choices"][0]["message"], data.get("usage") or {}
        text = message.get("content")
        return {
            "text": text if isinstance(text, str) else "",
            "tool_calls": tuple(_call(i, call) for i, call in enumerate(message.get("tool_calls") or ())),
            "prompt_tokens": int(usage.get("prompt_tokens") or 0),
            "completion_tokens": int(usage.get("completion_tokens") or 0),
        }
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"an answer that is no chat completion: {json.dumps(data)[:SHOWN]}") from error


def _call(index: int, call: Mapping[str, Any]) -> ToolCall:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    return ToolCall(
        call_id=str(call.get("id") or f"call_{index}"),
        name=str(function.get("name") or ""),
        arguments=arguments if isinstance(arguments, str) else json.dumps(arguments or {}),
    )

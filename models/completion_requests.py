"""What clients of the server ask for, checked, and how answers are written: completions and chat completions.

The fields are OpenAI's and vLLM's. What would change an answer and is not known here is refused by name; what would not
is ignored. Answers come in one piece: there is no streaming.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..core.messages import Message, Role
from .batching import Sampled

DEFAULT_MAX_TOKENS = 16
"""Of completions, as with OpenAI; chat completions go on to the end of the context."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "echo": (False,),
    "suffix": ("",),
    "stop": ([], ""),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "min_tokens": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "use_beam_search": (False,),
}
"""Fields of which only the values that change nothing are taken (besides null)."""
_TOOL_CALL = re.compile(r"\s*<tool_call>\s*(.*?)\s*</tool_call>\s*", re.DOTALL)
_ROLES = ("system", "user", "assistant", "tool")


class RequestError(Exception):
    """The request cannot be answered; the status and one line say why."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(status, message, kind)
        self.status, self.message, self.kind = status, message, kind


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingFields:
    """The fields that both kinds of requests share."""

    model: str
    """Empty means the served model."""
    max_tokens: int | None
    temperature: float
    seed: int | None
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    wants_logprobs: bool
    wants_token_ids: bool


def sampling_fields(body: Mapping[str, Any]) -> SamplingFields:
    """Reads the fields that both kinds of requests share.

    Raises:
        RequestError: A field is of the wrong kind, or asks for what is not done here.
    """
    for name, values in _NEUTRAL.items():
        if body.get(name) is not None and body[name] not in values:
            raise RequestError(400, f"{name}={json.dumps(body[name])[:40]} is not supported; leave it out")
    temperature = _number(body, "temperature", 1.0)
    if temperature < 0:
        raise RequestError(400, f"temperature={temperature}: must be at least 0")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    max_tokens = _integer(body, limit)
    if max_tokens is not None and max_tokens < 1:
        raise RequestError(400, f"{limit}={max_tokens}: must be at least 1")
    seed = _integer(body, "seed")
    stops = body.get("stop_token_ids") or []
    if not _are_tokens(stops):
        raise RequestError(400, "stop_token_ids: must be a list of token ids")
    logprobs = body.get("logprobs")
    if not isinstance(logprobs, bool) and logprobs not in (None, 0, 1):
        raise RequestError(400, f"logprobs={json.dumps(logprobs)[:40]}: only the sampled tokens' are given, by 0 or 1")
    return SamplingFields(
        model=str(body.get("model") or ""),
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        stop_token_ids=frozenset(stops),
        ignore_eos=bool(body.get("ignore_eos")),
        wants_logprobs=logprobs is not None and logprobs is not False,
        wants_token_ids=bool(body.get("return_token_ids")),
    )


def prompt_of(body: Mapping[str, Any]) -> str | list[int]:
    """The prompt of a completion: token ids, or text.

    Raises:
        RequestError: There is none, or several.
    """
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list | str):
        prompt = cast("str | list[int]", prompt[0])
    if isinstance(prompt, str) or (prompt and _are_tokens(prompt)):
        return cast("str | list[int]", prompt)
    raise RequestError(400, "prompt: must be one text or one list of token ids")


def messages_of(body: Mapping[str, Any]) -> list[Message]:
    """The messages of a chat completion; calls of tools become the text that the model would have written.

    Raises:
        RequestError: They are no messages.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "messages: must be a list with at least one message")
    return [_message(message) for message in messages]


def tools_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The schemas of tools that the model may call; empty where it is to call none.

    Raises:
        RequestError: They are no schemas, or a certain call is demanded.
    """
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise RequestError(400, "tool_choice: must be 'auto' or 'none'")
    tools: Any = body.get("tools") or []
    named = isinstance(tools, list) and all(
        isinstance(tool, dict) and isinstance(tool.get("function"), dict) and tool["function"].get("name")
        for tool in cast("list[Any]", tools)
    )
    if not named:
        raise RequestError(400, "tools: must be a list of {'type': 'function', 'function': {'name': ...}}")
    return [] if choice == "none" else tools


def completion_answer(
    model: str, fields: SamplingFields, prompt_ids: Sequence[int], sampled: Sampled, text: str
) -> dict[str, Any]:
    """The answer to a completion request."""
    choice: dict[str, Any] = {
        "index": 0,
        "text": text,
        "finish_reason": _finish_reason(sampled),
        "logprobs": None,
        "weight_versions": [{"version": sampled.label, "start": 0, "end": len(sampled.token_ids)}],
    }
    if fields.wants_logprobs:
        choice["logprobs"] = {
            "tokens": [f"token_id:{token}" for token in sampled.token_ids],
            "token_logprobs": sampled.logprobs,
        }
    if fields.wants_token_ids:
        choice |= {"token_ids": sampled.token_ids, "prompt_token_ids": list(prompt_ids)}
    return _answer("text_completion", "cmpl", model, choice, len(prompt_ids), sampled)


def chat_answer(
    model: str, prompt_ids: Sequence[int], sampled: Sampled, text: str, *, with_tools: bool
) -> dict[str, Any]:
    """The answer to a chat completion request; calls of tools are taken out of the text where tools were named."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    reason = _finish_reason(sampled)
    calls = _tool_calls(text) if with_tools else None
    if calls:
        message |= {"content": _TOOL_CALL.sub("", text) or None, "tool_calls": calls}
        reason = "tool_calls"
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return _answer("chat.completion", "chatcmpl", model, choice, len(prompt_ids), sampled)


def _answer(
    kind: str, prefix: str, model: str, choice: dict[str, Any], prompt_tokens: int, sampled: Sampled
) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(sampled.token_ids),
            "total_tokens": prompt_tokens + len(sampled.token_ids),
            "prompt_tokens_details": {"cached_tokens": sampled.cached_tokens},
        },
    }


def _finish_reason(sampled: Sampled) -> str:
    return {"end": "stop", "length": "length", "abort": "abort"}[sampled.finished]


def _tool_calls(text: str) -> list[dict[str, Any]] | None:
    """The calls in a text, as clients want them; None where one of them is malformed, so that nothing is hidden."""
    calls: list[dict[str, Any]] = []
    for body in _TOOL_CALL.findall(text):
        try:
            call = json.loads(body)
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return None
        function = {"name": str(name), "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)}
        calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
    return calls


def _message(message: Any) -> Message:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise RequestError(400, f"messages: each needs a role, one of {', '.join(_ROLES)}, and a content")
    fields = cast("dict[str, Any]", message)
    content = fields.get("content")
    if isinstance(content, list):
        parts = cast("list[Any]", content)
        if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in parts):
            raise RequestError(400, "messages: only parts of text are taken")
        content = "".join(part["text"] for part in parts)
    if not isinstance(content, str | None):
        raise RequestError(400, "messages: content must be text")
    calls = fields.get("tool_calls") or []
    texts = [content] if content else []
    try:
        texts += [_call_text(call["function"]["name"], call["function"].get("arguments")) for call in calls]
    except (KeyError, TypeError, AttributeError) as error:
        raise RequestError(400, "messages: tool_calls need {'function': {'name': ..., 'arguments': ...}}") from error
    return {"role": cast(Role, fields["role"]), "content": "\n".join(texts)}


def _call_text(name: str, arguments: Any) -> str:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, "messages: the arguments of a tool call must be JSON text") from error
    call = json.dumps({"name": name, "arguments": arguments or {}}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def _number(body: Mapping[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise RequestError(400, f"{name}={json.dumps(value)[:40]}: must be a number")
    return float(value)


def _integer(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise RequestError(400, f"{name}={json.dumps(value)[:40]}: must be a whole number")
    return value


def _are_tokens(value: Any) -> bool:
    items = cast("list[Any]", value) if isinstance(value, list) else [None]
    return all(type(item) is int and item >= 0 for item in items)

"""Tool calls in servers' own form, to and from what environments read and write.

An environment reads one text for each action, and answers with one. Calls become `<tool_call>` blocks of that text, one
after the other; arguments that are no JSON go in as they are, so that the environment says what is wrong with them. The
answer to several calls is one text too: it goes back with the last of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from ..core.errors import ConfigError, did_you_mean
from ..core.messages import Message
from ..models.chat_endpoint import ToolCall

CallMode = Literal["text", "native", "auto"]
CALL_MODES: tuple[CallMode, ...] = get_args(CallMode)
ANSWERED_TOGETHER = "(answered together with the last call)"


class CallStyle:
    """The form that calls take with one server; may be shared by threads.

    Args:
        mode: `text`: the model writes calls as text. `native`: tools are named to the server, and calls come back in
            its own form. `auto`: native, unless the server refuses tools.
    """

    def __init__(self, mode: str = "text") -> None:
        if mode not in CALL_MODES:
            raise ConfigError(f"--tool-calls={mode}{did_you_mean(mode, CALL_MODES)}")
        self.may_fall_back = mode == "auto"
        self.is_native = mode != "text"

    def check(self, parser: str) -> None:
        """Checks that an environment's parser reads what native calls become.

        Raises:
            ConfigError: It reads another form only.
        """
        if self.is_native and parser not in ("auto", "tool_call"):
            raise ConfigError(f"--tool-calls=native and parser={parser!r}: use parser='auto' or --tool-calls=text")


def action_text(text: str, calls: Sequence[ToolCall]) -> str:
    """The action's text: what the model said, then its calls."""
    if not calls:
        return text
    said = [text.strip()] if text.strip() and "<tool_call>" not in text else []
    return "\n".join([*said, *map(_block, calls)])


def spoken(text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """The assistant's message, as servers want it back; calls that they could not read go back as text."""
    if not calls or any(_arguments(call) is None for call in calls):
        return {"role": "assistant", "content": action_text(text, calls)}
    return {
        "role": "assistant",
        "content": text or None,
        "tool_calls": [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ],
    }


def answers(said: Mapping[str, Any], messages: Sequence[Message]) -> list[dict[str, Any]]:
    """What an environment said after that message of the assistant; what its tools said is tied to its calls.

    Args:
        said: The assistant's last message, of `spoken`.
        messages: The environment's.
    """
    calls = said.get("tool_calls") or ()
    if not calls:
        return [dict(message) for message in messages]
    whole = "\n".join(message["content"] for message in messages if message["role"] == "tool")
    texts = [*[ANSWERED_TOGETHER] * (len(calls) - 1), whole]
    tied = [
        {"role": "tool", "tool_call_id": call["id"], "content": text} for call, text in zip(calls, texts, strict=True)
    ]
    return [*tied, *(dict(message) for message in messages if message["role"] != "tool")]


def _block(call: ToolCall) -> str:
    arguments = _arguments(call)
    body = {"name": call.name, "arguments": call.arguments if arguments is None else arguments}
    return f"<tool_call>\n{json.dumps(body, ensure_ascii=False)}\n</tool_call>"


def _arguments(call: ToolCall) -> dict[str, Any] | None:
    """The arguments, or None where they are no JSON object."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) else None

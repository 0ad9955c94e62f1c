"""What a policy wrote, cut into parts to show: words, code, and the old and new text of an edit.

It reads no tool schemas and judges nothing: text of a form that it does not know is shown as it is.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

PartKind = Literal["words", "code", "removed", "added"]
_TOOL_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```[\w+-]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PLAIN_CALL = re.compile(r"([a-z_][a-z0-9_]*)\b[^\n]{0,80}\Z")
_EDIT_KINDS: dict[str, PartKind] = {"old": "removed", "new": "added"}


@dataclass(frozen=True, slots=True)
class ActionPart:
    """A stretch of an action. `label` names the tool that it calls, where that changes."""

    kind: PartKind
    text: str
    label: str = ""


def action_parts(action: str) -> list[ActionPart]:
    r"""Cuts an action into parts.

    Example: `"edit\nx = 1\nx = 2"` gives a removed line labelled `edit` and an added line.
    """
    if "<tool_call>" in action:
        return _cut(action, _TOOL_CALL, _tool_call_parts)
    if "```" in action:
        return _cut(action, _FENCE, lambda body: [ActionPart("code", body.rstrip("\n"))])
    return _plain_parts(action)


def _cut(action: str, pattern: re.Pattern[str], parts_of: Any) -> list[ActionPart]:
    """Applies `parts_of` to what the pattern finds; the text around it is words."""
    parts: list[ActionPart] = []
    end = 0
    for match in pattern.finditer(action):
        parts += _words(action[end : match.start()])
        parts += parts_of(match[1])
        end = match.end()
    return parts + _words(action[end:])


def _words(text: str) -> list[ActionPart]:
    return [ActionPart("words", text.strip())] if text.strip() else []


def _tool_call_parts(body: str) -> list[ActionPart]:
    try:
        call: Any = json.loads(body)
    except ValueError:
        return [ActionPart("words", body.strip())]
    if not isinstance(call, dict) or not isinstance(call.get("arguments", {}), dict):
        return [ActionPart("words", body.strip())]
    arguments = cast(dict[str, Any], call.get("arguments", {}))
    return _call_parts(str(call.get("name", "?")), arguments)


def _call_parts(name: str, arguments: dict[str, Any]) -> list[ActionPart]:
    parts: list[ActionPart] = []
    for key, value in arguments.items():
        label = name if not parts else ""
        if isinstance(value, str):
            parts.append(ActionPart(_EDIT_KINDS.get(key, "code"), value, label))
        else:
            parts.append(ActionPart("words", f"{key} = {json.dumps(value)}", label))
    return parts or [ActionPart("words", "", name)]


def _plain_parts(action: str) -> list[ActionPart]:
    head, newline, body = action.partition("\n")
    if not _PLAIN_CALL.match(head) or (not newline and " " in head):
        return [ActionPart("words", action)]
    if head == "edit" and body.count("\n") == 1:
        old, new = body.split("\n")
        return [ActionPart("removed", old, head), ActionPart("added", new)]
    return [ActionPart("code" if body else "words", body, head)]

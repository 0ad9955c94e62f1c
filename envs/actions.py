"""From a model's raw text to tool calls: any text is accepted, and bad text gives one line that says what to write.

Three forms are read:

- `tool_call`: `<tool_call>{"name": "run", "arguments": {"code": "..."}}</tool_call>` (Hermes, Qwen), several in a row
- `plain`: the tool's name on line one, its arguments below: one line each when there are several, or separated by lines
  of `---` when they are longer
- `fenced`: a fenced code block, which is the first argument of the environment's first tool; without a block, text that
  begins with a tool's name is read as `plain`, so that the other tools can be called too

`auto` takes `tool_call` where its tag occurs, `plain` where line one begins with a tool's name, else `fenced`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from ..core.errors import did_you_mean

ToolSchema = dict[str, Any]
"""`{"type": "function", "function": {"name": ..., "description": ..., "parameters": JSON schema}}`."""
ParserName = Literal["auto", "tool_call", "fenced", "plain"]
PARSERS: tuple[ParserName, ...] = get_args(ParserName)

_TOOL_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)
_PART = re.compile(r"^---$", re.MULTILINE)
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


class ParseError(ValueError):
    """The text is no valid action; its message is what the agent reads."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool, with arguments that fit its schema."""

    name: str
    arguments: dict[str, Any]


def parse_action(text: str, tools: Sequence[ToolSchema], parser: str = "auto") -> list[Call]:
    """Reads the calls in an action.

    Args:
        text: What the model wrote.
        tools: The schemas of the environment's tools; the first is the default of fenced code.
        parser: One of `PARSERS`.

    Raises:
        ParseError: The text is no valid action. Nothing else is ever raised.
    """
    by_name = {tool["function"]["name"]: tool["function"] for tool in tools}
    text = _without_thought(text.replace("\r\n", "\n"), by_name)
    if parser == "auto":
        parser = _form_of(text, by_name)
    if parser == "tool_call":
        return _tool_calls(text, by_name)
    if parser == "plain":
        return [_plain(text, by_name)]
    return [_fenced(text, by_name)]


def format_tool_call(name: str, arguments: Mapping[str, Any]) -> str:
    """The text of one call in the `tool_call` form."""
    call = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def _without_thought(text: str, by_name: Mapping[str, Any]) -> str:
    """What follows the first thought. Where the prompt opened it (`<think>`), the text begins in the midst of it."""
    thought, closed, rest = text.partition("</think>")
    if not closed:
        return text
    if not thought.lstrip().startswith("<think>"):
        words = thought.split(None, 1)
        in_call = thought.count("<tool_call>") > thought.count("</tool_call>") or thought.count("```") % 2
        if in_call or (words and words[0] in by_name):
            return text  # a program has the marker in it
    return rest.lstrip()


def _form_of(text: str, by_name: Mapping[str, Any]) -> ParserName:
    if "<tool_call>" in text:
        return "tool_call"
    words = text.split(None, 1)
    if words and words[0] in by_name:
        return "plain"
    return "fenced" if "```" in text else "plain"


def _tool_calls(text: str, by_name: Mapping[str, Any]) -> list[Call]:
    bodies: list[str] = _TOOL_CALL.findall(text)
    if not bodies:
        raise ParseError('error: write <tool_call>{"name": ..., "arguments": {...}}</tool_call>')
    return [_tool_call(body, by_name) for body in bodies]


def _tool_call(body: str, by_name: Mapping[str, Any]) -> Call:
    try:
        call: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ParseError(f"error: the tool call is not JSON ({error})") from None
    fields = cast(dict[str, Any], call) if isinstance(call, dict) else {}
    if not isinstance(fields.get("name"), str):
        raise ParseError('error: a tool call needs "name" and "arguments"')
    function = _function(fields["name"], by_name)
    arguments: Any = fields.get("arguments", {})
    if isinstance(arguments, str):  # some models write the arguments as JSON text
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise ParseError("error: arguments must be a JSON object") from None
    if not isinstance(arguments, dict):
        raise ParseError("error: arguments must be a JSON object")
    return Call(function["name"], _checked(function, cast(dict[str, Any], arguments)))


def _plain(text: str, by_name: Mapping[str, Any]) -> Call:
    first, _, body = text.strip("\r\n").partition("\n")
    name, _, rest = first.strip().partition(" ")
    if name not in by_name:
        raise ParseError(f"error: say {_listed(by_name)}")
    function = by_name[name]
    properties: dict[str, Any] = function["parameters"]["properties"]
    values = _plain_values(rest.strip(), body, len(properties))
    if values is None:
        raise ParseError(f"error: {name} takes {_listed(properties)}, one a line below its name")
    arguments = {
        parameter: _plain_value(value, properties[parameter].get("type", "string"))
        for parameter, value in zip(properties, values, strict=False)
    }
    return Call(name, _checked(function, arguments))


def _plain_values(rest: str, body: str, wanted: int) -> list[str] | None:
    """The arguments as texts: from the name's own line when nothing stands below, else from the lines below."""
    if not body.strip():
        return [rest] if rest and wanted else None if rest else []
    if rest or not wanted:
        return None
    if wanted == 1:
        return [body]
    parts = [part.strip("\n") for part in _PART.split(body)] if "---" in body.split("\n") else body.split("\n")
    return parts if len(parts) == wanted else None


def _plain_value(text: str, kind: str) -> Any:
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _fenced(text: str, by_name: Mapping[str, Any]) -> Call:
    match = _FENCE.search(text)
    if match is None:
        words = text.split(None, 1)
        if words and words[0] in by_name:
            return _plain(text, by_name)
        raise ParseError("error: write the code in a fenced block: ```python ... ```")
    function = next(iter(by_name.values()))
    parameter = next(iter(function["parameters"]["properties"]))
    return Call(function["name"], _checked(function, {parameter: match[1]}))


def _function(name: str, by_name: Mapping[str, Any]) -> dict[str, Any]:
    if name not in by_name:
        raise ParseError(f"error: no tool {name[:40]!r}{did_you_mean(name[:40], by_name)}")
    return by_name[name]


def _checked(function: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = function["parameters"]["properties"]
    for name in arguments:
        if name not in properties:
            raise ParseError(f"error: {function['name']} has no argument {name[:40]!r}; it takes {_listed(properties)}")
    for name in function["parameters"].get("required", ()):
        if name not in arguments:
            raise ParseError(f"error: {function['name']} needs {name}")
    for name, value in arguments.items():
        kind = properties[name].get("type", "string")
        if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "boolean"):
            raise ParseError(f"error: {function['name']}: {name} must be a {kind}")
    return arguments


def _listed(names: Mapping[str, Any]) -> str:
    *others, last = names or ["nothing"]
    return f"{', '.join(others)} or {last}" if others else last

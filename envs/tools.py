"""Tools of an environment: typed, documented methods whose signatures give schemas, usage lines and argument checks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from .actions import ToolSchema

Method = TypeVar("Method", bound=Callable[..., str])
_JSON_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
_ARGUMENT = re.compile(r"^\s{4,}(\w+): (.+)$", re.MULTILINE)


def tool(method: Method) -> Method:
    """Marks a method of a `ToolEnv` as a tool that agents can call; it returns the text that they read."""
    method.__is_tool__ = True  # type: ignore[attr-defined]
    return method


def tools_of(kind: type) -> dict[str, ToolSchema]:
    """The tools of an environment class by name, in the order in which the class defines them."""
    found: dict[str, ToolSchema] = {}
    for base in reversed(kind.__mro__):
        for name, member in vars(base).items():
            if getattr(member, "__is_tool__", False):
                found[name] = _schema(member)
    return found


def usage(schema: ToolSchema) -> str:
    """One line for people and models: `edit(old, new): Replace one line ...`."""
    function = schema["function"]
    parameters, required = function["parameters"]["properties"], function["parameters"]["required"]
    signature = ", ".join(name if name in required else f"[{name}]" for name in parameters)
    return f"{function['name']}({signature}): {function['description']}"


def _schema(method: Callable[..., str]) -> ToolSchema:
    """The JSON schema of a tool, in the form that chat templates and model APIs take."""
    text = inspect.getdoc(method)
    if not text:
        raise TypeError(f"tool {method.__name__} needs a docstring: it is what agents read")
    hints = get_type_hints(method)
    said = dict(_ARGUMENT.findall(text))
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, parameter in list(inspect.signature(method).parameters.items())[1:]:
        if hints.get(name) not in _JSON_KINDS:
            raise TypeError(f"tool {method.__name__}: argument {name} needs one of the types str, int, float, bool")
        properties[name] = {"type": _JSON_KINDS[hints[name]], "description": said.get(name, "")}
        if parameter.default is inspect.Parameter.empty:
            required.append(name)
    return {
        "type": "function",
        "function": {
            "name": method.__name__,
            "description": text.split("\n\n")[0].replace("\n", " "),
            "parameters": {"type": "object", "properties": properties, "required": required},
        },
    }

r"""Reads actions that a person (or a pipe) writes line by line.

An action ends where it is complete: after one line that calls a tool with all that it needs (`submit`, `price apple`),
after the closing mark of what was opened (a tool call, a fence), else at an empty line or a line with a dot alone. A
first line that ends in ` <<` makes the dot the only end, for programs with empty lines in them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Ask = Callable[[str], str]
"""Shows a prompt and gives a line without its end; raises EOFError where there are no more."""
Command = Literal["help", "tools", "task", "quit"]
COMMANDS: tuple[Command, ...] = ("help", "tools", "task", "quit")
DOT, BLOCK = ".", " <<"


class ActionInput:
    """Reads actions and commands.

    Args:
        ask: Where lines come from.
        tools: The schemas of the environment's tools.
    """

    def __init__(self, ask: Ask, tools: Sequence[Mapping[str, Any]]) -> None:
        self._ask = ask
        self._tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}

    def read(self, prompt: str) -> str:
        """Gives the next action's text, or a command as `:help`.

        Raises:
            EOFError: There is nothing more.
        """
        line = self._ask(prompt)
        while not line.strip():
            line = self._ask(prompt)
        command = line.strip().removeprefix(":")
        if command in COMMANDS and (line.strip().startswith(":") or command not in self._tools):
            return f":{command}"
        if line.rstrip().endswith(BLOCK.strip()) and line.split()[0] in self._tools:
            return self._rest([line.rstrip().removesuffix(BLOCK.strip()).rstrip()], lambda last: last.strip() == DOT)
        if mark := _closing_mark(line):
            return self._until(line, mark)
        if self._is_complete(line) or "</tool_call>" in line:
            return line
        return self._rest([line], lambda last: last.strip() in ("", DOT))

    def _is_complete(self, line: str) -> bool:
        name, _, rest = line.strip().partition(" ")
        parameters = self._tools.get(name)
        return parameters is not None and bool(rest.strip() or not parameters.get("required"))

    def _rest(self, lines: list[str], ends: Callable[[str], bool]) -> str:
        """Reads on up to a line that ends the action; so does the end of the input."""
        while True:
            try:
                line = self._ask("... ")
            except EOFError:
                return "\n".join(lines)
            if ends(line):
                return "\n".join(lines)
            lines.append(line)

    def _until(self, line: str, mark: str) -> str:
        """Reads on up to a line that has the mark in it; so does the end of the input."""
        lines = [line]
        with contextlib.suppress(EOFError):
            while True:
                lines.append(self._ask("... "))
                if mark in lines[-1]:
                    break
        return "\n".join(lines)


def _closing_mark(line: str) -> str | None:
    """What closes that which a line has opened."""
    if "<tool_call>" in line:
        return None if "</tool_call>" in line else "</tool_call>"
    return "```" if line.strip().startswith("```") and "```" not in line.strip()[3:] else None

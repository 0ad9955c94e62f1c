"""Where an action ends that is written line by line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from palaestra.cli.action_input import ActionInput
from palaestra.envs.code_sandbox import CodeSandboxEnv
from palaestra.envs.tools import tools_of

TOOLS = list(tools_of(CodeSandboxEnv).values())


def all_of(text: str) -> list[str]:
    """Every action in a text, up to its end."""
    lines: Iterator[str] = iter(text.split("\n"))

    def ask(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    actions, found = ActionInput(ask, TOOLS), []
    while True:
        try:
            found.append(actions.read("> "))
        except EOFError:
            return found


@pytest.mark.parametrize(
    ("text", "actions"),
    [
        ("submit\nsubmit", ["submit", "submit"]),
        ("run\nx = 1\nprint(x)\n\nsubmit", ["run\nx = 1\nprint(x)", "submit"]),
        ("run\nx = 1\n.\nsubmit", ["run\nx = 1", "submit"]),
        ("run print(1)\nsubmit", ["run print(1)", "submit"]),
        ("run <<\nx = 1\n\nprint(x)\n.\nsubmit", ["run\nx = 1\n\nprint(x)", "submit"]),
        ("edit\n    x = 1\n    x = 2\n.", ["edit\n    x = 1\n    x = 2"]),
        ("submit <<\nx = 1\n.", ["submit\nx = 1"]),
        ("run\nx = 1", ["run\nx = 1"]),
        ("\n\n  \nsubmit", ["submit"]),
        ('<tool_call>{"name": "submit"}</tool_call>\nsubmit', ['<tool_call>{"name": "submit"}</tool_call>', "submit"]),
        ('<tool_call>\n{"name":\n\n"submit"}\n</tool_call>', ['<tool_call>\n{"name":\n\n"submit"}\n</tool_call>']),
        ("```python\nx = 1\n\nx\n```\nsubmit", ["```python\nx = 1\n\nx\n```", "submit"]),
        ("what shall\nI do\n\nhelp", ["what shall\nI do", ":help"]),
        ("help\n:help\nquit\ntask", [":help", ":help", ":quit", ":task"]),
        ("helpless\n.", ["helpless"]),
        ("", []),
    ],
)
def test_an_action_ends_where_it_is_complete(text: str, actions: list[str]) -> None:
    assert all_of(text) == actions


def test_a_tool_goes_before_a_command_of_its_name() -> None:
    tool = {"function": {"name": "quit", "parameters": {"properties": {}, "required": []}}}
    lines = iter(["quit", ":quit"])
    actions = ActionInput(lambda prompt: next(lines), [tool])
    assert [actions.read("> "), actions.read("> ")] == ["quit", ":quit"]

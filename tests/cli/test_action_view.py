from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palaestra.cli.action_view import ActionPart, action_parts
from palaestra.cli.plain_text import one_line, visible


def tool_call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_the_plain_form_is_a_label_and_code() -> None:
    assert action_parts("run\ndef f(x):\n    return x") == [ActionPart("code", "def f(x):\n    return x", "run")]
    assert action_parts("submit") == [ActionPart("words", "", "submit")]


def test_an_edit_shows_what_goes_and_what_comes() -> None:
    removed, added = action_parts("edit\nx = 1\nx = 2")
    assert (removed, added) == (ActionPart("removed", "x = 1", "edit"), ActionPart("added", "x = 2"))
    assert action_parts(tool_call("edit", old="x = 1", new="x = 2")) == [removed, added]


def test_words_around_tool_calls_are_kept() -> None:
    text = f"I try this.\n{tool_call('run', code='print(1)')}\nthen {tool_call('wait', seconds=3)}"
    assert action_parts(text) == [
        ActionPart("words", "I try this."),
        ActionPart("code", "print(1)", "run"),
        ActionPart("words", "then"),
        ActionPart("words", "seconds = 3", "wait"),
    ]


def test_fenced_code_is_code() -> None:
    assert action_parts("See:\n```python\nx = 1\n```\nDone.") == [
        ActionPart("words", "See:"),
        ActionPart("code", "x = 1"),
        ActionPart("words", "Done."),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Hello there, I am a policy",
        "<tool_call>{broken",
        "<tool_call>[1, 2]</tool_call>",
        '<tool_call>{"name": "run", "arguments": 3}</tool_call>',
        "```",
        "",
    ],
)
def test_text_of_no_known_form_is_words(text: str) -> None:
    assert {part.kind for part in action_parts(text)} <= {"words"}


@given(st.text(alphabet=st.sampled_from('<tool_call>/{}":`\nrun edit\\'), max_size=60))
def test_no_text_makes_it_fail(text: str) -> None:
    assert all(part.kind in ("words", "code", "removed", "added") for part in action_parts(text))


@given(st.text())
def test_visible_text_has_no_control_characters_and_can_be_written(text: str) -> None:
    shown = visible(text)
    assert all(character >= " " or character in "\n\t" for character in shown)
    assert not set(shown) & set("\x7f\x9b\u202e\u2066\ufeff")
    shown.encode("utf-8")
    assert "\n" not in one_line(text)


def test_visible_keeps_what_can_be_read() -> None:
    assert visible("naïve → 漢字 🙂\n\tx") == "naïve → 漢字 🙂\n\tx"
    assert visible("\x1b[31mred\ud800\u202e") == "\\x1b[31mred\\ud800\\u202e"

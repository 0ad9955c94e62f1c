import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palaestra.envs.actions import PARSERS, Call, ParseError, format_tool_call, parse_action
from palaestra.envs.code_sandbox import CodeSandboxEnv
from palaestra.envs.tools import tools_of, usage

TOOLS = list(tools_of(CodeSandboxEnv).values())


def parse(text: str, parser: str = "auto") -> list[Call]:
    return parse_action(text, TOOLS, parser)


def test_schemas_follow_signatures_and_docstrings() -> None:
    assert [tool["function"]["name"] for tool in TOOLS] == ["run", "edit", "submit"]
    edit = TOOLS[1]["function"]["parameters"]
    assert edit["required"] == ["old", "new"]
    assert edit["properties"]["old"]["description"].startswith("The line as it stands")
    assert usage(TOOLS[2]).startswith("submit([code]): Hand in")


def test_plain_form() -> None:
    assert parse("run\nprint(1)\nprint(2)") == [Call("run", {"code": "print(1)\nprint(2)"})]
    assert parse("edit\n  x = 1\n  x = 2") == [Call("edit", {"old": "  x = 1", "new": "  x = 2"})]
    assert parse("edit\na\nb\n---\nc") == [Call("edit", {"old": "a\nb", "new": "c"})]
    assert parse("submit") == [Call("submit", {})]
    assert parse("run print(1)") == [Call("run", {"code": "print(1)"})]


def test_tool_calls_in_order_and_after_thinking() -> None:
    text = "<think>\nrun it?\n</think>\n" + format_tool_call("run", {"code": "x = 1"}) + format_tool_call("submit", {})
    assert parse(text) == [Call("run", {"code": "x = 1"}), Call("submit", {})]


def test_a_thought_that_the_prompt_opened_is_no_part_of_the_action() -> None:
    thought = "I could say <tool_call>...</tool_call>\nor run something.\n</think>\n\n"
    assert parse(thought + "run\nx = 1") == [Call("run", {"code": "x = 1"})]
    assert parse(thought + format_tool_call("submit", {})) == [Call("submit", {})]
    assert parse(thought + "```python\nx = 1\n```") == [Call("run", {"code": "x = 1"})]


@pytest.mark.parametrize("parser", ["auto", "plain", "tool_call", "fenced"])
def test_a_program_may_have_the_marker_of_a_thought_in_it(parser: str) -> None:
    code = "print('</think>')\nx = 1"
    forms = {"tool_call": format_tool_call("run", {"code": code}), "fenced": f"So:\n```python\n{code}\n```"}
    assert parse(forms.get(parser, f"run\n{code}"), parser) == [Call("run", {"code": code})]


def test_line_ends_of_windows_are_read() -> None:
    assert parse("edit\r\na\r\nb\r\n---\r\nc\r\n") == [Call("edit", {"old": "a\nb", "new": "c"})]
    assert parse("```python\r\nx = 1\r\ny = 2\r\n```") == [Call("run", {"code": "x = 1\ny = 2"})]


def test_arguments_given_as_json_text_are_read() -> None:
    call = json.dumps({"name": "run", "arguments": json.dumps({"code": "1"})})
    assert parse(f"<tool_call>{call}</tool_call>") == [Call("run", {"code": "1"})]


def test_fenced_code_goes_to_the_default_tool() -> None:
    assert parse("Let me try:\n```python\nprint(1)\n```\nDone.") == [Call("run", {"code": "print(1)"})]


def test_other_tools_can_be_called_beside_fenced_code() -> None:
    assert parse("submit", "fenced") == [Call("submit", {})]
    assert parse("edit\na\nb", "fenced") == [Call("edit", {"old": "a", "new": "b"})]
    with pytest.raises(ParseError, match="fenced block"):
        parse("print(1)", "fenced")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "say run, edit or submit"),
        ("hello there", "say run, edit or submit"),
        ("edit\nonly one", "edit takes old or new, one a line"),
        ("run", "run needs code"),
        ("<tool_call>{not json}</tool_call>", "not JSON"),
        ('<tool_call>{"name": "runs", "arguments": {}}</tool_call>', "did you mean 'run'"),
        ('<tool_call>{"name": "run", "arguments": {"cod": "1"}}</tool_call>', "no argument 'cod'"),
        ('<tool_call>{"name": "run", "arguments": {"code": 1}}</tool_call>', "must be a string"),
        ('<tool_call>["run"]</tool_call>', "needs"),
    ],
)
def test_bad_text_says_what_to_write(text: str, said: str) -> None:
    with pytest.raises(ParseError, match="error: ") as caught:
        parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


MARKERS = ["<tool_call>", "</tool_call>", "<think>", "</think>", "```", "```python\n", "---", "run", "edit", "submit"]
JSON_PARTS = ['{"name": "run", "arguments": ', '{"code": "1"}', "}", "[" * 3000, "9" * 5000]
PIECES = st.sampled_from([*MARKERS, *JSON_PARTS, "\n", "\r\n", " ", "\x00", "\ud800"])


@given(st.text(st.characters(exclude_categories=())) | st.lists(PIECES).map("".join), st.sampled_from(PARSERS))
def test_any_text_is_a_call_or_a_parse_error(text: str, parser: str) -> None:
    with contextlib.suppress(ParseError):
        assert parse(text, parser)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_in_a_tool_call_is_a_call_or_a_parse_error(value: object) -> None:
    with contextlib.suppress(ParseError):
        assert parse(f"<tool_call>{json.dumps(value)}</tool_call>")


@given(st.text(min_size=1))
def test_a_formatted_call_is_read_back(code: str) -> None:
    if "tool_call>" not in code and "</think>" not in code:
        assert parse(format_tool_call("run", {"code": code})) == [Call("run", {"code": code})]

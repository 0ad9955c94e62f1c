"""The fast path of chat templates: a reply that is always the same prefix, its content, the same suffix.

Whether a template is of that shape is decided by rendering probe conversations through it: different histories, actions
and contents must all give `prefix + content + suffix` and never a rewritten history. Contents that begin or end with
white space are probed apart, because many templates strip it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import ModelError
from ..core.messages import Message, Role, assistant, system, tool, user
from .templates import Template

_CONTENTS = (
    "plain",
    'two\nlines, with "quotes", {braces}, \\ and é',
    "<tool_response>x</tool_response>",
    "<think>a</think> b",
    "{'a': 1}",
    "3",
)
_SPACED_CONTENTS = ("", " lead", "trail \n", "\n\n")
_PLAIN_ACTIONS = (
    "submit",
    "run\ndef f(x):\n    return x",
    '<tool_call>\n{"name": "run", "arguments": {}}\n</tool_call>',
)
_MARKERS = ("think>", "[THINK]", "[/THINK]", "<|channel|>", "<|message|>")
"""What templates are known to look for in actions, to take reasoning out of them."""
_MARKED_ACTIONS = (
    "<think>\nwhy\n</think>\n\nsubmit",
    "<think>why</think>submit",
    "why</think>submit",
    "run<think>why</think>submit</think>",
    "[THINK]why[/THINK]submit",
    "<|channel|>analysis<|message|>why",
)
_HISTORIES: tuple[tuple[Message, ...], ...] = (
    (user("one"),),
    (system("be brief"), user("one")),
    (user("one"), assistant("run"), tool("two")),
    (user("one"), assistant("<think>\nhm\n</think>\n\nrun"), tool("two"), assistant("edit"), tool("three")),
)


@dataclass(frozen=True, slots=True)
class ReplyAffixes:
    """What a template writes around the only reply to an action, from behind the end marker to the next prompt."""

    prefix: str
    suffix: str
    any_white_space: bool
    """Whether contents that begin or end with white space, and empty ones, keep the shape as well."""
    after_any_action: bool
    """Whether the shape also holds after actions with marked reasoning in them, well-formed or not."""

    def around(self, content: str) -> str | None:
        """Gives the text of a reply with this content, or None where the shape is not known to hold."""
        if self.any_white_space or (content and not content[0].isspace() and not content[-1].isspace()):
            return self.prefix + content + self.suffix
        return None

    def holds_after(self, action: str) -> bool:
        """Whether the shape holds after this action."""
        return self.after_any_action or not any(marker in action for marker in _MARKERS)


def find_reply_affixes(template: Template, role: Role) -> ReplyAffixes | None:
    """Gives the affixes of replies with this role, or None when the template is not of that shape."""
    histories = [history for history in _HISTORIES if _renders(template, history)]
    first = _text(template, _HISTORIES[0], _PLAIN_ACTIONS[0], role, _CONTENTS[0])
    if first is None or first.count(_CONTENTS[0]) != 1:
        return None
    prefix, _, suffix = first.partition(_CONTENTS[0])

    def holds(actions: tuple[str, ...], contents: tuple[str, ...]) -> bool:
        return all(
            _text(template, history, action, role, content) == prefix + content + suffix
            for history in histories
            for action in actions
            for content in contents
        )

    if not holds(_PLAIN_ACTIONS, _CONTENTS):
        return None
    return ReplyAffixes(
        prefix,
        suffix,
        any_white_space=holds(_PLAIN_ACTIONS[:1], _SPACED_CONTENTS),
        after_any_action=holds(_MARKED_ACTIONS, _CONTENTS),
    )


def _renders(template: Template, history: tuple[Message, ...]) -> bool:
    """Some templates refuse system or tool messages; such histories cannot occur."""
    try:
        template.render(history)
    except ModelError:
        return False
    return True


def _text(template: Template, history: tuple[Message, ...], action: str, role: Role, content: str) -> str | None:
    reply: Message = {"role": role, "content": content}
    try:
        text = template.after_action(history, (), action, [reply])
    except ModelError:
        return None  # a template that refuses such replies has no affixes
    return text and text.removeprefix(template.end_text)

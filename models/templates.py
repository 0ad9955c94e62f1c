"""A chat template as text: rendering, the end marker, and what follows an action.

Everything is found by rendering, so that no template has to be known by name. Roles that a template refuses or does not
show are spoken by the user: a system text opens the first user message, and tool replies are user messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import ModelError
from ..core.messages import Message, Role, assistant, system, tool, user

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "palaestra-mark-7f3a91"
"""Stands for an action in a rendering, so that its place can be found again."""


class Template:
    """A tokenizer's chat template.

    Raises:
        ModelError: The template cannot be rendered, or hides what assistants say.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._foreign: set[Role] = set()
        """Roles that the template does not know."""
        probes = {"system": [system(MARK), user("Hello.")], "tool": [user("Hello."), assistant("Hi."), tool(MARK)]}
        for role, probe in probes.items():
            if not self._shows(probe):
                self._foreign.add(role)  # pyright: ignore[reportArgumentType]
        self.end_text = self._find_end_text()
        """The end marker of an assistant's message."""

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), generation_prompt: bool = True
    ) -> str:
        """Gives the text of a conversation."""
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                self._in_known_roles(messages),  # pyright: ignore[reportArgumentType]
                tools=list(tools) or None,  # pyright: ignore[reportArgumentType]
                add_generation_prompt=generation_prompt,
                tokenize=False,
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ModelError(f"the chat template refuses a conversation of {roles}: {error}") from error
        return str(text)

    def after_action(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        action: str,
        replies: Sequence[Message],
    ) -> str | None:
        """Gives the text from the end marker of an action to the next generation prompt.

        None means that the template rewrites what came before: the rendering of the history, the action in it, is no
        longer what the policy saw and wrote (white space and empty `<think>` blocks aside).
        """
        before = self.render(messages, tools, generation_prompt=False)
        prompt = self.render(messages, tools)
        marked = self.render([*messages, assistant(MARK), *replies], tools)
        whole = self.render([*messages, assistant(action), *replies], tools)
        following = marked.rpartition(MARK)[2]
        if not (prompt.startswith(before) and whole.startswith(before) and whole.endswith(following)):
            return None
        written = whole[len(before) : len(whole) - len(following)]
        if _essence(written) != _essence(prompt[len(before) :] + action):
            return None
        end = following.find(self.end_text)
        return following[end:] if end >= 0 else self.end_text + following

    def _in_known_roles(self, messages: Sequence[Message]) -> list[Message]:
        if not self._foreign:
            return list(messages)
        known: list[Message] = []
        for message in messages:
            mine = user(message["content"]) if message["role"] in self._foreign else message
            if (
                mine["role"] == "user" and known and known[-1]["role"] == "user"
            ):  # such templates want roles to alternate
                mine = user(f"{known.pop()['content']}\n\n{mine['content']}")
            known.append(mine)
        return known

    def _shows(self, probe: Sequence[Message]) -> bool:
        try:
            return MARK in self.render(probe)
        except ModelError:
            return False

    def _find_end_text(self) -> str:
        """The first special token that the template writes after an assistant's words, else the end token."""
        text = self.render([user("Hello."), assistant(MARK)], generation_prompt=False)
        _, mark, closing = text.rpartition(MARK)
        if not mark:
            raise ModelError("the chat template does not show assistant messages")
        specials = {str(token) for token in self._tokenizer.all_special_tokens}
        added: Any = self._tokenizer.get_added_vocab  # pyright: ignore[reportAttributeAccessIssue]
        specials |= {str(token) for token in added()}
        found = [(closing.find(token), -len(token), token) for token in specials if token and token in closing]
        return min(found)[2] if found else str(self._tokenizer.eos_token)


def _essence(text: str) -> str:
    """Text without white space and empty thoughts, which templates move about without changing what was said."""
    return "".join(text.split()).replace("<think></think>", "")

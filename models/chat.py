"""Messages to tokens and back, for any tokenizer with a chat template; a conversation's tokens are append-only.

What a policy sampled is kept token by token. What follows it (the closing of its turn, tool replies, the next
generation prompt) is what the template renders after the action, and is tokenised on its own. Where a template rewrites
what came before (Qwen3 strips `<think>` of earlier turns at a new user message) a new segment begins.

It does not decide what messages say, and it neither escapes nor forbids markers inside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.messages import Message, assistant
from ..core.trajectories import Segment, Turn
from .loading import check_tokenizer
from .reply_affixes import ReplyAffixes, find_reply_affixes
from .templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ToolSchema = Mapping[str, Any]
_PROMPT_MEMORY = 4096


@dataclass(slots=True, eq=False)
class Conversation:
    """One agent's messages so far, for `ChatFormat.extend`."""

    messages: list[Message]
    tools: Sequence[ToolSchema]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What a policy wrote in one turn."""

    text: str
    ended: bool
    """Whether it closed its turn with an end token; False when it was cut off at a length limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """The context that follows an action."""

    token_ids: list[int]
    new_segment: bool
    """True = the template rewrote history: the tokens are a whole new prompt, the first ones of a new segment."""


class ChatFormat:
    """A tokenizer's chat template as a token stream.

    Attributes:
        end_ids: Tokens that end a policy's turn: the template's own and the tokenizer's end token.

    Raises:
        ModelError: The tokenizer has no chat template or no end token, or the template cannot be rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        check_tokenizer(tokenizer, getattr(tokenizer, "name_or_path", "") or "tokenizer")
        self.tokenizer = tokenizer
        self._template = Template(tokenizer)
        self.end_text = self._template.end_text
        """What the template writes to end an assistant's message, such as `<|im_end|>`."""
        self.end_ids = frozenset({token_id(tokenizer, str(tokenizer.eos_token)), token_id(tokenizer, self.end_text)})
        self._backend = _private_backend(tokenizer)
        self._affixes: dict[str, ReplyAffixes | None] = {
            role: find_reply_affixes(self._template, role) for role in ("tool", "user")
        }
        self._prompts: dict[Any, list[int]] = {}
        self._tools_key: tuple[Sequence[ToolSchema], str] = ((), "")

    # -- prompts and replies -------------------------------------------------------------------------------------

    def start(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """Gives the tokens of the first prompt, generation prompt included; equal prompts are rendered once."""
        key = (self._key_of_tools(tools), *((message["role"], message["content"]) for message in messages))
        ids = self._prompts.get(key)
        if ids is None:
            ids = self.encode([self._template.render(messages, tools)])[0]
            if len(self._prompts) >= _PROMPT_MEMORY:
                self._prompts.clear()
            self._prompts[key] = ids
        return list(ids)

    def extend(self, conversation: Conversation, action: Action, replies: Sequence[Message]) -> Extension:
        """Appends an action and the replies to it; gives the tokens that follow the action."""
        return self.extend_batch([(conversation, action, replies)])[0]

    def extend_batch(self, items: Sequence[tuple[Conversation, Action, Sequence[Message]]]) -> list[Extension]:
        """`extend` for many conversations; all texts are encoded in one call."""
        pieces: list[_Piece] = []
        for conversation, action, replies in items:
            pieces.append(self._following(conversation, action, replies))
            conversation.messages += [assistant(action.text), *replies]
        encoded = self.encode([piece.text for piece in pieces])
        return [
            Extension(token_ids=piece.without_end(ids), new_segment=piece.starts_segment)
            for piece, ids in zip(pieces, encoded, strict=True)
        ]

    def _following(self, conversation: Conversation, action: Action, replies: Sequence[Message]) -> _Piece:
        """What follows an action, from its end marker on, or the whole prompt where history was rewritten.

        The end marker is tokenised with what follows it, also where the policy sampled one itself: tokenizers may treat
        the beginning of a text differently (a space before it) from what stands behind a marker.
        """
        if len(replies) == 1:
            affixes = self._affixes.get(replies[0]["role"])
            text = affixes and affixes.around(replies[0]["content"])
            if text is not None and affixes is not None and affixes.holds_after(action.text):
                return _Piece(self.end_text + text, end_is_sampled=action.ended)
        following = self._template.after_action(conversation.messages, conversation.tools, action.text, replies)
        if following is None:
            history = [*conversation.messages, assistant(action.text), *replies]
            return _Piece(self._template.render(history, conversation.tools), starts_segment=True)
        return _Piece(following, end_is_sampled=action.ended)

    # -- tokens ---------------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises texts as they are: markers become their tokens and nothing is added."""
        texts = [_well_formed(text) for text in texts]
        if self._backend is None:
            return [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Gives an action's text: without its end token, with everything else (such as `<tool_call>`)."""
        return self.decode_batch([token_ids])[0]

    def decode_batch(self, actions: Sequence[Sequence[int]]) -> list[str]:
        """`decode` for many actions."""
        bare = [ids[:-1] if len(ids) and ids[-1] in self.end_ids else ids for ids in actions]
        if self._backend is None:
            options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
            return [str(self.tokenizer.decode(list(ids), **options)) for ids in bare]
        return self._backend.decode_batch(bare, skip_special_tokens=False)

    def _key_of_tools(self, tools: Sequence[ToolSchema]) -> str:
        known, key = self._tools_key
        if tools is known or tools == known:
            return key
        self._tools_key = (tools, json.dumps(list(tools), sort_keys=True))
        return self._tools_key[1]

    # -- demonstrations -------------------------------------------------------------------------------------------

    def render_episode(self, turns: Sequence[Turn], tools: Sequence[ToolSchema] = ()) -> list[Segment]:
        """Gives the segments that a rollout with exactly these actions would have recorded (log-probs are NaN)."""
        return self.render_episodes([turns], tools)[0]

    def render_episodes(
        self, episodes: Sequence[Sequence[Turn]], tools: Sequence[ToolSchema] = ()
    ) -> list[list[Segment]]:
        """`render_episode` for many demonstrations; each different piece is tokenised once, all of them in one call.

        Args:
            episodes: The turns of each episode: `messages` read before the action, and the `action` text.
            tools: Tool schemas, for templates that show them.
        """
        pieces = [self._pieces(turns, tools) for turns in episodes]
        texts = list(dict.fromkeys(piece.text for episode in pieces for piece in episode))
        ids_of = dict(zip(texts, self.encode(texts), strict=True))
        return [_segments(episode, [ids_of[piece.text] for piece in episode]) for episode in pieces]

    def _pieces(self, turns: Sequence[Turn], tools: Sequence[ToolSchema]) -> list[_Piece]:
        if not turns:
            return []
        conversation = Conversation(list(turns[0].messages), tools)
        pieces = [_Piece(self._template.render(turns[0].messages, tools), starts_segment=True)]
        for turn, following in zip(turns, [*turns[1:], None], strict=True):
            pieces.append(_Piece(turn.action + self.end_text, sampled=True))
            if following is None:
                break
            action = Action(text=turn.action, ended=True)
            pieces.append(self._following(conversation, action, following.messages))
            conversation.messages += [assistant(turn.action), *following.messages]
        return pieces


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    sampled: bool = field(default=False, kw_only=True)
    starts_segment: bool = field(default=False, kw_only=True)
    end_is_sampled: bool = field(default=False, kw_only=True)
    """Whether the end marker that the text begins with stands in the record already."""

    def without_end(self, token_ids: list[int]) -> list[int]:
        """The tokens of this text that are not in the record yet."""
        return token_ids[1:] if self.end_is_sampled else token_ids


def _segments(pieces: Sequence[_Piece], encoded: Sequence[list[int]]) -> list[Segment]:
    segments: list[Segment] = []
    ids: list[int] = []
    mask: list[bool] = []
    for i, (piece, encoded_ids) in enumerate(zip(pieces, encoded, strict=True)):
        piece_ids = piece.without_end(encoded_ids)
        ids += piece_ids
        mask += [piece.sampled] * len(piece_ids)
        if i + 1 == len(pieces) or pieces[i + 1].starts_segment:
            segments.append(
                Segment(
                    token_ids_T=np.array(ids, dtype=np.int32),
                    action_mask_T=np.array(mask, dtype=np.bool_),
                    logprobs_T=np.full(len(ids), np.nan, dtype=np.float32),
                )
            )
            ids, mask = [], []
    return segments


def _well_formed(text: str) -> str:
    """The text, with the halves of surrogate pairs (which programs can print) joined, or else replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Gives the id of one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def _private_backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """A copy of a fast tokenizer's Rust side (calls elsewhere may switch padding or truncation on); else None."""
    if not tokenizer.is_fast:
        return None
    from tokenizers import Tokenizer

    shared: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    backend = Tokenizer.from_str(shared.to_str())
    backend.no_padding()
    backend.no_truncation()
    return backend

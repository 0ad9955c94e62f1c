"""Conversations through templates that lack roles, with SentencePiece-like and slow tokenizers.

The templates here stand for families: Mistral's (no system, no tool role, no generation prompt), Gemma's (no
system, no tool role), Zephyr's (drops what it does not know without a word), DeepSeek-R1's (opens the thought itself).
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from palaestra.core.messages import Message, assistant, system, tool, user
from palaestra.core.trajectories import Turn
from palaestra.models.chat import Action, ChatFormat, Conversation, Extension
from palaestra.models.tokenizers import COMPACT_TEMPLATE

TEMPLATES = Path(__file__).parent / "templates"
LETTERS = "abcdefghijklmnopqrstuvwxyz[]/.,:()INST|<>="
SPECIALS = {
    "mistral": [],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "zephyr": [],
    "r1": ["<|User|>", "<|Assistant|>"],
}
SPACES = {"mistral": "always", "gemma": "never", "zephyr": "normalizer", "r1": "first"}
"""Where each puts the space that SentencePiece writes before a text."""


def sentence_pieces(name: str) -> PreTrainedTokenizerFast:
    """Letters and byte fallback, as Llama 2, Mistral and Gemma have them."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", *bytes_, "▁", *dict.fromkeys(LETTERS)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    if SPACES[name] == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=SPACES[name], split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>", *SPECIALS[name])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=(TEMPLATES / f"{name}_style.jinja").read_text(),
    )


def slow_bytes() -> ByT5Tokenizer:
    """A tokenizer in Python, one token per byte."""
    tokenizer = ByT5Tokenizer(extra_ids=0, clean_up_tokenization_spaces=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = COMPACT_TEMPLATE
    return tokenizer


MAKERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    **{name: lambda name=name: sentence_pieces(name) for name in SPECIALS},
    "slow": slow_bytes,
}
CHATS: dict[str, ChatFormat] = {}


@pytest.fixture(params=MAKERS)
def chat(request: pytest.FixtureRequest) -> ChatFormat:
    return chat_of(request.param)


def chat_of(name: str) -> ChatFormat:
    if name not in CHATS:
        CHATS[name] = ChatFormat(MAKERS[name]())
    return CHATS[name]


def text_of(chat: ChatFormat, ids: list[int]) -> str:
    return str(chat.tokenizer.decode(ids, skip_special_tokens=False))


def extended(chat: ChatFormat, replies: list[Message]) -> Extension:
    return chat.extend(Conversation([user("go")], ()), Action(text="run", ended=True), replies)


def test_no_message_is_refused_or_lost(chat: ChatFormat) -> None:
    prompt = text_of(chat, chat.start([system("be brief"), user("go")]))
    assert prompt.index("be brief") < prompt.index("go")
    for replies in ([tool("first")], [tool("first"), tool("second")], [user("first")], [tool("first"), user("second")]):
        text = text_of(chat, extended(chat, replies).token_ids)
        places = [text.find(message["content"]) for message in replies]
        assert -1 not in places
        assert places == sorted(places)


def test_roles_that_a_template_lacks_are_spoken_by_the_user() -> None:
    mistral, zephyr = chat_of("mistral"), chat_of("zephyr")
    assert mistral._template.render([system("be brief"), user("go")]) == "<s>[INST] be brief\n\ngo [/INST]"
    conversation = [user("go"), assistant("run"), tool("one"), tool("two")]
    assert mistral._template.render(conversation) == "<s>[INST] go [/INST] run</s>[INST] one\n\ntwo [/INST]"
    assert zephyr._template.render([system("be"), *conversation[:3]]) == (
        "<|system|>\nbe</s>\n<|user|>\ngo</s>\n<|assistant|>\nrun</s>\n<|user|>\none</s>\n<|assistant|>\n"
    )


def test_what_follows_an_action_is_tokenised_as_in_the_whole(chat: ChatFormat) -> None:
    """No space of the tokenizer's own comes between a sampled end marker and what the template writes after it."""
    for replies in ([tool("ok")], [tool("a"), tool("b")]):
        conversation = Conversation([user("go")], ())
        extension = chat.extend(conversation, Action(text="run", ended=True), replies)
        whole = chat.encode([chat._template.render(conversation.messages)])[0]
        assert extension.token_ids == whole[-len(extension.token_ids) :]
        cut = chat.extend(Conversation([user("go")], ()), Action(text="run", ended=False), replies)
        assert cut.token_ids == (extension.token_ids if extension.new_segment else whole[-len(cut.token_ids) :])
        assert extension.new_segment or len(cut.token_ids) == len(extension.token_ids) + 1


def test_a_template_that_opens_the_thought_begins_a_segment_each_turn() -> None:
    extension = extended(chat_of("r1"), [tool("ok")])
    assert extension.new_segment
    assert (
        text_of(chat_of("r1"), extension.token_ids)
        == "<s><|User|>go<|Assistant|>run</s><|User|>ok<|Assistant|><think>\n"
    )


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(sorted(MAKERS)))
def test_conversations_are_append_only_and_demonstrations_have_the_same_tokens(seed: int, name: str) -> None:
    chat, rng = chat_of(name), random.Random(seed)
    messages: list[Message] = [system("be")] * rng.randint(0, 1) + [user("go")]
    conversation = Conversation(list(messages), ())
    segments, turns = [chat.start(messages)], []
    for _ in range(rng.randint(1, 4)):
        action = rng.choice(["submit", "run\nx = 1", "why</think>run", "", " a , b .", "é"])
        turns.append(Turn(action=action, observation="", messages=tuple(messages)))
        segments[-1] += chat.encode([action + chat.end_text])[0]
        messages = [tool(rng.choice(["1", " x ", "", "got [1,2]\nwant é"])) for _ in range(rng.choice([1, 1, 2]))]
        extension = chat.extend(conversation, Action(text=action, ended=True), messages)
        assert extension.new_segment == (name == "r1"), "tool replies rewrite nothing"
        if extension.new_segment:
            segments.append([])
        segments[-1] += extension.token_ids
    rendered = [segment.token_ids_T.tolist() for segment in chat.render_episode(turns)]
    assert rendered == [ids[: len(record)] for ids, record in zip(segments, rendered, strict=False)]
    assert len(rendered) == (len(turns) if name == "r1" else 1)


@given(st.text(st.characters(exclude_categories=())), st.sampled_from(sorted(MAKERS)))
def test_any_text_can_be_said(text: str, name: str) -> None:
    """Half a surrogate pair, which a program may print, is no UTF-8: tokenizers refuse it."""
    chat = chat_of(name)
    prompt = chat.start([user(text)])
    assert prompt
    assert all(type(token) is int for token in prompt)
    assert extended(chat, [tool(text)]).token_ids


def test_halves_of_surrogate_pairs_are_joined_or_replaced() -> None:
    slow = chat_of("slow")
    assert slow.encode(["a\ud83d\ude00b\ud800"]) == slow.encode(["a😀b\ufffd"])


def test_actions_are_decoded_as_they_were_written() -> None:
    slow = chat_of("slow")
    action = "x = [a , b] . it 's"
    assert slow.decode(slow.encode([action + slow.end_text])[0]) == action, "white space is not tidied up"

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from palaestra.core.errors import ModelError
from palaestra.core.messages import Message, assistant, system, tool, user
from palaestra.core.trajectories import SegmentBuilder, Turn
from palaestra.models.chat import Action, ChatFormat, Conversation

TOOLS = [{"type": "function", "function": {"name": "run", "description": "Runs code.", "parameters": {}}}]
CALL = '<tool_call>\n{"name": "run", "arguments": {"code": "print(1)"}}\n</tool_call>'
FORMATS = ("compact", "qwen", "llama")


@pytest.fixture(scope="session")
def chats(
    compact_tokenizer: PreTrainedTokenizerFast,
    qwen_tokenizer: PreTrainedTokenizerFast,
    llama_tokenizer: PreTrainedTokenizerFast,
) -> dict[str, ChatFormat]:
    return {
        "compact": ChatFormat(compact_tokenizer),
        "qwen": ChatFormat(qwen_tokenizer),
        "llama": ChatFormat(llama_tokenizer),
    }


def text_of(chat: ChatFormat, ids: list[int]) -> str:
    return str(chat.tokenizer.decode(ids, skip_special_tokens=False))


def ended(text: str) -> Action:
    return Action(text=text, ended=True)


# ------------------------------------------------------------------------------------------------------ known texts
def test_compact_conversation_reads_as_documented(chats: dict[str, ChatFormat]) -> None:
    chat = chats["compact"]
    conversation = Conversation([user("Take x.")], ())
    assert (
        text_of(chat, chat.start([user("Take x.")])) == "<|im_start|>user\nTake x.<|im_end|>\n<|im_start|>assistant\n"
    )
    following = chat.extend(conversation, ended("submit"), [tool("got 5")])
    assert text_of(chat, following.token_ids) == "\n<|im_start|>tool\ngot 5<|im_end|>\n<|im_start|>assistant\n"
    assert not following.new_segment
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool"]


def test_compact_template_ignores_tools(chats: dict[str, ChatFormat]) -> None:
    assert chats["compact"].start([user("a")], TOOLS) == chats["compact"].start([user("a")])


def test_qwen_style_shows_tools_and_answers_as_tool_responses(chats: dict[str, ChatFormat]) -> None:
    chat = chats["qwen"]
    prompt = text_of(chat, chat.start([system("Be brief."), user("Go.")], TOOLS))
    assert '"name": "run"' in prompt
    assert prompt.endswith("<|im_start|>user\nGo.<|im_end|>\n<|im_start|>assistant\n")
    conversation = Conversation([system("Be brief."), user("Go.")], TOOLS)
    following = chat.extend(conversation, ended(CALL), [tool("1")])
    assert text_of(chat, following.token_ids) == (
        "\n<|im_start|>user\n<tool_response>\n1\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_several_replies_come_in_one_extension(chats: dict[str, ChatFormat]) -> None:
    following = chats["qwen"].extend(Conversation([user("Go.")], TOOLS), ended(CALL), [tool("1"), tool("2")])
    assert text_of(chats["qwen"], following.token_ids) == (
        "\n<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert not following.new_segment


def test_llama_style_ends_turns_with_its_own_token(chats: dict[str, ChatFormat]) -> None:
    chat = chats["llama"]
    assert chat.end_text == "<|eot_id|>"
    names = {str(chat.tokenizer.convert_ids_to_tokens(i)) for i in chat.end_ids}
    assert names == {"<|eot_id|>", "<|end_of_text|>"}
    following = chat.extend(Conversation([user("Go.")], ()), ended("run"), [tool("  spaced ")])
    assert text_of(chat, following.token_ids) == (
        "<|start_header_id|>ipython<|end_header_id|>\n\nspaced<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize("name", FORMATS)
def test_the_closing_of_an_action_that_was_cut_off_is_context(chats: dict[str, ChatFormat], name: str) -> None:
    chat = chats[name]
    closed = chat.extend(Conversation([user("Go.")], ()), ended("run"), [tool("1")])
    cut = chat.extend(Conversation([user("Go.")], ()), Action(text="run", ended=False), [tool("1")])
    assert text_of(chat, cut.token_ids) == chat.end_text + text_of(chat, closed.token_ids)


# ------------------------------------------------------------------------------------------------- rewritten history
def test_a_tool_reply_keeps_the_reasoning_and_a_user_message_starts_a_new_segment(chats: dict[str, ChatFormat]) -> None:
    chat, thought = chats["qwen"], f"<think>\nprint it\n</think>\n\n{CALL}"
    conversation = Conversation([user("Go.")], TOOLS)
    assert not chat.extend(conversation, ended(thought), [tool("1")]).new_segment
    following = chat.extend(conversation, ended("<think>\nfine\n</think>\n\ndone"), [user("Again.")])
    assert following.new_segment
    rendered = text_of(chat, following.token_ids)
    assert rendered.startswith("<|im_start|>system\n")
    assert "<think>" not in rendered
    assert rendered.endswith("<|im_start|>user\nAgain.<|im_end|>\n<|im_start|>assistant\n")


def test_a_user_message_without_reasoning_before_it_goes_on_in_the_segment(chats: dict[str, ChatFormat]) -> None:
    following = chats["qwen"].extend(Conversation([user("Go.")], ()), ended("done"), [user("Again.")])
    assert not following.new_segment
    assert text_of(chats["qwen"], following.token_ids) == (
        "\n<|im_start|>user\nAgain.<|im_end|>\n<|im_start|>assistant\n"
    )


# --------------------------------------------------------------------------------------------------- the fast path
def test_which_templates_have_affixes(chats: dict[str, ChatFormat]) -> None:
    affixes = {(name, role): chats[name]._affixes[role] for name in FORMATS for role in ("tool", "user")}
    assert affixes.pop(("qwen", "user")) is None, "a user message may rewrite what came before"
    assert all(affixes.values())
    assert affixes["compact", "tool"].any_white_space
    assert affixes["compact", "user"].after_any_action
    assert affixes["qwen", "tool"].any_white_space
    assert not affixes["qwen", "tool"].after_any_action, "malformed reasoning is rewritten"
    assert not affixes["llama", "tool"].any_white_space, "the template trims contents"


PIECES = ("run", "x = 1", "<think>", "</think>", "\n", " ", "got 5", CALL, '"', "{", "é", "<tool_response>")
TEXTS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=TEXTS,
    action=TEXTS,
    reply=TEXTS,
    role=st.sampled_from(["tool", "user"]),
    name=st.sampled_from(FORMATS),
    closed=st.booleans(),
)
def test_the_fast_path_gives_what_rendering_gives(
    chats: dict[str, ChatFormat], said: str, action: str, reply: str, role: str, name: str, closed: bool
) -> None:
    chat = chats[name]
    message: Message = {"role": role, "content": reply}  # pyright: ignore[reportAssignmentType]
    history: list[Message] = [user("one"), assistant(said), tool("two")]
    taken = Action(text=action, ended=closed)
    fast = chat._following(Conversation(list(history), ()), taken, [message])
    affixes, chat._affixes = chat._affixes, {}
    try:
        slow = chat._following(Conversation(list(history), ()), taken, [message])
    finally:
        chat._affixes = affixes
    assert fast == slow


# ------------------------------------------------------------------------------------------------------ the property
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.sampled_from(FORMATS))
def test_conversations_are_append_only(chats: dict[str, ChatFormat], seed: int, name: str) -> None:
    """What a policy read before turn k is a prefix of what it reads before turn k+1; its actions stand between."""
    chat, rng = chats[name], random.Random(seed)
    actions = ["submit", "run\nx = 1", CALL, f"<think>\nhm\n</think>\n\n{CALL}", "edit\na\nb", ""]
    messages: list[Message] = [system("Be brief.")] if rng.random() < 0.5 else []
    conversation = Conversation([*messages, user("Take x, then sum it.")], TOOLS)
    stream = chat.start(conversation.messages, TOOLS)
    for _ in range(rng.randint(1, 6)):
        text = rng.choice(actions)
        action_ids = chat.encode([text + chat.end_text])[0]
        assert chat.decode(action_ids) == text
        before = [*stream, *action_ids]
        replies = [tool(rng.choice(["1", "got 5\nwant 0", " x ", ""])) for _ in range(rng.choice([1, 1, 1, 2]))]
        following = chat.extend(conversation, ended(text), replies)
        assert not following.new_segment, "tool replies rewrite nothing"
        stream = [*before, *following.token_ids]
        assert stream[: len(before)] == before
    rendered = text_of(chat, stream)
    assert rendered.count("assistant") >= len([m for m in conversation.messages if m["role"] == "assistant"])


@pytest.mark.parametrize("name", FORMATS)
def test_the_stream_is_what_the_template_renders(chats: dict[str, ChatFormat], name: str) -> None:
    """For actions in the template's own form, the text of the stream is the rendering of the whole conversation."""
    chat = chats[name]
    conversation = Conversation([system("Be brief."), user("Go.")], TOOLS)
    stream = text_of(chat, chat.start(conversation.messages, TOOLS))
    for action, reply in ((CALL, "1"), ("edit\na\nb", "two\nlines"), ("submit", "ok")):
        stream += action + chat.end_text
        stream += text_of(chat, chat.extend(conversation, ended(action), [tool(reply)]).token_ids)
    assert stream == chat.tokenizer.apply_chat_template(
        conversation.messages, tools=TOOLS, tokenize=False, add_generation_prompt=True
    )


# ---------------------------------------------------------------------------------------------------- demonstrations
def demonstration(rng: random.Random, replies: str = "tool") -> list[Turn]:
    turns: list[Turn] = []
    messages: tuple[Message, ...] = (system("Be brief."), user(f"Take x, drop {rng.randint(1, 9)} items."))
    for _ in range(rng.randint(1, 4)):
        action = rng.choice([CALL, "run\nx = x[::2]", "<think>\nhm\n</think>\n\nrun", "submit"])
        turns.append(Turn(action=action, observation="", messages=messages))
        messages = (tool("got 5"),) if replies == "tool" or rng.random() < 0.5 else (user("More."),)
    return turns


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("replies", ["tool", "both"])
def test_demonstrations_have_the_tokens_that_a_rollout_records(
    chats: dict[str, ChatFormat], name: str, replies: str
) -> None:
    chat, rng = chats[name], random.Random(1)
    episodes = [demonstration(rng, replies) for _ in range(20)]
    for turns, segments in zip(episodes, chat.render_episodes(episodes, TOOLS), strict=True):
        conversation = Conversation(list(turns[0].messages), TOOLS)
        builders = [SegmentBuilder()]
        builders[-1].append_context(chat.start(conversation.messages, TOOLS))
        for i, turn in enumerate(turns):
            ids = chat.encode([turn.action + chat.end_text])[0]
            builders[-1].append_action(ids, [float("nan")] * len(ids))
            if i + 1 < len(turns):
                following = chat.extend(conversation, ended(turn.action), turns[i + 1].messages)
                if following.new_segment:
                    builders.append(SegmentBuilder())
                builders[-1].append_context(following.token_ids)
        assert len(segments) == len(builders)
        for segment, builder in zip(segments, builders, strict=True):
            built = builder.build()
            np.testing.assert_array_equal(segment.token_ids_T, built.token_ids_T)
            np.testing.assert_array_equal(segment.action_mask_T, built.action_mask_T)
            assert np.isnan(segment.logprobs_T).all()
    if name == "qwen" and replies == "both":
        assert any(len(chat.render_episode(turns, TOOLS)) > 1 for turns in episodes), "some history was rewritten"


def test_an_episode_without_turns_has_no_segments(chats: dict[str, ChatFormat]) -> None:
    assert chats["compact"].render_episode([]) == []


# ------------------------------------------------------------------------------------------------------- bad input
def test_padding_switched_on_elsewhere_changes_nothing(compact_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatFormat(compact_tokenizer)
    before = chat.encode(["a", "much longer text"])
    compact_tokenizer(["a", "much longer text"], padding=True, truncation=True, max_length=3)
    assert chat.encode(["a", "much longer text"]) == before


def test_a_tokenizer_without_template_or_end_token_is_refused(compact_tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=compact_tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    with pytest.raises(ModelError, match="no chat template"):
        ChatFormat(bare)
    endless = PreTrainedTokenizerFast(
        tokenizer_object=compact_tokenizer.backend_tokenizer, chat_template=compact_tokenizer.chat_template
    )
    with pytest.raises(ModelError, match="no end token"):
        ChatFormat(endless)


def test_a_role_that_the_template_refuses_is_a_one_line_error(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match=r"refuses a conversation of user, judge: unknown role judge"):
        ChatFormat(llama_tokenizer).start([user("a"), {"role": "judge", "content": "b"}])  # pyright: ignore


def test_a_template_that_hides_assistants_is_refused(compact_tokenizer: PreTrainedTokenizerFast) -> None:
    deaf = PreTrainedTokenizerFast(
        tokenizer_object=compact_tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        chat_template="{{ messages[0]['content'] }}",
    )
    with pytest.raises(ModelError, match="does not show assistant messages"):
        ChatFormat(deaf)

"""What of a demonstration is learnt: the expert's own actions, and of those only what the environment accepted."""

from __future__ import annotations

import pytest

from palaestra.agents.demonstrations import generate_demos
from palaestra.core.errors import ConfigError
from palaestra.core.trajectories import Episode, Segment
from palaestra.learners.demonstration_data import texts, tokenised
from palaestra.models.chat import ChatFormat
from palaestra.models.tokenizers import train_tokenizer


def demos(expert: str, n: int = 40) -> list[Episode]:
    keywords = {"prompt_style": "compact", "levels": [3, 5]}
    return list(generate_demos("CodeSandbox-v0", n, 5, mix={expert: 1.0}, env_kwargs=keywords))


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(train_tokenizer(texts(demos("careful")), 400))


def learnt(chat: ChatFormat, segment: Segment) -> str:
    """The text of the tokens that are trained on."""
    return str(chat.tokenizer.decode(segment.token_ids_T[segment.action_mask_T].tolist()))


def test_refused_actions_are_read_and_not_learnt(chat: ChatFormat) -> None:
    episodes = demos("careful")
    refused = 0
    for episode, segment in zip(episodes, tokenised(episodes, chat, [], 4096), strict=True):
        turns = episode.trajectories[0].turns
        refused += sum(turn.parse_error is not None for turn in turns)
        accepted = [turn.action for turn in turns if turn.parse_error is None]
        assert learnt(chat, segment) == "".join(action + chat.end_text for action in accepted)
        whole = str(chat.tokenizer.decode(segment.token_ids_T.tolist()))
        assert all(turn.action in whole for turn in turns)
    assert refused >= 5


def test_a_reviewers_first_action_was_somebody_elses(chat: ChatFormat) -> None:
    episodes = demos("reviewer")
    assert {episode.trajectories[0].forked_at for episode in episodes} == {1}
    for episode, segment in zip(episodes, tokenised(episodes, chat, [], 4096), strict=True):
        own = [turn.action for turn in episode.trajectories[0].turns[1:] if turn.parse_error is None]
        assert learnt(chat, segment) == "".join(action + chat.end_text for action in own)
    assert sum(bool(episode.success) for episode in episodes) >= 36


def test_demonstrations_that_are_too_long_are_left_out(chat: ChatFormat) -> None:
    episodes = demos("careful")
    lengths = sorted(len(segment) for segment in tokenised(episodes, chat, [], 4096))
    kept = tokenised(episodes, chat, [], lengths[20])
    assert [length for length in lengths if length <= lengths[20]] == sorted(map(len, kept))
    with pytest.raises(ConfigError, match="max_context_tokens=5: every demonstration is longer"):
        tokenised(episodes, chat, [], 5)

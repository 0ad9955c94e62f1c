"""What the report's viewer is given: which episodes, their tokens, and how much of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palaestra.agents.store import save_episodes as store
from palaestra.cli import viewer_data as module
from palaestra.cli.report_data import RunData, read_run
from palaestra.cli.token_texts import TokenTexts, token_texts_of_run
from palaestra.cli.viewer_data import viewer_data
from palaestra.core.trajectories import Episode, Segment, Trajectory, Turn


def run_of(**episodes: list[Episode]) -> RunData:
    return RunData(folder=Path("runs/x"), recipe={}, summary={}, metrics={}, episodes=episodes, missing=[])


def with_segment(episode: Episode, mask: list[int], **info: Any) -> Episode:
    """The episode with one segment of tokens 0, 1, 2, ... of which some are sampled."""
    mask_T = np.array(mask, dtype=np.bool_)
    logprobs = np.where(mask_T, -np.arange(len(mask)) / 4, np.nan).astype(np.float32)
    segment = Segment(token_ids_T=np.arange(len(mask), dtype=np.int32), action_mask_T=mask_T, logprobs_T=logprobs)
    sampled = np.flatnonzero(mask_T)
    start, stop = (int(sampled[0]), int(sampled[-1]) + 1) if len(sampled) else (0, 0)
    turn = Turn(action="submit", observation="", start=start, stop=stop)
    return dataclasses.replace(
        episode, trajectories=(Trajectory(segments=(segment,), turns=(turn,)),), info={**episode.info, **info}
    )


def places_of(segment: dict[str, Any], key: str) -> list[int]:
    return [place for start, stop in segment[key] for place in range(start, stop)]


def test_tokens_come_with_mask_logprobs_and_advantages(make_episode: Any) -> None:
    episode = with_segment(
        make_episode(0, True), [0, 0, 1, 1, 0, 1], step=3, advantages=[[[[2, 4, 0.5], [5, 6, -1.0]]]]
    )
    data = viewer_data(run_of(grpo_train=[episode]))
    (entry,) = data.episodes
    (segment,) = entry["s"]
    assert (entry["f"], entry["n"], entry["step"], entry["r"], entry["ok"]) == ("grpo_train", 1, 3, 1.0, True)
    assert [list(data.texts)[i] for i in segment["t"]] == ["0 ", "1 ", "2 ", "3 ", "4 ", "5 "]
    assert places_of(segment, "i") == [0, 1, 2, 3, 4, 5]
    assert places_of(segment, "k") == [2, 3, 5]
    assert segment["l"] == [-500, -750, -1250]
    assert entry["v"] == [[[2, 4, 0.5], [5, 6, -1.0]]]
    assert (entry["t"][0]["g"], entry["t"][0]["b"], entry["t"][0]["c"]) == (0, 2, 6)


def test_the_middle_of_a_long_context_is_left_out_and_no_sampled_token(make_episode: Any) -> None:
    mask = [0] * 1000 + [1] * 700 + [0] * 300
    data = viewer_data(run_of(policy_heldout=[with_segment(make_episode(0, True), mask)]))
    segment = data.episodes[0]["s"][0]
    assert segment["t"].count(-1) == 1
    assert places_of(segment, "k") == list(range(1000, 1700))
    assert places_of(segment, "i") == [*range(160), *range(840, 2000)]
    assert len(segment["l"]) == 700


def test_failures_and_training_come_first_and_there_are_at_most_500(make_episode: Any) -> None:
    training = [make_episode(i, i % 2 == 0) for i in range(100)]
    before = [make_episode(i, False) for i in range(400)]
    after = [make_episode(i, True) for i in range(399)] + [make_episode(399, None)]
    data = viewer_data(run_of(sft_heldout=before, policy_heldout=after, grpo_train=training))
    names = [entry["f"] for entry in data.episodes]
    assert (len(names), data.total) == (500, 900)
    assert [names.count(name) for name in ("grpo_train", "policy_heldout", "sft_heldout")] == [100, 201, 199]
    lost = [entry for entry in data.episodes if entry["fail"]]
    assert [(entry["n"], entry["r"], entry["ok"]) for entry in lost] == [(400, None, None)]
    assert lost[0]["fail"] == "sandbox_died: the sandbox stopped answering"


def test_what_does_not_fit_is_left_out_tokens_first(make_episode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = [with_segment(make_episode(i, True), [0] * 50 + [1] * 50) for i in range(100)]
    whole = viewer_data(run_of(policy_heldout=episodes))
    assert (len(whole.episodes), whole.without_tokens) == (100, 0)
    size = len(whole.to_json("x"))
    monkeypatch.setattr(module, "MAX_BYTES", size)
    bounded = viewer_data(run_of(policy_heldout=episodes))
    assert len(bounded.episodes) == 100
    assert 0 < bounded.without_tokens < 100
    monkeypatch.setattr(module, "MAX_BYTES", size // 20)
    assert 0 < len(viewer_data(run_of(policy_heldout=episodes)).episodes) < 100


def test_five_hundred_long_episodes_stay_within_twenty_megabytes(
    palaestra: Any, run_folder: Path, make_episode: Any
) -> None:
    (run_folder / "metrics.jsonl").unlink()
    long = [with_segment(make_episode(i, True), ([0] * 400 + [1] * 200) * 7) for i in range(500)]
    store(run_folder / "episodes" / "grpo_train.jsonl", long)
    result = palaestra("report", run_folder)
    assert result.exit_code == 0, result.output
    html = (run_folder / "report.html").read_bytes()
    assert 1_000_000 < len(html) < 20_000_000
    assert b"500 of the 660 episodes" in html


def test_nothing_in_the_data_can_end_its_element(make_episode: Any) -> None:
    evil = "</script><!--<script>\u2028\x1b[31m\ud800&amp;"
    turns = (Turn(action=evil, observation=evil, messages=({"role": "user", "content": evil},), parse_error=evil),)
    episode = dataclasses.replace(make_episode(0, True, turns=turns), task_id=evil, family=evil, stop_reason=evil)
    text = viewer_data(run_of(policy_heldout=[episode])).to_json("</script>")
    assert not set("<>&\u2028\x1b\ud800") & set(text)
    entry = json.loads(text)["episodes"][0]
    assert entry["t"][0]["a"] == "</script><!--<script>\u2028\\x1b[31m\\ud800&amp;"


@pytest.mark.parametrize(
    "kept", [None, [], [[1, 2]], [[[1, 2]]], [[[["a", "b", "c"]]]], [[[[2, 3, float("nan")]]]], [[], []]]
)
def test_advantages_of_another_form_count_as_none(make_episode: Any, kept: Any) -> None:
    episode = with_segment(make_episode(0, True), [0, 0, 1], advantages=kept)
    data = viewer_data(run_of(grpo_train=[episode]))
    assert data.episodes[0]["v"] is None
    data.to_json("x")


def test_training_episodes_of_a_run_are_read_and_a_run_without_them_lacks_nothing(
    palaestra: Any, run_folder: Path, make_episode: Any, save_episodes: Any
) -> None:
    assert read_run(run_folder).episodes["grpo_train"] == []
    assert read_run(run_folder).missing == []
    save_episodes(run_folder / "episodes" / "grpo_train.jsonl", [make_episode(7, True)])
    assert len(read_run(run_folder).episodes["grpo_train"]) == 1


def byte_level(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def words(texts: list[str]) -> Any:
    """A tokenizer that drops the space at the start of a text, as those of sentencepiece do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=200))
    return tokenizer


@pytest.mark.parametrize("kind", [byte_level, words])
def test_texts_of_tokens_put_together_are_the_text(kind: Any) -> None:
    said = "def f(x):\n    return x + 1" if kind is byte_level else "Take x then drop two items"
    tokenizer = kind([said] * 4)
    texts = TokenTexts(tokenizer).of(tokenizer.encode(said).ids)
    assert len(texts) > 1
    assert "".join(texts) == said


def test_a_character_of_several_tokens_stands_with_the_last_of_them() -> None:
    tokenizer = byte_level(["abc"])
    texts = TokenTexts(tokenizer).of(tokenizer.encode("aéb").ids)
    assert (texts[0], texts[-1]) == ("a", "b")
    assert "é" in texts
    assert tokenizer.encode("<|end|>").ids == [0]
    assert TokenTexts(tokenizer).of([0]) == ["<|end|>"]


def test_a_run_without_a_tokenizer_or_with_a_damaged_one_shows_numbers(tmp_path: Path) -> None:
    assert token_texts_of_run(tmp_path) is None
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "tokenizer.json").write_text("{")
    assert token_texts_of_run(tmp_path) is None
    byte_level(["abc"]).save(str(tmp_path / "sft" / "tokenizer.json"))
    assert token_texts_of_run(tmp_path) is not None

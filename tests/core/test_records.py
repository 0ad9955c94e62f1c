"""Record files: exact round trips, half a line at the end, damage that is named."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palaestra.core.errors import RecordError, StorageError
from palaestra.core.records import (
    RecordWriter,
    episode_from_record,
    episode_to_record,
    read_about,
    read_records,
    write_records,
)
from palaestra.core.trajectories import Episode, Sampling, SegmentBuilder, Trajectory, Turn

RECORDS = [{"text": "a"}, {"text": "naïve 語 \u2028\r\n"}, {"n": [1, 2.5, None, True]}]
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # half surrogate pairs too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
per_example_files = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read(path: Path) -> list[dict[str, object]]:
    return list(read_records(path, "notes"))


@given(records=st.lists(st.dictionaries(ANY_TEXT, JSON, max_size=3), max_size=4))
@per_example_files
def test_any_json_object_comes_back_equal(tmp_path: Path, records: list[dict[str, object]]) -> None:
    path = tmp_path / "notes.jsonl"
    assert write_records(path, "notes", records) == len(records)
    assert read(path) == records
    assert path.read_bytes().count(b"\n") == len(records) + 1


def test_a_file_cut_at_any_byte_loses_only_its_last_line_and_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    write_records(path, "notes", RECORDS)
    whole = path.read_bytes()
    line_ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        # a line counts from the moment its closing brace is there; the first one is the header
        survivors = RECORDS[: max(0, sum(end <= length for end in line_ends) - 1)]
        assert read(path) == survivors, f"cut after {length} bytes"
        with RecordWriter(path, "notes", append=True) as writer:
            writer.write({"more": length})
        assert read(path) == [*survivors, {"more": length}], f"continued after {length} bytes"


@pytest.mark.parametrize("damage", [b"{oops}\n", b'{"half": \n', b"\xff\xfe\n", b"[1]\n", b"\n"])
def test_damage_before_the_last_line_names_file_and_line(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "notes.jsonl"
    write_records(path, "notes", RECORDS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
    with pytest.raises(RecordError, match=r"notes\.jsonl, line 3: "):
        read(path)


def test_another_kind_or_version_is_refused_for_reading_and_for_appending(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    write_records(path, "notes", RECORDS)
    before = path.read_bytes()
    with pytest.raises(RecordError, match=r"expected a file of schema 'palaestra\.episodes', found 'palaestra\.notes'"):
        list(read_records(path, "episodes"))
    with pytest.raises(RecordError, match="schema"):
        RecordWriter(path, "episodes", append=True)
    assert path.read_bytes() == before
    path.write_text('{"schema": "palaestra.notes", "version": 99}\n')
    with pytest.raises(RecordError, match="version 99; this release reads version 1"):
        read(path)


def test_what_cannot_be_read_or_written_is_one_readable_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot read .*missing\.jsonl: No such file"):
        read(tmp_path / "missing.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        RecordWriter(tmp_path / "file" / "notes.jsonl", "notes")
    with pytest.raises(StorageError, match="cannot write"):
        RecordWriter(tmp_path, "notes")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match=r"cannot write /dev/full: No space left"):
        RecordWriter("/dev/full", "notes")


def test_each_record_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "notes.jsonl"
    with RecordWriter(path, "notes") as writer:
        for count, record in enumerate(RECORDS, 1):
            writer.write(record)
            assert read(path) == RECORDS[:count]
        writer.close()  # and may be closed twice


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    builder = SegmentBuilder()
    token = st.integers(0, 2**31 - 1)
    logprob = st.floats(max_value=0, allow_nan=False, allow_infinity=False, width=32)
    turns: list[Turn] = []
    for _ in range(draw(st.integers(0, 3))):
        builder.append_context(draw(st.lists(token, max_size=4)))
        start = len(builder)
        action = draw(st.lists(st.tuples(token, logprob), max_size=4))
        builder.append_action([pair[0] for pair in action], [pair[1] for pair in action])
        turns.append(
            Turn(
                action=draw(ANY_TEXT),
                observation=draw(ANY_TEXT),
                messages=({"role": "user", "content": draw(ANY_TEXT)},),
                start=start,
                stop=len(builder),
                reward=draw(st.sampled_from([0.0, 0.5, 1.0])),
                parse_error=draw(st.none() | ANY_TEXT),
                policy_version=draw(st.integers(0, 9)),
                anchor=draw(st.none() | ANY_TEXT),
            )
        )
    failed = draw(st.booleans())
    sampling = Sampling(temperature=draw(st.sampled_from([0.0, 0.7, 1.0])), max_turn_tokens=8)
    trajectory = Trajectory(
        segments=(builder.build(),),
        turns=tuple(turns),
        sampling=sampling,
        forked_at=draw(st.none() | st.integers(0, 3)),
    )
    return Episode(
        task_id="compose:train:1:3",
        family="compose",
        level=1,
        seed=draw(st.integers(0, 2**63 - 1)),
        trajectories=(trajectory,),
        reward=math.nan if failed else draw(st.floats(-1, 1)),
        success=None if failed else draw(st.booleans()),
        stop_reason="failed" if failed else "submitted",
        terminated=not failed,
        truncated=failed,
        failure={"kind": "sandbox_died", "message": "gone", "retryable": True} if failed else None,
        reward_components={"tests": 0.5},
        info={"expert": "careful"},
    )


@given(episode=episodes())
@per_example_files
def test_an_episode_comes_back_exactly_through_a_file(tmp_path: Path, episode: Episode) -> None:
    path = tmp_path / "episodes.jsonl"
    write_records(path, "episodes", [episode_to_record(episode)])
    (record,) = read_records(path, "episodes")
    back = episode_from_record(record)
    assert episode_to_record(back) == episode_to_record(episode)
    for name in ("task_id", "seed", "success", "stop_reason", "failure", "truncated", "info", "failed"):
        assert getattr(back, name) == getattr(episode, name)
    assert back.reward == episode.reward or (math.isnan(back.reward) and math.isnan(episode.reward))
    for ours, theirs in zip(back.trajectories, episode.trajectories, strict=True):
        assert ours.turns == theirs.turns
        assert (ours.sampling, ours.agent, ours.forked_at) == (theirs.sampling, theirs.agent, theirs.forked_at)
        for one, other in zip(ours.segments, theirs.segments, strict=True):
            np.testing.assert_array_equal(one.token_ids_T, other.token_ids_T)
            np.testing.assert_array_equal(one.action_mask_T, other.action_mask_T)
            np.testing.assert_array_equal(one.logprobs_T, other.logprobs_T)  # bit for bit; NaN equals NaN
            assert (one.token_ids_T.dtype, one.logprobs_T.dtype) == (other.token_ids_T.dtype, other.logprobs_T.dtype)


@pytest.mark.parametrize(
    ("field", "value"),
    [("task_id", ...), ("trajectories", ...), ("trajectories", 3), ("reward", "high"), ("trajectories", [{}])],
)
def test_a_wrong_episode_record_is_a_record_error(field: str, value: object) -> None:
    episode = Episode(
        task_id="t", family="f", level=1, seed=0, trajectories=(), reward=1.0, success=True, stop_reason="submitted"
    )
    record = episode_to_record(episode)
    if value is ...:
        del record[field]
    else:
        record[field] = value
    with pytest.raises(RecordError, match="not an episode record"):
        episode_from_record(record)


def test_a_file_says_what_it_is_about(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    assert write_records(path, "notes", [{"a": 1}], about={"seed": 3}) == 1
    assert read_about(path, "notes") == {"seed": 3}
    assert list(read_records(path, "notes")) == [{"a": 1}]
    with RecordWriter(path, "notes", append=True, about={"seed": 4}) as writer:
        writer.write({"a": 2})
    assert read_about(path, "notes") == {"seed": 3}, "a file that is continued keeps its header"
    write_records(path, "notes", [])
    assert read_about(path, "notes") is None
    path.write_text("")
    assert read_about(path, "notes") is None
    with pytest.raises(RecordError, match="cannot read"):
        read_about(tmp_path / "nothing", "notes")

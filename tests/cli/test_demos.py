"""`palaestra demos` with the real environment and experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palaestra.cli.demos import chat_row
from palaestra.core.records import episode_from_record, read_records


def test_demonstrations_are_written_and_counted_by_expert(palaestra: Any, tmp_path: Path) -> None:
    output = tmp_path / "new folder" / "demos.jsonl"
    result = palaestra("demos", "CodeSandbox-v0", "-n", 60, "-o", output, "--levels", "1,2", "--processes", 1)
    assert result.exit_code == 0, result.output
    episodes = [episode_from_record(record) for record in read_records(output, "episodes")]
    assert len(episodes) == 60
    assert {episode.level for episode in episodes} == {1, 2}
    assert {episode.info["expert"] for episode in episodes} == {"careful", "hasty", "sloppy"}
    assert all(":train:" in episode.task_id for episode in episodes)
    for word in ("careful", "hasty", "sloppy", "success", "mean turns", "60 demonstrations in", "per second"):
        assert word in result.stdout


def test_equal_seeds_give_equal_files_whatever_the_processes(palaestra: Any, tmp_path: Path) -> None:
    def written(name: str, *options: object) -> bytes:
        path = tmp_path / name
        result = palaestra("demos", "CodeSandbox-v0", "-n", 20, "-o", path, *options)
        assert result.exit_code == 0, result.output
        return path.read_bytes()

    first = written("a", "--seed", 3, "--processes", 1)
    assert written("b", "--seed", 3, "--processes", 2) == first
    assert written("c", "--seed", 4, "--processes", 1) != first


def test_chat_rows_are_what_other_trainers_read(palaestra: Any, tmp_path: Path) -> None:
    output = tmp_path / "sft.jsonl"
    options = ["--format", "chat", "--success-only", "--experts", "careful=1", "--processes", 1, "-n", 10]
    result = palaestra("demos", "CodeSandbox-v0", "-o", output, *options)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 10
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert list(row) == ["messages"]
        assert roles[:2] == ["system", "user"]
        assert roles[2::2] == ["assistant"] * len(roles[2::2])
        assert roles[3::2] == ["tool"] * len(roles[3::2])
        assert roles[-1] == "assistant"
        assert row["messages"][-1]["content"].startswith("submit")


def test_a_chat_row_keeps_the_order_of_turns(make_episode: Any) -> None:
    messages = chat_row(make_episode(0, True))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert messages[2]["content"].startswith("f([9,4,4,5,3])")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["CodeSandbocks-v0"], "did you mean 'CodeSandbox-v0'?"),
        (["CodeSandbox-v0", "--experts", "carefull=1"], "did you mean 'careful'?"),
        (["CodeSandbox-v0", "--experts", "careful"], "--experts"),
        (["CodeSandbox-v0", "--families", "composed"], "did you mean 'compose'?"),
        (["CodeSandbox-v0", "--levels", "99"], "levels=99"),
        (["CodeSandbox-v0", "--env", "max_turnz=3"], "max_turnz"),
        (["CodeSandbox-v0", "--env", "max_turns=0"], "max_turns=0: must be at least 1"),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_bad_input_is_one_line(
    palaestra: Any, fails: Any, tmp_path: Path, arguments: list[str], said: str, processes: int
) -> None:
    fails(palaestra("demos", *arguments, "-n", 4, "-o", tmp_path / "x.jsonl", "--processes", processes), said)
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("file_format", ["episodes", "chat"])
def test_a_place_that_cannot_be_written_is_one_line(
    palaestra: Any, fails: Any, tmp_path: Path, file_format: str
) -> None:
    (tmp_path / "file").touch()
    arguments = ["-n", 4, "-o", tmp_path / "file" / "x.jsonl", "--format", file_format, "--processes", 1]
    fails(palaestra("demos", "CodeSandbox-v0", *arguments), "cannot write")


@pytest.mark.parametrize("file_format", ["episodes", "chat"])
def test_a_full_disk_is_one_line(palaestra: Any, fails: Any, file_format: str) -> None:
    arguments = ["-n", 4, "-o", "/dev/full", "--format", file_format, "--processes", 1]
    fails(palaestra("demos", "CodeSandbox-v0", *arguments), "cannot write /dev/full: No space left on device")

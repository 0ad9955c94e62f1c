from pathlib import Path

import numpy as np
import pytest

from palaestra.agents.store import load_episodes, save_episodes
from palaestra.core.errors import RecordError, StorageError
from palaestra.core.messages import user
from palaestra.core.trajectories import Episode, SegmentBuilder, Trajectory, Turn


def episode(number: int) -> Episode:
    builder = SegmentBuilder()
    builder.append_context([5, 6])
    builder.append_action([7, 8 + number], [-0.5, -1.25])
    turn = Turn(action="submit", observation="", messages=(user("Go. é\u2028"),), start=2, stop=4, reward=1.0)
    return Episode(
        task_id=f"compose:train:1:{number}",
        family="compose",
        level=1,
        seed=number,
        trajectories=(Trajectory(segments=(builder.build(),), turns=(turn,)),),
        reward=1.0,
        success=True,
        stop_reason="submitted",
        info={"group": 1},
    )


def test_episodes_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "episodes.jsonl"
    assert save_episodes(path, (episode(i) for i in range(3))) == 3
    for number, loaded in enumerate(load_episodes(path)):
        saved = episode(number)
        assert loaded.task_id == saved.task_id
        assert loaded.trajectories[0].turns == saved.trajectories[0].turns
        for name in ("token_ids_T", "action_mask_T", "logprobs_T"):
            np.testing.assert_array_equal(
                getattr(loaded.trajectories[0].segments[0], name), getattr(saved.trajectories[0].segments[0], name)
            )


def test_what_is_not_there_or_something_else_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot read"):
        list(load_episodes(tmp_path / "nothing.jsonl"))
    (tmp_path / "other.jsonl").write_text('{"schema": "palaestra.tasks", "version": 1}\n')
    with pytest.raises(RecordError, match=r"expected a file of schema 'palaestra\.episodes'"):
        list(load_episodes(tmp_path / "other.jsonl"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        save_episodes(tmp_path / "file" / "episodes.jsonl", [])

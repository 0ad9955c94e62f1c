"""What an evaluation is made of, how its episodes are counted, and how a file of them is continued."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from palaestra.agents.evaluation import EvalOptions, evaluate_scripted, evaluation_attempts, summarise, task_counts
from palaestra.agents.evaluation_journal import FileJournal, Journal, attempt_key
from palaestra.agents.pass_rates import TaskCount, wilson_interval
from palaestra.agents.store import load_episodes, save_episodes
from palaestra.core.errors import ConfigError, StorageError
from palaestra.core.records import read_about
from palaestra.core.trajectories import Episode, Trajectory, Turn

ABOUT = {"subject": "x", "n": 2, "samples": 2, "levels": (1,)}


def episode(group: int, replica: int, success: bool | None, level: int = 1) -> Episode:
    return Episode(
        task_id=f"t:heldout:{level}:{group}",
        family="t",
        level=level,
        seed=group,
        trajectories=(Trajectory(segments=(), turns=(Turn(action="a", observation="b"),)),),
        reward=math.nan if success is None else float(success),
        success=success,
        stop_reason="submitted",
        failure={"kind": "sandbox_died", "message": "gone"} if success is None else None,
        info={"group": group, "replica": replica},
    )


def test_more_tasks_or_samples_only_add_episodes() -> None:
    small, large = (
        evaluation_attempts("CodeSandbox-v0", EvalOptions(n=n, samples=samples, levels=(1, 2)))
        for n, samples in ((3, 2), (5, 4))
    )
    assert [attempt.key for attempt in small] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert set(small) < set(large)
    assert len({attempt.task_id for attempt in large}) == 5
    assert len({attempt.seed for attempt in large}) == 20, "attempts at one task have randomness of their own"


def test_a_task_file_is_not_repeated(tmp_path: Path) -> None:
    row = {"prompt": "Double x.", "entry_point": "f", "tests": [{"args": [2], "expected": 4}]}
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({**row, "task_id": f"t{i}"}) + "\n" for i in range(3)))
    options = EvalOptions(n=400, samples=2, env_kwargs={"tasks": str(tasks)})
    assert [attempt.task_id for attempt in evaluation_attempts("CodeSandbox-v0", options)] == [
        "t0", "t0", "t1", "t1", "t2", "t2",
    ]  # fmt: skip
    before = options.tasks_sha256()
    tasks.write_text(tasks.read_text() + "\n")
    assert before is not None
    assert options.tasks_sha256() != before
    assert EvalOptions().tasks_sha256() is None


def test_failures_are_in_no_rate() -> None:
    episodes = [
        *(episode(0, i, won) for i, won in enumerate((True, False, True))),
        *(episode(1, i, won) for i, won in enumerate((False, None, False))),
        *(episode(2, i, None, level=2) for i in range(3)),
    ]
    assert task_counts(episodes) == {"t:heldout:1:0": TaskCount(2, 3), "t:heldout:1:1": TaskCount(0, 2)}
    result = summarise(episodes, (1, 3))
    assert (result.n, result.tasks, result.failures) == (5, 2, 4)
    assert result.success == 2 / 5
    assert (result.pass_at_k[1].value, result.pass_at_k[1].tasks) == (pytest.approx(1 / 3), 2)
    assert (result.pass_at_k[3].value, result.pass_hat_k[3].value, result.pass_at_k[3].tasks) == (1.0, 0.0, 1)
    assert result.by_level == {"t/1": (2 / 5, 5)}
    figures = json.loads(json.dumps(result.to_json()))
    assert figures["pass_hat_k"]["3"] == {"value": 0.0, "interval_95": pytest.approx([0.0, 0.793451]), "tasks": 1}
    assert figures["by_level"]["t/1"]["n"] == 5


def test_with_one_episode_per_task_intervals_are_wilsons() -> None:
    result = summarise([episode(i, 0, i % 3 == 0, level=i % 2 + 1) for i in range(12)])
    assert (result.interval_low, result.interval_high) == pytest.approx(wilson_interval(4, 12))
    assert result.level_intervals["t/1"] == pytest.approx(wilson_interval(2, 6))
    assert result.pass_at_k == {}


def test_what_a_journal_holds_is_not_run_again() -> None:
    options = EvalOptions(n=4, samples=2, levels=(1,))
    whole = evaluate_scripted("hasty", "CodeSandbox-v0", options).episodes
    journal = Journal()
    for known in whole[1::2]:
        journal.add(known)
    ticks: list[tuple[int, int]] = []
    result = evaluate_scripted(
        "hasty", "CodeSandbox-v0", options, lambda done, total: ticks.append((done, total)), journal=journal
    )
    assert ticks == [(5, 8), (6, 8), (7, 8), (8, 8)]
    assert all(result.episodes[i] is whole[i] for i in range(1, 8, 2))
    assert [plain(episode) for episode in result.episodes] == [plain(episode) for episode in whole]


def plain(episode: Episode) -> tuple[Any, ...]:
    return episode.task_id, episode.seed, episode.success, episode.trajectories[0].turns, attempt_key(episode)


def keys(path: Path) -> list[Any]:
    return [attempt_key(stored) for stored in load_episodes(path)]


def write(path: Path, *episodes: Episode) -> None:
    with FileJournal(path, ABOUT, resume=False) as journal:
        for one in episodes:
            journal.add(one)


def test_a_file_keeps_each_episode_as_it_ends_and_is_put_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "episodes.jsonl"
    with FileJournal(path, ABOUT, resume=False) as journal:
        assert not path.exists(), "nothing is touched before the first episode ends"
        journal.add(episode(1, 0, True))
        assert keys(path) == [(1, 0)]
        journal.add(episode(0, 0, False))
        assert keys(path) == [(1, 0), (0, 0)]
        journal.finish([journal.done[key] for key in sorted(journal.done)])
    assert keys(path) == [(0, 0), (1, 0)]
    assert read_about(path, "episodes") == {**ABOUT, "levels": [1]}
    assert list(path.parent.iterdir()) == [path]


def test_a_torn_file_goes_on_and_failures_are_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write(path, episode(0, 0, True), episode(0, 1, None), episode(1, 0, False))
    path.write_bytes(path.read_bytes()[:-9])
    with FileJournal(path, ABOUT, resume=True) as again:
        assert set(again.done) == {(0, 0)}
        again.add(episode(0, 1, True))
        again.finish(again.done.values())
    assert keys(path) == [(0, 0), (0, 1)]
    assert set(FileJournal(path, ABOUT, resume=True).done) == {(0, 0), (0, 1)}
    write(path, episode(1, 1, True))
    assert keys(path) == [(1, 1)], "without resume a file is written anew"


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_file_that_was_killed_in_its_header_starts_anew(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(b'{"schema":"palaestra.episodes","version":1,"about":{'[:cut])
    with FileJournal(path, ABOUT, resume=True) as journal:
        journal.add(episode(0, 0, True))
    assert keys(path) == [(0, 0)]
    assert read_about(path, "episodes") is not None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"subject": "y"}, 'was made with subject="x", not "y"'),
        ({"levels": [2]}, r"levels=\[1\], not \[2\]"),
        ({"n": 1}, "n=2, not 1"),
        ({"env": {}}, "env=null, not {}"),
    ],
)
def test_an_evaluation_that_was_set_up_differently_is_not_continued(
    tmp_path: Path, changed: Mapping[str, Any], said: str
) -> None:
    path = tmp_path / "episodes.jsonl"
    write(path, episode(0, 0, True))
    with pytest.raises(ConfigError, match=said):
        FileJournal(path, {**ABOUT, **changed}, resume=True)
    for allowed in ({"n": 9, "samples": 3}, {"base_url": "http://moved/v1"}):
        assert FileJournal(path, {**ABOUT, **allowed}, resume=True).done


def test_episodes_of_something_else_are_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    save_episodes(path, [episode(0, 0, True)])
    with pytest.raises(ConfigError, match="does not say how it was made"):
        FileJournal(path, ABOUT, resume=True)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "x", Path("/dev/full")):
        with pytest.raises(StorageError, match="cannot write"):
            write(place, episode(0, 0, True))

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank_workers

from palaestra.core.errors import ConfigError, RankFailed
from palaestra.learners.distributed import Ranks, launch


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: object, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def begin(function: str, folder: Path, processes: int) -> subprocess.Popen[str]:
    """Starts a run in a session of its own."""
    script = Path(rank_workers.__file__)
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), str(processes), function],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start(function: str, folder: Path, processes: int) -> tuple[subprocess.Popen[str], list[int]]:
    """Starts a run and waits until its ranks do; gives it with their process ids."""
    run = begin(function, folder, processes)
    files = [folder / f"pid{rank}" for rank in range(processes)]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return run, [int(file.read_text()) for file in files]


def test_collectives_of_two_processes() -> None:
    assert launch(rank_workers.collectives, 2) == {
        "gradient": [3.0, 3.0, 3.0],
        "missing": [0.0, 0.0],
        "extras": [2.0, 1.0],
        "gathered": [{"rank": 0}, {"rank": 1}],
        "sum": {"a": 3.0, "b": 1.0},
        "mean": {"a": 0.5},
        "any": (True, False),
        "broadcast": "from 0",
        "weights": [[0.0], [0.0]],
    }


def test_one_process_is_a_plain_call() -> None:
    handler = signal.getsignal(signal.SIGINT)
    result = launch(rank_workers.collectives, 1)
    assert result["gathered"] == [{"rank": 0}]
    assert result["extras"] == [1.0, 0]
    assert signal.getsignal(signal.SIGINT) is handler
    assert launch(lambda ranks, x: x + ranks.size, 1, (1,)) == 2


def test_the_error_of_a_rank_arrives_unchanged() -> None:
    with pytest.raises(ConfigError, match=r"^grpo\.steps=-1: must be in \[0, inf\)$"):
        launch(rank_workers.fails_in_rank_1, 2, ("config",))


def test_a_bug_in_a_rank_is_one_line_with_the_traceback_as_a_note() -> None:
    with pytest.raises(RankFailed, match="no such key") as caught:
        launch(rank_workers.fails_in_rank_1, 2, ("bug",))
    assert str(caught.value) == "training process 1 failed: KeyError: 'no such key'"
    assert "fails_in_rank_1" in caught.value.__notes__[0]


def test_a_killed_rank_takes_the_others_with_it() -> None:
    started = time.monotonic()
    with pytest.raises(RankFailed, match=r"^training process 1 was killed by SIGKILL \(out of memory\?\)"):
        launch(rank_workers.fails_in_rank_1, 2, ("killed",))
    assert time.monotonic() - started < 50, "the other rank sleeps for 60 s unless it is ended"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_all_ranks_at_the_same_step(tmp_path: Path, number: signal.Signals) -> None:
    run, pids = start("counts_until_stopped", tmp_path, 2)
    if number is signal.SIGINT:
        os.killpg(run.pid, number)  # as a terminal does
    else:
        run.terminate()
    out, err = run.communicate(timeout=60)
    first, second = eval(out)
    assert first == second
    assert run.returncode == 0
    assert "Traceback" not in err
    assert err.count("press Ctrl-C again") == 1
    assert not any(map(alive, pids))


def test_ctrl_c_while_the_ranks_start_is_kept_for_them(tmp_path: Path) -> None:
    """The ranks are still importing: none of them may die of the signal."""
    run = begin("counts_until_stopped", tmp_path, 2)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    wait_for(lambda: len(children.read_text().split()) == 3)  # two ranks, and multiprocessing's resource tracker
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    first, second = eval(out)
    assert first == second
    assert "Traceback" not in err


def test_no_rank_outlives_a_killed_parent(tmp_path: Path) -> None:
    run, pids = start("never_asks", tmp_path, 2)
    run.kill()
    run.communicate(timeout=60)
    wait_for(lambda: not any(map(alive, pids)), timeout_s=10)


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_twice_ends_at_once(tmp_path: Path, processes: int) -> None:
    run, pids = start("never_asks", tmp_path, processes)
    run.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert run.poll() is None, "the first one waits for the end of the step"
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=20)
    assert run.returncode != 0
    assert "KeyboardInterrupt" in err
    assert not any(map(alive, pids))


def test_processes_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"^processes=0: must be at least 1$"):
        launch(rank_workers.collectives, 0)


def test_a_single_rank_needs_no_process_group() -> None:
    ranks = Ranks()
    assert ranks.sum_floats({"a": 1.0}) == {"a": 1.0}
    assert not ranks.should_stop()
    ranks.barrier()

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from palaestra.core.errors import CheckpointError, StorageError
from palaestra.learners.checkpoint import CheckpointStore, fingerprint_of
from palaestra.learners.grpo_config import GRPOConfig

STATE = {"weights": {"a": torch.arange(6.0).view(2, 3)}, "beta": 0.1, "nothing": None, "steps": [1, 2]}


def names(store: CheckpointStore) -> list[str]:
    return sorted(p.name for p in store.folder.iterdir())


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "abc")
    assert store.load_latest() is None
    store.save("grpo", 7, STATE)
    loaded = store.load_latest()
    assert loaded is not None
    assert (loaded.stage, loaded.step) == ("grpo", 7)
    torch.testing.assert_close(loaded.state.pop("weights")["a"], STATE["weights"]["a"], rtol=0, atol=0)  # type: ignore[index]
    assert loaded.state == {"beta": 0.1, "nothing": None, "steps": [1, 2]}


def test_the_last_two_are_kept_across_stages(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save("sft", 900, STATE)
    for step in (1, 2, 2):
        store.save("grpo", step, STATE)
    assert names(store) == ["grpo-00000001", "grpo-00000002", "latest"]
    assert (loaded := store.load_latest()) is not None
    assert loaded.step == 2


def test_an_unfinished_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save("grpo", 1, STATE)
    unfinished = tmp_path / ".writing-grpo-00000002"
    unfinished.mkdir()
    (unfinished / "state.pt").write_bytes(b"half")
    assert (loaded := store.load_latest()) is not None
    assert loaded.step == 1
    store.save("grpo", 3, STATE)
    assert names(store) == ["grpo-00000001", "grpo-00000003", "latest"]


@pytest.mark.parametrize("damage", ["truncate", "meta", "bytes", "kind", "delete"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save("grpo", 1, STATE)
    newest = store.save("grpo", 2, STATE)
    if damage == "truncate":
        os.truncate(newest / "state.pt", 100)
    elif damage == "meta":
        (newest / "meta.json").write_text("{")
    elif damage == "bytes":
        (newest / "meta.json").write_bytes(b"\xff")
        (tmp_path / "latest").write_bytes(b"\xff")
    elif damage == "kind":
        (newest / "meta.json").write_text("[1]")
    else:
        (newest / "state.pt").unlink()
    assert (loaded := store.load_latest()) is not None
    assert loaded.step == 1


def test_only_damaged_ones_are_an_error_of_one_line(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    os.truncate(store.save("grpo", 2, STATE) / "state.pt", 100)
    with pytest.raises(CheckpointError, match=r"grpo-00000002 is damaged: [^\n]+; delete .* to do its stage again$"):
        store.load_latest()


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    old, new = fingerprint_of(GRPOConfig(), 0), fingerprint_of(GRPOConfig(clip_low=0.1), 0)
    assert old == fingerprint_of(GRPOConfig(), 0) != new
    CheckpointStore(tmp_path, old).save("grpo", 1, STATE)
    with pytest.raises(CheckpointError, match="is of another configuration"):
        CheckpointStore(tmp_path, new).load_latest()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"^cannot write checkpoint .*grpo-00000001: Not a directory$"):
        CheckpointStore(tmp_path / "file" / "checkpoints").save("grpo", 1, STATE)


FULL_DISK = """
import resource, signal, sys, torch
from palaestra.core.errors import StorageError
from palaestra.learners.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1])
store.save("grpo", 1, {"small": torch.zeros(10)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.save("grpo", 2, {"large": torch.zeros(1_000_000)})
except StorageError as error:
    print(error)
print(store.load_latest().step, sorted(p.name for p in store.folder.iterdir()))
"""


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: the same code path, with EFBIG in place of ENOSPC."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    message, after = done.stdout.splitlines()
    assert message == f"cannot write checkpoint {tmp_path}/grpo-00000002: File too large; free some space"
    assert after == "1 ['grpo-00000001', 'latest']"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting")
    try:
        store = CheckpointStore(tmp_path)
        store.save("grpo", 1, STATE)
        with pytest.raises(StorageError, match=r"No space left on device; free some space$"):
            store.save("grpo", 2, {"large": torch.zeros(1_000_000)})
        assert (loaded := store.load_latest()) is not None
        assert loaded.step == 1
        assert names(store) == ["grpo-00000001", "latest"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)

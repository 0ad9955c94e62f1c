"""Tiny models and scripted groups for the learners' tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _workers_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned processes must be able to import the functions they run, `tiny_runs` among them."""
    folder = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(folder)
    assert folder in sys.path

"""Dashboards as sinks, over modules with the calls of the real ones: those are too large to install for a test."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from palaestra.core.errors import ConfigError
from palaestra.learners.config import Recipe, load_recipe
from palaestra.learners.dashboards import ID_FILE, check_installed, dashboards
from palaestra.learners.metrics import MetricsWriter, read_metrics

WANDB = """
calls = []

class Settings:
    def __init__(self, *, console, init_timeout, login_timeout):
        pass

class Run:
    def define_metric(self, name, step_metric=None):
        calls.append(("define", name, step_metric))

    def log(self, data, step=None, commit=None):
        calls.append(("log", data))
        if data.get("sft/loss") == 13.0:
            raise ConnectionError("the network\\nis gone")

    def finish(self, exit_code=None):
        calls.append(("finish",))

def init(*, project, name, id, resume, dir, config, settings):
    calls.append(("init", project, name, id, resume, config["seed"]))
    if project == "forbidden":
        raise PermissionError("no such project")
    return Run()
"""
TRACKIO = """
calls = []

class Run:
    def log(self, metrics, step=None):
        calls.append(("log", metrics, step))

    def finish(self):
        calls.append(("finish",))

def init(project, name=None, *, config=None, resume="never", embed=True):
    calls.append(("init", project, name, resume, embed))
    return Run()
"""


@pytest.fixture(autouse=True)
def _packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "wandb.py").write_text(WANDB)
    (folder / "trackio.py").write_text(TRACKIO)
    monkeypatch.syspath_prepend(folder)
    for name in ("wandb", "trackio"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("wandb", "trackio"):
        sys.modules.pop(name, None)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """`recipe("log_to=['wandb']", ...)`: the quickstart with these keys."""
    return lambda *overrides: load_recipe("quickstart", [f"run={tmp_path / 'fine'}", *overrides])


def calls_of(name: str) -> list[Any]:
    return importlib.import_module(name).calls


def no_warnings(text: str) -> None:
    raise AssertionError(text)


def test_wandb_gets_finite_numbers_over_the_steps_of_their_stage(recipe: Any, tmp_path: Path) -> None:
    sinks = dashboards(recipe("log_to=['wandb']", "project=mine", "run_name=first", "seed=5"), False, no_warnings)
    with MetricsWriter(tmp_path / "fine", sinks=sinks) as metrics:
        metrics.log({"stage": "sft", "step": 20, "loss": 1.5, "kl": math.nan, "note": "x", "ok": True})
        metrics.log({"stage": "grpo", "step": 1, "loss": 2})
        metrics.log({"stage": "grpo", "step": 2, "loss": 3})
    run_id = (tmp_path / "fine" / ID_FILE).read_text().strip()
    assert calls_of("wandb") == [
        ("init", "mine", "first", run_id, "allow", 5),
        ("define", "sft/*", "sft/step"),
        ("log", {"sft/loss": 1.5, "sft/step": 20}),
        ("define", "grpo/*", "grpo/step"),
        ("log", {"grpo/loss": 2.0, "grpo/step": 1}),
        ("log", {"grpo/loss": 3.0, "grpo/step": 2}),
        ("finish",),
    ]


def test_trackio_knows_a_run_by_its_name_and_id(recipe: Any, tmp_path: Path) -> None:
    sinks = dashboards(recipe("log_to=['trackio']"), False, no_warnings)
    sinks[0].log({"stage": "grpo", "step": 7, "success": 0.5})
    sinks[0].close()
    sinks[0].close()
    name = f"fine-{(tmp_path / 'fine' / ID_FILE).read_text().strip()}"
    assert calls_of("trackio") == [
        ("init", "palaestra", name, "allow", False),
        ("log", {"grpo/success": 0.5}, 7),
        ("finish",),
    ]


def test_a_resumed_run_keeps_its_id_and_a_new_one_gets_its_own(recipe: Any) -> None:
    for resume in (False, True, False):
        for sink in dashboards(recipe("log_to=['wandb', 'trackio']"), resume, no_warnings):
            sink.close()
    first, again, other = [call[3] for call in calls_of("wandb") if call[0] == "init"]
    assert first == again != other
    names = [call[2] for call in calls_of("trackio") if call[0] == "init"]
    assert names == [f"fine-{first}", f"fine-{first}", f"fine-{other}"]


def test_a_dashboard_that_fails_is_one_line_and_the_run_goes_on(recipe: Any, tmp_path: Path) -> None:
    said: list[str] = []
    sinks = dashboards(recipe("log_to=['wandb', 'trackio']"), False, said.append)
    with MetricsWriter(tmp_path / "fine", sinks=sinks) as metrics:
        for step, loss in enumerate((1.0, 13.0, 13.0, 2.0), 1):
            metrics.log({"stage": "sft", "step": step, "loss": loss})
    assert said == ["wandb gets no more metrics (the network is gone); the run goes on without it"]
    assert [row["loss"] for row in read_metrics(tmp_path / "fine")] == [1.0, 13.0, 13.0, 2.0]
    assert sum(call[0] == "log" for call in calls_of("wandb")) == 2
    assert sum(call[0] == "log" for call in calls_of("trackio")) == 4


def test_a_dashboard_that_does_not_start_is_one_line(recipe: Any) -> None:
    said: list[str] = []
    (sink,) = dashboards(recipe("log_to=['wandb']", "project=forbidden"), False, said.append)
    sink.log({"stage": "sft", "step": 1, "loss": 1.0})
    sink.close()
    assert said == ["wandb gets no more metrics (no such project); the run goes on without it"]


def test_a_dashboard_that_hangs_is_left_behind(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    said: list[str] = []
    monkeypatch.setattr("palaestra.learners.dashboards.START_S", 0.2)
    monkeypatch.setattr(importlib.import_module("wandb"), "init", lambda **_: threading.Event().wait())
    dashboards(recipe("log_to=['wandb']"), False, said.append)
    assert said == ["wandb gets no more metrics (it was still running after 0.2 s); the run goes on without it"]


def test_what_is_not_installed_is_said_with_the_command() -> None:
    check_installed(("wandb", "trackio"))
    with pytest.raises(ConfigError, match=r"^log_to: no_such_board is not installed; run: pip install no_such_board$"):
        check_installed(("wandb", "no_such_board"))


def test_nothing_is_imported_or_written_for_a_run_that_logs_to_none(recipe: Any, tmp_path: Path) -> None:
    assert dashboards(recipe(), False, no_warnings) == []
    assert "wandb" not in sys.modules
    assert not (tmp_path / "fine").exists()


def test_an_unknown_dashboard_is_one_line(recipe: Any) -> None:
    with pytest.raises(ConfigError, match="log_to"):
        recipe("log_to=['tensorbord']")

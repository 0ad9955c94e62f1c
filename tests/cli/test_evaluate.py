"""`palaestra eval` with scripted agents, and with a tiny model that writes noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palaestra.cli.run_settings import run_settings
from palaestra.core.errors import ConfigError
from palaestra.core.records import episode_from_record, read_records


def test_a_scripted_agent_is_measured(palaestra: Any, tmp_path: Path) -> None:
    episodes, figures = tmp_path / "episodes.jsonl", tmp_path / "deep" / "figures.json"
    result = palaestra(
        "eval", "CodeSandbox-v0", "--agent", "careful", "-n", 20, "--levels", "1,2", "--save", episodes,
        "--json", figures,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for words in ("careful in CodeSandbox-v0, heldout split", "95 % interval", "compose/1", "compose/2",
                  "failed episodes (infrastructure)", "mean turns"):  # fmt: skip
        assert words in result.stdout
    stored = [episode_from_record(record) for record in read_records(episodes, "episodes")]
    assert len(stored) == 20
    assert all(":heldout:" in episode.task_id for episode in stored)
    data = json.loads(figures.read_text())
    assert data["n"] == 20
    assert data["success"] == sum(bool(episode.success) for episode in stored) / 20
    assert data["interval_95"][0] < data["success"] <= data["interval_95"][1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "exactly one of --model and --agent"),
        (["--agent", "careful", "--model", "x"], "exactly one of --model and --agent"),
        (["--agent", "careful", "--greedy", "--temperature", "1"], "--greedy is temperature 0"),
        (["--agent", "carefull"], "did you mean 'careful'?"),
        (["--agent", "careful", "--split", "held-out"], "did you mean 'heldout'?"),
        (["--agent", "careful", "--families", "repairs"], "did you mean 'repair'?"),
        (["--agent", "careful", "--levels", "two"], "--levels=two"),
        (["--agent", "careful", "--temperature", "-1"], "temperature=-1.0: must be at least 0"),
        (["--model", "/no/such/folder"], "no model folder /no/such/folder"),
    ],
)
def test_bad_input_is_one_line(palaestra: Any, fails: Any, arguments: list[str], said: str) -> None:
    fails(palaestra("eval", "CodeSandbox-v0", "-n", 2, *arguments), said)


def test_an_unknown_id_and_an_unwritable_file_are_one_line(palaestra: Any, fails: Any, tmp_path: Path) -> None:
    fails(palaestra("eval", "CodeSandbox-v1x", "--agent", "careful"), "no environment")
    (tmp_path / "file").touch()
    for option in ("--json", "--save"):
        arguments = ["--agent", "hasty", "-n", 1, option, tmp_path / "file" / "x"]
        fails(palaestra("eval", "CodeSandbox-v0", *arguments), "cannot write")


def test_a_model_of_a_run_is_evaluated_as_it_was_trained(run_folder: Path) -> None:
    (run_folder / "policy").mkdir()
    settings = run_settings(str(run_folder / "policy"), "CodeSandbox-v0")
    assert settings.source == run_folder.resolve() / "recipe.toml"
    assert (settings.families, settings.levels) == (("compose",), (1, 2, 2, 3))
    assert settings.env_kwargs == {"max_turns": 10, "prompt_style": "compact"}
    assert settings.limits == {"max_turn_tokens": 64, "max_context_tokens": 512}


def test_settings_of_another_environment_or_of_no_run_are_not_taken(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "policy").mkdir()
    assert run_settings(str(run_folder / "policy"), "Other-v0").source is None
    assert run_settings(str(tmp_path / "model"), "CodeSandbox-v0").source is None
    assert run_settings("", "CodeSandbox-v0").source is None
    (run_folder / "recipe.toml").write_text("[env")
    with pytest.raises(ConfigError, match="is damaged"):
        run_settings(str(run_folder / "policy"), "CodeSandbox-v0")

"""`palaestra eval` with scripted agents, and with a tiny model that writes noise."""

from __future__ import annotations

import hashlib
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
        (["--agent", "careful", "--k", "1,2"], "--k=2: must be in 1..1; --samples=2 or more would allow it"),
        (["--agent", "careful", "--samples", "3", "--k", "0"], "--k=0: must be in 1..3"),
        (["--agent", "careful", "--k", "ten"], "--k=ten: write whole numbers with commas, such as 1,10"),
        (["--agent", "careful", "--base-url", "http://127.0.0.1:9/v1"], "name the server's model with --model"),
        (["--model", "x", "--base-url", "127.0.0.1"], "base_url=127.0.0.1: write http://HOST:PORT/v1"),
        (["--model", "x", "--base-url", "http://127.0.0.1:9/v1"], "no server answers at http://127.0.0.1:9/v1"),
        (["--agent", "careful", "--env", "tasks=5"], "tasks=5: must be the path of a file"),
        (["--agent", "careful", "--env", "tasks=/no/such/file"], "cannot read tasks /no/such/file"),
        (["--agent", "careful", "--env", "day=2026-01-01", "--save", "/dev/null"], "unknown keyword 'day'"),
        (["--agent", "careful", "--resume"], "--resume continues an episodes file: name it with --save"),
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


def test_several_samples_of_a_task_file(palaestra: Any, fails: Any, tmp_path: Path) -> None:
    tasks, figures, save = (tmp_path / name for name in ("tasks.jsonl", "figures.json", "episodes.jsonl"))
    row = {"prompt": "Double x.", "entry_point": "f", "tests": [{"args": [2], "expected": 4}]}
    tasks.write_text("".join(json.dumps({**row, "reference": "def f(x): return 2 * x"}) + "\n" for _ in range(3)))
    arguments = ["eval", "CodeSandbox-v0", "--agent", "oracle", "--env", f"tasks={tasks}", "--samples", 4]
    result = palaestra(*arguments, "--k", "4,1,2", "--json", figures, "--save", save)
    assert result.exit_code == 0, result.output
    for words in ("pass@1", "pass@4", "pass^2", "100.0%"):
        assert words in result.stdout
    data = json.loads(figures.read_text())
    assert (data["n"], data["tasks"], data["samples"]) == (12, 3, 4)
    assert list(data["pass_at_k"]) == list(data["pass_hat_k"]) == ["1", "2", "4"]
    assert data["tasks_sha256"] == hashlib.sha256(tasks.read_bytes()).hexdigest()

    tasks = tasks.rename(tmp_path / "moved.jsonl")
    arguments[5] = f"tasks={tasks}"
    again = palaestra(*arguments, "--save", save, "--resume")
    assert again.exit_code == 0, again.output
    assert "12 episodes are in" in again.stdout, "a file that was moved is still the same"
    tasks.write_text(tasks.read_text() + "\n")
    fails(palaestra(*arguments, "--save", save, "--resume"), "was made with tasks_sha256=")


def test_an_evaluation_grows(palaestra: Any, tmp_path: Path) -> None:
    save = tmp_path / "episodes.jsonl"
    arguments = ["eval", "CodeSandbox-v0", "--agent", "hasty", "--levels", "1", "--save", save]
    assert palaestra(*arguments, "-n", 2).exit_code == 0
    grown = palaestra(*arguments, "-n", 3, "--samples", 2, "--resume")
    assert grown.exit_code == 0, grown.output
    assert "2 episodes are in" in grown.stdout
    assert "pass@2" in grown.stdout
    grown_file = save.read_bytes()
    assert palaestra(*arguments, "-n", 3, "--samples", 2).exit_code == 0
    assert save.read_bytes() == grown_file


def test_a_model_behind_a_server(palaestra: Any, chat_server: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    chat_server.answer = lambda body: "submit\ndef f(x):\n    return 0"
    figures, save = tmp_path / "figures.json", tmp_path / "episodes.jsonl"
    arguments = ["eval", "CodeSandbox-v0", "--base-url", chat_server.url, "--model", "org/tiny", "-n", 4]
    result = palaestra(*arguments, "--temperature", 0.5, "--json", figures, "--save", save)
    assert result.exit_code == 0, result.output
    for words in ("org/tiny in CodeSandbox-v0, heldout split, sampled at T = 0.5", "tokens read, written", "4, 0"):
        assert words in result.stdout
    data = json.loads(figures.read_text())
    assert data["base_url"] == chat_server.url
    assert data["usage"]["requests"] == data["n"] == 4
    assert data["usage"]["completion_tokens"] == 20
    assert {headers["Authorization"] for headers in chat_server.headers} == {"Bearer secret"}
    assert "secret" not in save.read_text() + figures.read_text()

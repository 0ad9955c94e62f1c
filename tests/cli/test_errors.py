"""How errors end a command: one line, status 2; Ctrl-C 130; a closed pipe is quiet; bugs keep their traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from palaestra.cli.errors import ErrorReportingGroup
from palaestra.core.errors import EnvironmentFailure, RankFailed, RecordError, RunStopped

COMMANDS = ("envs", "demos", "train", "eval", "report")


def app_that_raises(error: BaseException) -> typer.Typer:
    app = typer.Typer(cls=ErrorReportingGroup, pretty_exceptions_enable=False)

    @app.callback()
    def root(debug: bool = False) -> None: ...

    @app.command()
    def run() -> None:
        raise error

    return app


def invoke(error: BaseException, *arguments: str) -> Any:
    return CliRunner().invoke(app_that_raises(error), [*arguments, "run"])


def test_an_error_is_one_line_without_control_characters(fails: Any) -> None:
    fails(invoke(RecordError("line one\nline \x1b[31mtwo [bold]")), r"line one line \x1b[31mtwo [bold]")
    fails(invoke(EnvironmentFailure("sandbox_died", "it died")), "sandbox_died: it died")


def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RecordError("damaged")
    assert invoke(error, "--debug").exception is error
    assert CliRunner().invoke(app_that_raises(error), ["run", "--debug"]).exception is error
    monkeypatch.setenv("PALAESTRA_TRACEBACK", "1")
    assert invoke(error).exception is error


def test_a_bug_keeps_its_traceback() -> None:
    bug = ZeroDivisionError()
    assert invoke(bug).exception is bug


def test_ctrl_c_is_130() -> None:
    result = invoke(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_a_clean_stop_is_130_and_says_how_to_go_on() -> None:
    result = invoke(RunStopped("stopped after 3 steps; continue with: palaestra train r.toml --resume"))
    assert result.exit_code == 130
    assert result.stderr == "stopped after 3 steps; continue with: palaestra train r.toml --resume\n"


def test_a_bug_in_a_training_process_says_how_to_see_it(fails: Any) -> None:
    error = RankFailed("training process 1 failed: KeyError: 'x'")
    error.add_note("Traceback (most recent call last): ...")
    fails(invoke(error), "training process 1 failed: KeyError: 'x' (add --debug to see where)")
    assert invoke(error, "--debug").exception is error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_does_not_fit_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-P", "-m", "palaestra", "envs"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: cannot write the output: No space left on device\n")


def test_a_missing_extra_is_named(fails: Any) -> None:
    fails(invoke(ModuleNotFoundError("No module named 'torch'", name="torch.nn")), "pip install 'palaestra[train]'")
    unknown = ModuleNotFoundError("No module named 'left_pad'", name="left_pad")
    assert invoke(unknown).exception is unknown


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(palaestra: Any, command: str) -> None:
    text = palaestra(command, "--help").stdout
    assert f"palaestra {command} " in text.replace("\n", " ")
    assert "Example" in text
    assert "Output" in text


def test_unknown_names_get_a_suggestion(palaestra: Any) -> None:
    result = palaestra("repot")
    assert result.exit_code == 2
    assert "report" in result.stderr
    result = palaestra("report", "--ouput", "x")
    assert result.exit_code == 2
    assert "--output" in result.stderr


def test_help_and_envs_import_nothing_heavy() -> None:
    code = (
        "import json, sys\n"
        "from palaestra.cli.main import app\n"
        "for arguments in (['--help'], ['envs'], ['train', '--help']):\n"
        "    try: app(arguments, prog_name='palaestra')\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    heavy = {"torch", "transformers", "tokenizers", "pydantic", "matplotlib", "jinja2"}
    assert not heavy & set(loaded)


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        command = [sys.executable, "-P", "-m", "palaestra", "envs"]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (1, "")

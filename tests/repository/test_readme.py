"""The README runs: its Python and shell blocks as they stand, its links, its table of keywords."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from palaestra.envs.code_sandbox import CodeSandboxEnv
from palaestra.envs.project_sandbox import ProjectSandboxEnv

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"(?P<mark><!-- not run: [^\n]+ -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.DOTALL)
BLOCKS = [(match["language"], match["code"], bool(match["mark"])) for match in BLOCK.finditer(README.read_text())]
PYTHON = [code for language, code, not_run in BLOCKS if language == "python" and not not_run]
CONSOLE = [code for language, code, not_run in BLOCKS if language == "console" and not not_run]
NOT_RUN = [code for _, code, not_run in BLOCKS if not_run]
DOCUMENTS = [
    README,
    *(README.parent / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")),
    *README.parent.glob("docs/*.md"),
]


def run(command: list[str], cwd: Path) -> str:
    """Runs a command as a user would, with this environment's programs first on the path."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONSAFEPATH": "1",
    }
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_every_block_is_run_or_says_why_not() -> None:
    assert {language for language, _, _ in BLOCKS} == {"python", "console"}
    assert len(PYTHON) >= 2
    assert len(CONSOLE) >= 2
    commands = [line.split()[:2] for code in NOT_RUN for line in code.splitlines()]
    minutes_long = (["make", "quickstart"], ["make", "test"], ["make", "test-docker"], ["pip", "install"])
    assert all(command in minutes_long for command in commands)


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_block_runs_in_a_fresh_process(code: str, tmp_path: Path) -> None:
    run([sys.executable, "-W", "error", "-c", code], tmp_path)


@pytest.mark.parametrize("code", CONSOLE, ids=range(len(CONSOLE)))
def test_console_block_runs(code: str, tmp_path: Path) -> None:
    for line in code.splitlines():
        run(shlex.split(line, comments=True), tmp_path)


def test_make_targets_of_the_documents_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (README.parent / "Makefile").read_text(), re.MULTILINE)
    for path in DOCUMENTS:
        wanted = re.findall(r"(?:^|`)make ([a-z][a-z-]*(?: [a-z-]+(?=`))*)", path.read_text(), re.MULTILINE)
        for target in " ".join(wanted).split():
            assert target in targets, f"{path.name}: make {target}"


def test_the_keyword_table_is_the_signature() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", README.read_text(), re.MULTILINE))
    assert rows == defaults(CodeSandboxEnv)


def test_the_other_environment_differs_from_the_table_as_the_line_below_it_says() -> None:
    (said,) = re.findall(r"^`ProjectSandbox-v0` takes .+$", README.read_text(), re.MULTILINE)
    theirs, ours = defaults(CodeSandboxEnv), defaults(ProjectSandboxEnv)
    missing = theirs.keys() - ours.keys()
    assert all(f"`{name}`" in said for name in missing)
    assert {name: value for name, value in ours.items() if value != theirs[name]} == {"max_turns": "30"}
    assert "`max_turns=30`" in said


def defaults(kind: type) -> dict[str, str]:
    """The keywords of an environment and their defaults."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {parameter.name: repr(parameter.default) for parameter in parameters}


def test_every_local_link_and_named_file_exists() -> None:
    for path in DOCUMENTS:
        text = path.read_text()
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        files = re.findall(r"`((?:[\w.]+/)+[\w.]+\.(?:py|toml|md))`", text)
        for name in links + [file for file in files if not file.startswith("runs/")]:
            assert (path.parent / name).exists() or (README.parent / name).exists(), f"{path.name} names {name}"

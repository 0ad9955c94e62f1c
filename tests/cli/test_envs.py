from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

OWN_ENV = """
import gymnasium as gym
from palaestra.envs.code_sandbox import CodeSandboxEnv

class Plain(gym.Env):
    observation_space = action_space = gym.spaces.Discrete(2)

gym.register(id="Mine-v0", entry_point=CodeSandboxEnv)
gym.register(id="Plain-v0", entry_point=Plain)
"""


def flat(text: str) -> str:
    """A table's text without its borders and line breaks."""
    return " ".join(word for word in text.split() if word not in "│┌─┐├┤└┘┬┴┼")


def test_every_id_is_listed_with_tools_families_and_keywords(palaestra: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    result = palaestra("envs")
    assert result.exit_code == 0, result.output
    text = flat(result.stdout)
    assert "CodeSandbox-v0" in text
    assert "edit(old, new)" in text
    assert "submit([code])" in text
    assert "compose levels 1 to 7:" in text
    assert "repair levels 1 to 4:" in text
    assert "trace levels 1 to 7:" in text
    assert "max_turns=10 Actions per episode" in text
    assert "ProjectSandbox-v0" in text
    assert "edit(path, old, new)" in text
    assert "project levels 1 to 7: a small repository" in text
    assert "as they are; see `palaestra.envs.tasks.code.files`." in text, "an entry of two lines is shown whole"


def test_an_id_of_the_users_own_module_is_taken(
    palaestra: Any, fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_envs.py").write_text(OWN_ENV)
    monkeypatch.syspath_prepend(tmp_path)
    assert "run(code)" in palaestra("envs", "my_envs:Mine-v0").stdout
    fails(palaestra("envs", "my_envs:Plain-v0"), "my_envs:Plain-v0 is a Plain, not a palaestra.envs.base.ToolEnv")
    sys.modules.pop("my_envs")


def test_an_unknown_id_gets_a_suggestion(palaestra: Any, fails: Any) -> None:
    fails(palaestra("envs", "CodeSandbocks-v0"), "did you mean 'CodeSandbox-v0'?")
    fails(palaestra("envs", "no_such_module:Id-v0"), "no environment 'no_such_module:Id-v0'")

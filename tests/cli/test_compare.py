"""`palaestra compare`: the same tasks, paired; what cannot be paired is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from palaestra.core.records import episode_to_record, write_records
from palaestra.core.trajectories import Episode


def test_two_agents_on_the_same_tasks(palaestra: Any, tmp_path: Path) -> None:
    files = [tmp_path / f"{agent}.jsonl" for agent in ("hasty", "careful")]
    for file in files:
        result = palaestra(
            "eval", "CodeSandbox-v0", "--agent", file.stem, "-n", 24, "--levels", "1,2", "--samples", 2, "--save", file
        )
        assert result.exit_code == 0, result.output
    figures = tmp_path / "figures.json"
    result = palaestra("compare", *files, "--json", figures)
    assert result.exit_code == 0, result.output
    for words in ("A: hasty", "B: careful", "95 % interval", "compose/1", "compose/2", "p, two-sided"):
        assert words in result.stdout
    assert result.stdout.splitlines()[-1] == "B is better"
    data = json.loads(figures.read_text())
    assert (data["tasks"], data["worse"], data["direction"]) == (24, 0, "up")
    assert data["interval_95"][0] < data["difference"] == data["share_b"] - data["share_a"]
    assert data["p_value"] < 0.001
    assert {name: level["tasks"] for name, level in data["by_level"].items()} == {"compose/1": 12, "compose/2": 12}


def test_evaluations_of_a_run_are_compared(palaestra: Any, run_folder: Path) -> None:
    before, after = (run_folder / "episodes" / f"{name}_heldout.jsonl" for name in ("sft", "policy"))
    result = palaestra("compare", before, after)
    assert result.exit_code == 0, result.output
    assert "A: sft_heldout" in result.stdout
    assert "79" in result.stdout
    assert "1, 0" in result.stdout, "the task whose episode failed is left out, and counted"


def test_what_cannot_be_paired_is_one_line(
    palaestra: Any, fails: Any, tmp_path: Path, make_episode: Callable[..., Episode]
) -> None:
    def file(name: str, episode: Episode, **about: str) -> Path:
        write_records(tmp_path / name, "episodes", [episode_to_record(episode)], about=about or None)
        return tmp_path / name

    a = file("a", make_episode(0, True), env_id="X-v0", tasks_sha256="12")
    b = file("b", make_episode(0, True), env_id="X-v0", tasks_sha256="34")
    c = file("c", make_episode(0, True), env_id="Y-v0", tasks_sha256="12")
    d = file("d", make_episode(1, True), env_id="X-v0", tasks_sha256="12")
    fails(palaestra("compare", a, b), 'different task files: tasks_sha256 is "12" and "34"')
    fails(palaestra("compare", a, c), "different environments")
    fails(palaestra("compare", a, d), "have no scored task in common")
    fails(palaestra("compare", a, tmp_path / "nothing"), "cannot read")

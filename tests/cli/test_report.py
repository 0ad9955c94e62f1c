"""The report: one self-contained page, safe against what a policy writes, and honest about what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from palaestra.cli.report_charts import running_mean
from palaestra.core.records import episode_to_record, write_records
from palaestra.core.trajectories import Episode, Trajectory, Turn

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what tests look at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        if tag in ("td", "th", "small", "dt", "dd"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text += data


def written(palaestra: Callable[..., Any], folder: Path) -> tuple[str, Page]:
    result = palaestra("report", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"report: {folder / 'report.html'}\n"
    html = (folder / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_a_finished_run_has_everything(palaestra: Any, run_folder: Path) -> None:
    _, page = written(palaestra, run_folder)
    text = " ".join(page.text.split())
    assert "Held-out success rose from 40.0 % to 84.8 % (sampled)" in text
    assert "KL to the SFT policy 2.81 nats" in text
    assert "4 min 14 s SFT 1 min 41 s, GRPO 2 min 20 s" in text
    for title in ("Success in training", "Reward", "KL to the SFT policy, per episode", "per token", "Entropy",
                  "KL weight β", "Gradient norm", "SFT loss", "Seconds per GRPO step, by phase"):  # fmt: skip
        assert title in text
    assert "band 1 to 5" in text
    assert "target 3" in text
    assert "compose/2 40 40.0 % 26–55 % 80.0 % 65–90 % +40.0 +18.7 to +56.6" in text
    assert "Learned · wrong before GRPO, right after it" in text
    assert "Take x, take differences" in text
    assert "sandbox_died" in text
    assert "In training, 1 episodes were masked" in text
    assert "grpo.kl_target" in text
    assert "Not in this run folder" not in text


def test_the_page_is_self_contained_and_runs_the_viewers_script_alone(palaestra: Any, run_folder: Path) -> None:
    html, page = written(palaestra, run_folder)
    assert not {"link", "img", "iframe", "object", "form"} & set(page.tags)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    data, script = page.scripts
    assert ("script", "type", "application/json") in page.attributes
    assert len(json.loads(data)["episodes"]) == 160
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", html))
    assert all(value.startswith("#") for _, name, value in page.attributes if name in ("href", "src", "xlink:href"))
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_charts_are_accessible_and_their_ids_are_unique(palaestra: Any, run_folder: Path) -> None:
    html, page = written(palaestra, run_folder)
    assert len(page.ids) == len(set(page.ids))
    labels = [value.split() for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-labelledby")]
    assert len(labels) == 11
    assert all(label in page.ids for pair in labels for label in pair)
    assert page.tags.count("title") == 12
    assert re.search(r"<desc[^>]*>Success, steps 1 to 100: about 0\.\d+ at the start, 0\.\d+ at the end", html)
    used = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', html))
    assert {one or other for one, other in used} <= set(page.ids)


def hostile_episode(episode: Episode) -> Episode:
    evil = "</pre></details><script>alert(1)</script><img src=x onerror=alert(2)>\x00\x1b[31m\u202e"
    call = json.dumps({"name": "<b>run", "arguments": {"code": f"print(1)  # {evil}"}})
    turns = (
        Turn(
            action=f"<tool_call>{call}</tool_call>",
            observation=evil,
            messages=({"role": "system", "content": evil}, {"role": "user", "content": evil}),
            parse_error=evil,
        ),
        Turn(action=f"```python\n{evil}\n```", observation=""),
        Turn(action=f"edit\n{evil}\n{evil}", observation="{{ 7 * 7 }}{% raw %}"),
    )
    record = episode_to_record(episode)
    fields = {name: record[name] for name in ("seed", "reward", "success", "level", "terminated", "truncated")}
    return Episode(
        task_id=f"compose:heldout:1:{evil}",
        family=f"{evil}",
        trajectories=(Trajectory(segments=(), turns=turns),),
        stop_reason=evil,
        failure={"kind": evil, "message": evil} if episode.failed else None,
        **{**fields, "reward": float("nan") if episode.failed else fields["reward"]},
    )


def test_few_steps_have_a_dot_each_and_no_running_mean(palaestra: Any, run_folder: Path) -> None:
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    few = [row for row in rows if row["stage"] == "grpo" and row["step"] <= 4]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    html, page = written(palaestra, run_folder)
    chart = html[html.index(">Entropy<") : html.index(">KL weight")]
    assert chart.count("<use") >= 4
    assert "stroke-opacity: 0.3" not in chart
    assert "SFT loss" not in page.text


def test_failed_episodes_show_in_the_number_of_their_side(palaestra: Any, run_folder: Path) -> None:
    _, page = written(palaestra, run_folder)
    assert "all 80 40.0 % 30–51 % 84.8 % 75–91 %, n = 79" in " ".join(page.text.split())


def test_hostile_text_stays_text(palaestra: Any, run_folder: Path, make_episode: Any, save_episodes: Any) -> None:
    (run_folder / "metrics.jsonl").unlink()
    save_episodes(run_folder / "episodes/sft_heldout.jsonl", [hostile_episode(make_episode(0, False))])
    after = [hostile_episode(make_episode(0, True)), hostile_episode(make_episode(1, None))]
    save_episodes(run_folder / "episodes/policy_heldout.jsonl", after)
    (run_folder / "recipe.toml").write_text('name = "<script>alert(3)</script>"\n[env]\nid = "<img src=x>"\n')
    html, page = written(palaestra, run_folder)
    assert not {"img", "b"} & set(page.tags)
    assert (page.tags.count("script"), len(page.scripts)) == (2, 2)
    assert "<" not in page.scripts[0]
    assert [one["n"] for one in json.loads(page.scripts[0])["episodes"]] == [1, 2, 1]
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert html.count("&lt;script&gt;alert(1)") >= 10
    assert "{{ 7 * 7 }}{% raw %}" in page.text
    assert "</pre></details><script>alert(1)" in json.loads(page.scripts[0])["episodes"][0]["m"][0][1]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", html)
    assert r"\x00\x1b[31m\u202e" in page.text


def test_broken_unicode_in_a_stored_episode_can_be_shown(palaestra: Any, run_folder: Path, make_episode: Any) -> None:
    (run_folder / "metrics.jsonl").unlink()
    path = run_folder / "episodes/policy_heldout.jsonl"
    write_records(path, "episodes", [episode_to_record(make_episode(0, True))])
    path.write_text(path.read_text().replace("got 5", r"got \ud800"))
    _, page = written(palaestra, run_folder)
    assert r"got \ud800" in page.text


def test_runaway_text_is_cut(palaestra: Any, run_folder: Path, make_episode: Any, save_episodes: Any) -> None:
    (run_folder / "metrics.jsonl").unlink()
    turns = (Turn(action="x" * 1_000_000, observation=""),)
    save_episodes(run_folder / "episodes/sft_heldout.jsonl", [make_episode(0, False)])
    save_episodes(run_folder / "episodes/policy_heldout.jsonl", [make_episode(0, True, turns=turns)])
    html, page = written(palaestra, run_folder)
    assert "980,000 more characters" in page.text
    assert len(html) < 1_000_000


def test_a_run_that_has_just_begun_says_what_is_missing(palaestra: Any, run_folder: Path) -> None:
    for name in ("summary.json", "metrics.jsonl"):
        (run_folder / name).unlink()
    for path in (run_folder / "episodes").iterdir():
        path.unlink()
    _, page = written(palaestra, run_folder)
    for said in (
        "Not finished: no GRPO step has been logged yet",
        "summary.json: the run has not finished",
        "metrics.jsonl: no step has been logged yet",
        "episodes/policy_heldout.jsonl: held-out episodes after GRPO",
        "There is no held-out evaluation yet",
        "There are no episodes to read yet",
    ):
        assert said in page.text


def test_a_run_before_grpo_shows_its_one_side(palaestra: Any, run_folder: Path) -> None:
    (run_folder / "summary.json").unlink()
    for path in (run_folder / "episodes").glob("policy*"):
        path.unlink()
    rows = [line for line in (run_folder / "metrics.jsonl").read_text().splitlines() if '"sft"' in line]
    (run_folder / "metrics.jsonl").write_text("\n".join(rows) + '\n{"stage": "grpo", "st')  # killed in this line
    _, page = written(palaestra, run_folder)
    text = " ".join(page.text.split())
    assert "Not finished: no GRPO step has been logged yet" in text
    assert "success, sampled 40.0 % before GRPO" in text
    assert "compose/1 20 40.0 % 22–61 % not yet" in text
    assert "Solved · before GRPO" in text
    assert "SFT loss" in text
    assert "Entropy" not in text


def test_success_that_fell_is_called_so(
    palaestra: Any, run_folder: Path, make_episode: Any, save_episodes: Any
) -> None:
    (run_folder / "metrics.jsonl").unlink()
    save_episodes(run_folder / "episodes/policy_heldout.jsonl", [make_episode(i, i % 10 == 0) for i in range(80)])
    _, page = written(palaestra, run_folder)
    assert "Held-out success fell from 40.0 % to 10.0 % (sampled)" in page.text


def test_validation_results_are_dots_in_the_success_chart(palaestra: Any, run_folder: Path) -> None:
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "validation", "step": 50, "success": 0.7, "n": 128}) + "\n")
    _, page = written(palaestra, run_folder)
    assert "validation split" in page.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("episodes/policy_heldout.jsonl", '{"schema": "palaestra.episodes", "version": 1}\n{"torn\n{}\n', "line 2"),
        ("episodes/policy_heldout.jsonl", '{"schema": "palaestra.episodes", "version": 1}\n{}\n', "episode 1"),
        ("episodes/policy_heldout.jsonl", '{"schema": "palaestra.tasks", "version": 1}\n', "palaestra.episodes"),
        ("metrics.jsonl", '{"stage": "sft"\n{}\n', "metrics.jsonl, line 1: not JSON"),
        ("summary.json", "[1, 2]", "expected a JSON object"),
        ("summary.json", "{", "cannot read"),
        ("recipe.toml", "name = ", "recipe.toml is damaged"),
    ],
)
def test_damaged_files_are_one_line_errors(
    palaestra: Any, fails: Any, run_folder: Path, name: str, content: str, said: str
) -> None:
    (run_folder / name).write_text(content)
    fails(palaestra("report", run_folder), said, str(run_folder))


def test_folders_without_a_run_and_places_that_cannot_be_written(
    palaestra: Any, fails: Any, run_folder: Path, tmp_path: Path
) -> None:
    fails(palaestra("report", tmp_path / "nothing"), "no run folder")
    fails(palaestra("report", tmp_path), "holds no run")
    (run_folder / "metrics.jsonl").unlink()
    (tmp_path / "file").touch()
    fails(palaestra("report", run_folder, "-o", tmp_path / "file" / "x.html"), "cannot write", "File exists")
    fails(palaestra("report", run_folder, "-o", run_folder / "episodes"), "cannot write", "Is a directory")
    assert not list(run_folder.glob("*.tmp"))


def test_the_running_mean_is_centred_and_shorter_at_the_ends() -> None:
    assert running_mean([1.0, 2.0, 6.0, 3.0], 3) == [1.5, 3.0, 11 / 3, 4.5]
    assert running_mean([], 9) == []


def test_a_device_is_written_to_and_never_replaced(palaestra: Any, fails: Any, run_folder: Path) -> None:
    (run_folder / "metrics.jsonl").unlink()
    fails(palaestra("report", run_folder, "-o", "/dev/full"), "cannot write /dev/full: No space left on device")
    assert Path("/dev/full").is_char_device()

"""The contract kit over the shipped families and the example, and over environments that break the contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palaestra.agents.scripted import CAST
from palaestra.core.errors import ConfigError
from palaestra.envs import self_check
from palaestra.envs.contract.catalogue import CHECKS
from palaestra.envs.contract.report import CheckReport, Outcome

WRONG = [
    ("Plain", "is a tool env that its id makes", "makes a Plain, which is no ToolEnv"),
    ("DiesAtOnce", "is a tool env that its id makes", "KeyError: 'MARKET_HOME' (in __init__, broken_environments.py"),
    ("Stubborn", "takes the keywords that all environments share", "max_turns=3 was given, yet options.max_turns is 7"),
    ("Permissive", "refuses wrong keywords in one line", "no_such_keyword=1 is accepted"),
    ("Unpicklable", "can be copied and pickled", "copy.deepcopy: TypeError: cannot pickle this"),
    ("Undocumented", "documents its tools", "tool weigh: argument thing is not described"),
    ("ClosesOnce", "closes twice", "AssertionError"),
    ("Dice", "repeats resets of one seed", "something else the next time: observation of reset"),
    ("Clock", "repeats episodes of one seed", "gave something else: observation of step('nonsense')"),
    ("Hashing", "repeats episodes in another process", "in another process: observation of step("),
    ("Memory", "starts each episode afresh", "shows what was done in the one before"),
    ("Shared", "keeps environments apart", "what is done in one environment shows in another"),
    ("OneTask", "gives other tasks for other seeds", "20 seeds gave 1 different task"),
    ("Seeder", "leaves global randomness alone", "changed the state of the module random"),
    ("NumpySeeder", "leaves global randomness alone", "changed the state of numpy.random"),
    ("Nameless", "finds tasks by id", "write 'family:split:level:seed'"),
    ("Leaky", "keeps splits apart", "is the same as 'baskets:train:"),
    ("Blabber", "keeps secrets", "shows its secret 'prices'"),
    ("Terse", "tells what it promises in infos", "lacks stop_reason"),
    ("Early", "decides success at the end", "success is False before the end"),
    ("Doubletongued", "says the same in messages as in observations", "messages say 'nothing to say'"),
    ("Arrays", "gives infos that can be stored", "info['scores'] of step('nonsense') holds a ndarray"),
    ("Aliases", "gives infos away", "came back changed"),
    ("Fragile", "answers any text", "ZeroDivisionError"),
    ("NumpyBools", "answers with pythons own types", "it must be bool"),
    ("Silent", "says what was malformed", "the observation does not say"),
    ("Truncating", "ends when turns run out", "must terminate, not truncate"),
    ("Twice", "ends once", "both terminated and truncated"),
    ("Limited", "ends once", "max_episode_steps=3 truncates it"),
    ("Undead", "refuses steps without an episode", "does not raise ResetNeeded"),
    ("Denying", "raises failures", "the step was rewarded with 0.0"),
    ("Swallowing", "raises failures", "did not raise EnvironmentFailure"),
    ("Forgiving", "masks failures", "a failure was rewarded with 0.0"),
    ("Optimist", "survives a failing start", "hid that _start failed"),
    ("NoOracle", "lets the oracle solve every task", "there is no oracle for baskets"),
    ("Unsolvable", "lets the oracle solve every task", "tasks; on baskets:train:3:"),
    ("Generous", "gives null agents nothing", "null-calls-thank got reward 0.3"),
    ("LostExpert", "lets experts play", "expert 'lost' failed on baskets: KeyError: 'no idea' (in lost"),
    ("Inflation", "keeps rewards in their range", "rewarded with 10; reward_range is [0, 1]"),
    ("Upside", "pays success better than failure", "a success was rewarded with 1, a failure with 1"),
    ("SharedCopies", "gives copies that go their own way", "does not go on from where the episode stood"),
    ("Slow", "resets within a second", "a reset takes 1"),
]  # fmt: skip
"""Environment, the check that is about it, and a part of what it says."""


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    """Makes `own_environment` and `broken_environments` modules that can be imported, here and in other processes."""
    monkeypatch.syspath_prepend(repository / "examples")
    monkeypatch.syspath_prepend(Path(__file__).parent)


def found(report: CheckReport) -> dict[str, str]:
    return {result.name: result.finding for result in report.failures}


@pytest.mark.parametrize(("family", "prompt_style"), [("compose", "full"), ("repair", "compact"), ("trace", "full")])
def test_code_sandbox_keeps_the_contract(family: str, prompt_style: str) -> None:
    report = self_check("CodeSandbox-v0", cast=CAST, check_tasks=10, families=[family], prompt_style=prompt_style)
    assert found(report) == {}
    assert [result.number for result in report.results] == list(range(1, len(CHECKS) + 1))
    assert not [result for result in report.results if result.outcome is Outcome.SKIPPED]
    assert report.figures[f"oracle ({family})"] == 1.0


def test_the_example_keeps_the_contract() -> None:
    report = self_check("own_environment:Market-v0")
    assert found(report) == {}
    skipped = [result.subject for result in report.results if result.outcome is Outcome.SKIPPED]
    assert skipped == ["forks"]
    assert report.figures["careful (baskets)"] == 1.0
    assert report.figures["steps_per_s"] > 0


@pytest.mark.parametrize(("kind", "check", "said"), WRONG)
def test_what_is_wrong_is_found_by_the_check_that_is_about_it(kind: str, check: str, said: str) -> None:
    report = self_check(f"broken_environments:Broken{kind}-v0", only=[1, check], check_tasks=30)
    assert not report.ok
    assert list(found(report)) == [check]
    result = report.failures[0]
    assert said in result.finding
    assert result.fix, "each finding says what to write instead"
    assert f"found: {result.finding}" in str(report)
    assert f"write: {result.fix}" in str(report)


def test_every_check_of_ours_can_fail() -> None:
    theirs = {"passes gymnasiums own checker", "has text spaces", "takes steps"}  # Gymnasium's, the spaces', a figure
    assert {numbered.check.name for numbered in CHECKS} - {check for _, check, _ in WRONG} == theirs


def test_what_is_wrong_in_one_way_is_not_found_by_unrelated_checks() -> None:
    assert list(found(self_check("broken_environments:BrokenUndocumented-v0", check_tasks=4))) == [
        "documents its tools"
    ]
    assert list(found(self_check("broken_environments:BrokenGenerous-v0"))) == ["gives null agents nothing"]


def test_nothing_else_is_checked_where_there_is_no_environment() -> None:
    report = self_check("broken_environments:BrokenPlain-v0")
    assert {result.outcome for result in report.results[1:]} == {Outcome.SKIPPED}
    assert report.results[1].finding == "see check 1"


def test_an_environment_that_hangs_is_a_finding_and_the_others_are_not_waited_for() -> None:
    report = self_check("broken_environments:BrokenSleepy-v0", only=["actions", "ends"], check_timeout_s=0.3)
    hung = list(report.results[:3])
    assert [result.finding for result in hung] == ["it was still running after 0.3 s"] * 3
    assert all("--timeout" in result.fix for result in hung)
    others = [result for result in report.results if result not in hung]
    assert {result.finding for result in others} == {"see checks 24, 25, 26, which did not end"}
    assert sum(result.seconds for result in report.results) < 5


def test_a_check_after_one_that_hung_is_made_as_if_nothing_had_been() -> None:
    report = self_check("broken_environments:BrokenDozing-v0", only=["answers any text", "ends"], check_timeout_s=4)
    assert list(found(report)) == ["answers any text"]


def test_another_process_cannot_know_an_id_that_only_this_one_registered() -> None:
    import broken_environments  # noqa: F401

    report = self_check("BrokenHashing-v0", only=["repeats episodes in another process"])
    assert report.ok
    assert "give the id as module:Id-v0" in report.results[0].finding


def test_a_task_file_is_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    def checked(**more: str) -> CheckReport:
        row = {"prompt": "Double x.", "entry_point": "f", "tests": [{"args": [2], "expected": 4}], **more}
        (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
        keywords = {"tasks": str(tmp_path / "tasks.jsonl")}
        return self_check("CodeSandbox-v0", only=["tasks", "agents"], cast=CAST, check_tasks=2, **keywords)

    report = checked()
    assert found(report) == {
        "lets the oracle solve every task": "there is no oracle for the tasks: nobody knows whether they can be solved"
    }
    assert report.failures[0].fix == 'Give each line of the task file a solution ("reference").'
    assert found(checked(reference="def f(x):\n    return 2 * x")) == {}


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"only": ["determinsm"]}, "did you mean 'determinism'?"),
        ({"only": [99]}, "a number, 1 to"),
        ({"max_turnz": 3}, "did you mean 'max_turns'?"),
        ({"families": ["basket"]}, "did you mean 'baskets'?"),
    ],
)
def test_wrong_input_is_no_finding(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        self_check("own_environment:Market-v0", **keywords)

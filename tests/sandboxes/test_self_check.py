"""The contract kit over every isolation mode."""

import subprocess
import sys
import time

import pytest

from palaestra.core.errors import ConfigError, SandboxUnavailable
from palaestra.sandboxes import Limits, Sandbox, SandboxConfig, open_sandbox, self_check
from palaestra.sandboxes.contract.bench import Check
from palaestra.sandboxes.contract.catalogue import CHECKS
from palaestra.sandboxes.contract.report import Outcome

MODES = {
    "local-namespaces": SandboxConfig(backend="local", isolation="namespaces"),
    "local-landlock": SandboxConfig(backend="local", isolation="landlock"),
}
"""Every mode that must keep the contract."""
REQUIRED = ("fork",)
"""Optional capabilities that every mode must have."""


def name_of(check: Check) -> str:
    return f"{check.number}-{check.name.replace(' ', '_')}"


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_keeps_the_contract(mode: str, check: Check) -> None:
    report = self_check(lambda limits: open_sandbox(MODES[mode], limits=limits), only=[check.number], require=REQUIRED)
    (result,) = report.results
    if result.outcome is Outcome.SKIPPED:
        pytest.skip(result.finding)
    assert report.ok, result.finding


WITHOUT_ISOLATION = {
    "cannot connect to the host": "the code reached a port of the host",
    "cannot read files of the host": "the code sees /",
    "cannot signal a neighbour": "the status is '",  # killed or, a moment later, dead
    "cannot read files of a neighbour": "the code reads a neighbour's file as /",
}


@pytest.mark.filterwarnings("ignore:isolation='none'")
def test_a_sandbox_that_isolates_nothing_is_found_out() -> None:
    findings = {
        result.name: result.finding
        for result in self_check(
            lambda limits: open_sandbox(isolation="none", limits=limits), only=["isolation"]
        ).failures
    }
    assert {name: findings[name][: len(start)] for name, start in WITHOUT_ISOLATION.items()} == WITHOUT_ISOLATION


def plain(limits: Limits | None) -> Sandbox:
    return open_sandbox(limits=limits)


def test_checks_are_numbered_and_named_without_a_gap() -> None:
    assert [check.number for check in CHECKS] == list(range(1, len(CHECKS) + 1))
    assert len({check.name for check in CHECKS}) == len(CHECKS) >= 45
    assert {check.subject for check in CHECKS if check.needs == "fork"} == {"forks"}


def test_checks_are_chosen_by_number_name_or_subject() -> None:
    report = self_check(plain, only=[7, "keeps imports", 2])
    assert [result.number for result in report.results] == [2, 7]
    assert all(result.passed and result.finding == "" and result.seconds >= 0 for result in report.results)
    assert {result.subject for result in self_check(plain, only=["state"]).results} == {"state"}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"only": ["keeps import"]}, "only='keeps import': unknown check; did you mean 'keeps imports'?"),
        ({"only": [0]}, "only=0: unknown check"),
        ({"require": ["forks"]}, "require='forks': unknown capability; did you mean 'fork'?"),
    ],
)
def test_what_cannot_be_checked_is_an_error(keywords: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        self_check(plain, **keywords)
    assert str(raised.value).startswith(message)


def test_a_factory_that_fails_is_a_finding_on_one_line() -> None:
    def fail(limits: Limits | None) -> Sandbox:
        raise SandboxUnavailable("no\nsandbox \x1b[31mhere" + "!" * 1000)

    report = self_check(fail, only=[1, 2])
    assert not report.ok
    assert [result.outcome for result in report.failures] == [Outcome.FAILED] * 2
    assert report.failures[0].finding.startswith("SandboxUnavailable: no sandbox  [31mhere!")
    assert len(report.failures[0].finding) == 300


def test_an_implementation_that_hangs_is_a_finding() -> None:
    def hang(limits: Limits | None) -> Sandbox:
        time.sleep(1)
        raise AssertionError

    report = self_check(hang, only=[1], timeout_s=0.2)
    assert report.failures[0].finding == "it was still running after 0.2 s"
    assert report.failures[0].seconds < 0.9


def test_a_report_reads_as_a_table() -> None:
    def fail(limits: Limits | None) -> Sandbox:
        raise ValueError("no")

    lines = str(self_check(fail, only=[1])).splitlines()
    assert lines[0].split()[:2] == ["1", "FAIL"]
    assert lines[0].endswith("state: keeps variables functions and classes")
    assert lines[1] == "    ValueError: no"
    assert lines[2].startswith("0 passed, 1 failed, 0 skipped in ")


def test_the_face_of_the_package_stays_light() -> None:
    code = """
import importlib, sys
import palaestra.sandboxes
assert "palaestra.sandboxes.contract" not in sys.modules
importlib.import_module("palaestra.sandboxes.self_check")
assert callable(palaestra.sandboxes.self_check)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_factory_without_limits_is_checked_as_far_as_it_goes() -> None:
    report = self_check(lambda: open_sandbox(), only=["state", "limits"])
    outcomes = {result.subject: set() for result in report.results}
    for result in report.results:
        outcomes[result.subject].add(result.outcome)
    assert outcomes["state"] == {Outcome.PASSED}
    assert Outcome.SKIPPED in outcomes["limits"]
    assert report.ok

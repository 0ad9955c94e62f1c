"""Runs the checks one after the other; whatever an environment raises is a finding of the check under way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from ...core.errors import ConfigError, SandboxUnavailable, did_you_mean
from ...core.time_limits import StillRunning, in_time
from .bench import Bench, Broken, Skip
from .blame import raised_at
from .catalogue import CHECKS, SUBJECTS, Numbered
from .report import CheckReport, CheckResult, Outcome

MAX_HUNG = 3
"""Checks that may run out of time; after so many, the others are skipped."""
_HANGS = "Find what waits without an end; where it is only slow, allow more time (--timeout) or fewer tasks (-n)."


def run_checks(bench: Bench, only: Sequence[int | str]) -> CheckReport:
    """Runs the chosen checks; all others are skipped where the first one, that it can be made, finds something."""
    _expect_known(bench)
    results: list[CheckResult] = []
    hung: list[str] = []
    for numbered in _chosen(only):
        if results and results[0].number == 1 and results[0].outcome is Outcome.FAILED:
            results.append(_result(numbered, Outcome.SKIPPED, "see check 1"))
        elif len(hung) >= MAX_HUNG:
            results.append(_result(numbered, Outcome.SKIPPED, f"see checks {', '.join(hung)}, which did not end"))
        else:
            results.append(_run(numbered, bench))
            if results[-1].fix == _HANGS:
                hung.append(str(numbered.number))
                bench = bench.afresh()  # the old one is still in use
    return CheckReport(env_id=bench.env_id, results=tuple(results), figures=dict(bench.figures))


def _expect_known(bench: Bench) -> None:
    """Lets through what is wrong with the id and the keywords; all else that is raised is a finding of the checks.

    Raises:
        ConfigError: The id or a keyword is wrong.
    """
    try:
        with bench.make():
            pass
    except ConfigError:
        raise
    except Exception:
        return


def _run(numbered: Numbered, bench: Bench) -> CheckResult:
    began = time.perf_counter()
    outcome, finding, fix = Outcome.PASSED, "", ""
    try:
        in_time(lambda: numbered.check.perform(bench), bench.timeout_s, f"self_check-{numbered.number}")
    except StillRunning as error:
        outcome, finding, fix = Outcome.FAILED, str(error), _HANGS
    except Skip as skip:
        outcome, finding = Outcome.SKIPPED, str(skip)
    except Broken as broken:
        outcome, finding, fix = Outcome.FAILED, broken.problem, broken.fix or numbered.check.advice
    except SandboxUnavailable:
        raise  # a fault of the machine, not of the environment
    except Exception as error:
        outcome, finding, fix = Outcome.FAILED, raised_at(error), numbered.check.advice
    return _result(numbered, outcome, finding, fix, time.perf_counter() - began)


def _result(numbered: Numbered, outcome: Outcome, finding: str, fix: str = "", seconds: float = 0.0) -> CheckResult:
    return CheckResult(
        number=numbered.number,
        subject=numbered.subject,
        name=numbered.check.name,
        outcome=outcome,
        finding=" ".join(finding.split()),
        fix=fix,
        seconds=seconds,
    )


def _chosen(only: Sequence[int | str]) -> list[Numbered]:
    """The checks that numbers, names and subjects name, in their order; all of them when nothing is named."""
    return [numbered for numbered in CHECKS if not only or any(_is(numbered, wanted) for wanted in _known(only))]


def _known(only: Sequence[int | str]) -> Iterator[int | str]:
    names = {*SUBJECTS, *(numbered.check.name for numbered in CHECKS), *(str(numbered.number) for numbered in CHECKS)}
    for wanted in only:
        if str(wanted) not in names:
            raise ConfigError(
                f"check {wanted!r}{did_you_mean(str(wanted), SUBJECTS)} (or a number, 1 to {len(CHECKS)})"
            )
        yield wanted


def _is(numbered: Numbered, wanted: int | str) -> bool:
    return str(wanted) in (str(numbered.number), numbered.subject, numbered.check.name)

"""Runs checks: each in a thread of its own and with sandboxes of its own, so that none spoils another."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ...core.errors import ConfigError, SandboxError, did_you_mean
from ...core.time_limits import StillRunning, in_time
from .bench import Bench, Check, NoLimits, SandboxFactory
from .catalogue import CAPABILITIES, CHECKS
from .report import CheckReport, CheckResult, Outcome

_NOT_SUPPORTED = "not supported"
"""What a `SandboxError` says when the implementation lacks an optional capability."""
_LONGEST_FINDING = 300


def run_checks(
    factory: SandboxFactory, only: tuple[int | str, ...], require: frozenset[str], timeout_s: float
) -> CheckReport:
    """Runs the chosen checks, or all; see `self_check` for the arguments.

    Raises:
        ConfigError: An unknown check or capability.
    """
    for capability in require.difference(CAPABILITIES):
        raise ConfigError(f"require={capability!r}: unknown capability{did_you_mean(capability, CAPABILITIES)}")
    chosen = _select(CHECKS, only)
    return CheckReport(results=tuple(_run(check, factory, check.needs in require, timeout_s) for check in chosen))


def _select(checks: Iterable[Check], only: tuple[int | str, ...]) -> list[Check]:
    by_key: dict[int | str, list[Check]] = {}
    for check in checks:
        for key in (check.number, check.name, check.subject):
            by_key.setdefault(key, []).append(check)
    for key in only:
        if key not in by_key:
            names = [name for name in by_key if isinstance(name, str)]
            raise ConfigError(f"only={key!r}: unknown check{did_you_mean(str(key), names)}")
    wanted = {check.number for key in only for check in by_key[key]}
    return [check for check in checks if not only or check.number in wanted]


def _run(check: Check, factory: SandboxFactory, is_required: bool, timeout_s: float) -> CheckResult:
    """Runs a check in a thread of its own, so that an implementation that hangs is a finding like any other."""
    outcome, finding = Outcome.FAILED, ""

    def perform() -> None:
        nonlocal outcome, finding
        outcome, finding = _perform(check, factory, is_required)

    started = time.monotonic()
    try:
        in_time(perform, timeout_s, f"self_check-{check.number}")
    except StillRunning as error:
        finding = str(error)
    seconds = time.monotonic() - started
    return CheckResult(
        number=check.number, subject=check.subject, name=check.name, outcome=outcome, finding=finding, seconds=seconds
    )


def _perform(check: Check, factory: SandboxFactory, is_required: bool) -> tuple[Outcome, str]:
    bench = Bench(factory)
    try:
        try:
            check.perform(bench)
        finally:
            bench.close()
    except NoLimits as error:
        return Outcome.SKIPPED, str(error)
    except BaseException as error:  # whatever an implementation does wrong is a finding, and this is its own thread
        says_no = check.needs is not None and isinstance(error, SandboxError) and _NOT_SUPPORTED in str(error)
        return Outcome.SKIPPED if says_no and not is_required else Outcome.FAILED, _finding(error)
    return Outcome.PASSED, ""


def _finding(error: BaseException) -> str:
    text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    line = "".join(char if char.isprintable() else " " for char in text).strip()
    return line[:_LONGEST_FINDING] or type(error).__name__

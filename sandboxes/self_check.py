"""The contract of sandboxes as numbered checks that any implementation can be put through, ours or a user's.

    from palaestra.sandboxes import open_sandbox, self_check
    report = self_check(lambda limits: open_sandbox("local", limits=limits))
    print(report)
    assert report.ok, report.failures

The checks see nothing but the `Sandbox` protocol. They say whether a sandbox keeps its promises to honest callers, and
look at isolation only as far as harmless code can see it; whether hostile code stays inside is what an attack suite is
for. They are written down in `sandboxes.contract`, one subject per file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .contract.bench import SandboxFactory
    from .contract.report import CheckReport


def self_check(
    factory: SandboxFactory,
    *,
    only: Iterable[int | str] = (),
    require: Iterable[str] = (),
    timeout_s: float = 60.0,
) -> CheckReport:
    """Puts an implementation of `Sandbox` through the checks.

    Args:
        factory: Called with `Limits`, or with None for the implementation's own; checks that set limits are skipped if
            it takes no argument. Each call gives a sandbox that nobody used before, whose workspace is empty, and that
            keeps to those limits; several are open at once, in several threads. The kit closes what it opened. Inside,
            a POSIX `sh` with the usual commands is expected.
        only: Numbers, names or subjects of the checks to run; all of them when empty.
        require: Optional capabilities that must be there: `"fork"`. Without this, checks of a capability that the
            implementation refuses with a `SandboxError` that says "not supported" are skipped.
        timeout_s: Time after which a check that is still running has failed; what it called is left behind.

    Returns:
        A report whose `ok` says whether no check failed; `failures` are those that did, and `str` gives a table.

    Raises:
        ConfigError: An unknown check or capability.
    """
    from .contract.running import run_checks  # loaded when somebody checks

    return run_checks(factory, tuple(only), frozenset(require), timeout_s)

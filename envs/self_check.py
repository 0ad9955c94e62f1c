"""The contract of language-model environments as numbered checks that any of them can be put through.

    from palaestra.envs import self_check
    report = self_check("my_package:Mine-v0")
    print(report)
    assert report.ok, report.failures

Each finding says what was wrong and what to write instead. The checks are written down in `envs.contract`, one subject
per file. On the command line: `palaestra check my_package:Mine-v0`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contract.report import CheckReport
    from .scripts import Cast

DEFAULT_TASKS = 50
DEFAULT_TIMEOUT_S = 60.0


def self_check(
    env_id: str,
    *,
    only: Iterable[int | str] = (),
    check_tasks: int = DEFAULT_TASKS,
    check_timeout_s: float = DEFAULT_TIMEOUT_S,
    cast: Cast | None = None,
    **kwargs: Any,
) -> CheckReport:
    """Puts an environment through the checks.

    Args:
        env_id: Any id that `make_env` takes. With `module:Id-v0` another process can make it, too.
        only: Numbers, names or subjects of the checks to run; all of them when empty.
        check_tasks: Tasks per family that the oracle and each null agent play.
        check_timeout_s: Time after which a check that is still running has found that the environment hangs; after
            three of them the others are skipped. What was called is left behind.
        cast: Who plays; None: the agents that the environment gives itself (`palaestra.agents.scripted.CAST` knows
            those of Palaestra's own families, too).
        kwargs: The environment's keywords, such as `families=["compose"]`.

    Returns:
        A report whose `ok` says whether nothing was found; `failures` are the findings, and `str` gives a text.

    Raises:
        ConfigError: An unknown check, id or keyword.
        SandboxUnavailable: The environment needs a sandbox, and this machine has none.
    """
    from .contract.bench import Bench  # loaded when somebody checks
    from .contract.running import run_checks
    from .scripts import OWN_CAST

    bench = Bench(env_id=env_id, kwargs=kwargs, cast=cast or OWN_CAST, tasks=check_tasks, timeout_s=check_timeout_s)
    return run_checks(bench, tuple(only))

"""`palaestra check`: whether an environment keeps the contract, and what to write where it does not."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from . import options
from .plain_text import visible

FOUND = 1
"""Exit status when something was found."""


def check(
    env_id: Annotated[str, typer.Argument(metavar="ENV_ID", help="CodeSandbox-v0, or module:Id-v0 of your own.")],
    only: Annotated[
        str, typer.Option(help="Numbers, names or subjects of checks, such as 3,determinism. (default: all)")
    ] = "",
    tasks: Annotated[
        int, typer.Option("-n", "--tasks", min=2, help="Tasks per family that the oracle and each null agent play.")
    ] = 50,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Time that a check may take; then it hangs, a finding.")
    ] = 60.0,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="A keyword of the environment; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check whether an environment keeps the contract that rollouts and learners rely on.

    The module is one of your own package, or a file in the current folder that registers the id with Gymnasium. What is
    looked at, by subject:

    - **making**: the id makes a `ToolEnv`; shared keywords; copies; spaces; Gymnasium's own checker; documented tools
    - **determinism**: one seed, one episode: again, beside others, after another episode, in another process
    - **tasks**: found by id; other seeds, other tasks; no task in two splits; secrets stay secret
    - **infos**: complete, plain data that can be stored, and the caller's to change
    - **actions**: any text is answered, and says what was malformed; Python's own bool and float
    - **ends**: terminated once, by submission or by the turn budget; `ResetNeeded` after that
    - **failures**: infrastructure that dies is raised or masked, never a reward
    - **agents**: the oracle solves every task, null agents score nothing (at most 0.02), experts play; rewards in range
    - **forks**: copies of a live episode go their own way, where the environment says that it can fork
    - **speed**: milliseconds per reset, steps per second

    A check that is still running after `--timeout` seconds has found that the environment hangs; after three of them
    the others are skipped.

    Your environment gives its oracle, null agents and experts itself: `oracle_actions`, `null_actions` and `experts` of
    `palaestra.envs.ToolEnv`. `examples/own_environment.py` shows a whole one in some sixty lines.

    Examples:

    ```
    palaestra check my_env:Mine-v0
    palaestra check my_env:Mine-v0 --only determinism,14 --env max_turns=4
    palaestra check CodeSandbox-v0 --env 'families=["repair"]' --json
    ```

    **Output**: a line per check; where one is not kept, what was found and what to write instead. With `--json`
    `{"ok", "env_id", "figures", "results": [{"number", "subject", "name", "outcome", "finding", "fix", "seconds"}]}`.

    **Exit status**: 0 nothing was found, 1 something was, 2 wrong input (no such id, keyword or check).
    """
    from ..agents.scripted import CAST
    from ..envs.self_check import self_check

    keywords = options.keywords(env or [], "--env")
    env_id = options.environment_id(env_id)
    report = self_check(
        env_id, only=options.names(only), check_tasks=tasks, check_timeout_s=timeout, cast=CAST, **keywords
    )
    typer.echo(json.dumps(report.to_json(), indent=2) if as_json else visible(str(report)))
    if not report.ok:
        raise typer.Exit(FOUND)

"""`palaestra envs`: what can be played and trained in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.text import Text


def envs(
    env_id: Annotated[
        str, typer.Argument(metavar="[ENV_ID]", help="Only this id; module:Id-v0 of your own works too.")
    ] = "",
) -> None:
    """List environments with their tools, task families, levels and keywords.

    Examples:

    ```
    palaestra envs
    palaestra envs my_package.my_env:MyEnv-v0
    ```

    **Output**: a table on the screen. Keywords go to `gym.make(ID, KEY=VALUE)`, and to `--env KEY=VALUE` of the other
    commands.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Environments", show_lines=True)
    for heading in ("id", "tools", "families and levels", "keywords"):
        table.add_column(heading, overflow="fold")
    for name in [env_id] if env_id else registered_ids():
        table.add_row(*_row(name))
    Console().print(table)


def registered_ids() -> list[str]:
    """Ids that Palaestra has registered with Gymnasium."""
    import gymnasium

    from ..envs.registration import register_ids

    register_ids()
    return [spec.id for spec in gymnasium.registry.values() if str(spec.entry_point).startswith("palaestra.")]


def _row(env_id: str) -> tuple[Text, ...]:
    from rich.text import Text

    from ..envs.registration import make_env

    with make_env(env_id) as env:
        plain = env.unwrapped
        tools = "\n".join(usage(schema) for schema in plain.tools)
        families = "\n".join(f"{family.name}: {_levels(family.levels)}" for family in plain.task_set.families)
        keywords = "\n".join(_keywords(type(plain)))
    return Text(env_id, style="bold"), Text(tools), Text(families or "tasks from a file"), Text(keywords)


def usage(schema: Mapping[str, Any]) -> str:
    """`run(code)  Runs a program ...` from a tool's JSON schema."""
    function = schema["function"]
    arguments = ", ".join(function["parameters"].get("properties", {}))
    first_line = str(function.get("description", "")).partition("\n")[0]
    return f"{function['name']}({arguments})  {first_line}".rstrip()


def _levels(levels: Sequence[int]) -> str:
    return f"{levels[0]}..{levels[-1]}" if len(levels) > 1 else str(levels[0])


def _keywords(env_class: type) -> list[str]:
    """`max_turns=10` and so on, from the constructor."""
    return [
        f"{name}={parameter.default!r}"
        for name, parameter in inspect.signature(env_class).parameters.items()
        if parameter.default is not parameter.empty
    ]

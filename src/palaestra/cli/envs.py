"""`palaestra envs`: what can be played and trained in."""

from __future__ import annotations

import inspect
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import ConfigError
from . import options

if TYPE_CHECKING:
    from rich.table import Table

    from ..core.tasks import TaskFamily

_ARGUMENT = re.compile(r"^    (\w+): (.+(?:\n {5,}.+)*)$", re.MULTILINE)
"""An entry of a Google-style `Args:` section; its further lines are indented more deeply."""

_SHARED = ("levels", "split", "max_turns", "max_chars", "parser", "prompt_style", "on_failure", "render_mode")
"""Keywords of `EnvOptions` that mean the same in every environment."""


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

    from ..envs.registration import IDS

    console = Console()
    for name in [options.environment_id(env_id)] if env_id else IDS:
        console.print(_table(name))


def _table(env_id: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(env_id, style="bold"), title_justify="left", show_header=False, expand=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(ratio=1)
    for section, rows in _describe(env_id).items():
        for i, (name, meaning) in enumerate(rows):
            table.add_row(section if i == 0 else "", Text(name), Text(meaning), end_section=i == len(rows) - 1)
    return table


def _describe(env_id: str) -> dict[str, list[tuple[str, str]]]:
    """Tools, families and keywords of an environment as (name, meaning).

    Raises:
        ConfigError: There is no such id, or it is no `ToolEnv`.
    """
    from ..envs.base import ToolEnv
    from ..envs.registration import make_env
    from ..envs.tools import usage

    with make_env(env_id) as env:
        plain = env.unwrapped
        if not isinstance(plain, ToolEnv):
            raise ConfigError(f"{env_id} is a {type(plain).__name__}, not a palaestra.envs.base.ToolEnv")
        tools = [_split_usage(usage(schema)) for schema in plain.tools]
        families = [(family.name, _family_meaning(family)) for family in plain.families.values()]
        return {"tools": tools, "families": families, "keywords": _keywords(type(plain))}


def _split_usage(line: str) -> tuple[str, str]:
    signature, _, meaning = line.partition(": ")
    return signature, meaning


def _family_meaning(family: TaskFamily) -> str:
    levels = f"levels {family.levels[0]} to {family.levels[-1]}"
    kind = type(family)
    if kind.__module__.startswith("palaestra."):  # ours: a module each, whose docstring names it
        about = (inspect.getdoc(sys.modules.get(kind.__module__)) or "").partition("\n\n")[0].partition(": ")[2]
    else:
        about = (inspect.getdoc(kind) or "").partition("\n\n")[0]
    return f"{levels}: {' '.join(about.split())}" if about else levels


def _keywords(env_class: type) -> list[tuple[str, str]]:
    """Names and meanings from the class's docstring, defaults from its constructor.

    A constructor that passes `**keywords` on to `EnvOptions` has the shared ones, which mean the same everywhere.
    """
    from ..envs.code_sandbox import CodeSandboxEnv
    from ..envs.options import EnvOptions

    said = _said(env_class)
    parameters = list(inspect.signature(env_class).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        shared = _said(CodeSandboxEnv)
        said = {name: shared[name] for name in _SHARED} | said
        own = {parameter.name for parameter in parameters}
        parameters += [one for one in inspect.signature(EnvOptions).parameters.values() if one.name not in own]
    return [
        (f"{parameter.name}={parameter.default!r}", said.get(parameter.name, ""))
        for parameter in parameters
        if parameter.default is not parameter.empty
    ]


def _said(env_class: type) -> dict[str, str]:
    """What a class's docstring says about its arguments."""
    found = _ARGUMENT.findall(inspect.getdoc(env_class) or "")
    return {name: " ".join(meaning.split()) for name, meaning in found}

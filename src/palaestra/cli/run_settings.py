"""How a run's models are to be evaluated, read back from the recipe in their run folder."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..agents.episode_origin import EpisodeOrigin
from ..core.errors import ConfigError

RECIPE_FILE = "recipe.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What a recipe says about playing its environment; empty when a model belongs to no run.

    Example: `runs/quickstart/policy` gives `env_kwargs={"max_turns": 10, "prompt_style": "compact"}`.
    """

    source: Path | None = None
    """The recipe that this was read from."""
    families: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    """`max_turn_tokens` and `max_context_tokens`, where the recipe names them."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])


def run_settings(model: str, env_id: str) -> RunSettings:
    """Gives the settings of the run that a model folder lies in, if its recipe is about this environment."""
    recipe_path = Path(model).resolve().parent / RECIPE_FILE
    if not Path(model).is_dir() or not recipe_path.is_file():
        return RunSettings()
    recipe = read_recipe(recipe_path)
    env, rollout = recipe.get("env", {}), recipe.get("rollout", {})
    if env.get("id") != env_id:
        return RunSettings()
    return RunSettings(
        source=recipe_path,
        families=tuple(env.get("families", ())),
        levels=tuple(env.get("levels", ())),
        limits={name: rollout[name] for name in ("max_turn_tokens", "max_context_tokens") if name in rollout},
        env_kwargs=_keywords(env),
    )


def run_environment(recipe_path: Path) -> EpisodeOrigin | None:
    """The environment of a run's held-out episodes, by its recipe; None where the recipe names none.

    Raises:
        ConfigError: The recipe is damaged.
    """
    env = read_recipe(recipe_path).get("env", {})
    if "id" not in env:
        return None
    mix = {name: env[name] for name in ("families", "levels") if env.get(name)}
    return EpisodeOrigin(env_id=str(env["id"]), keywords={"split": "heldout", **mix, **_keywords(env)})


def _keywords(env: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: env[name] for name in ("max_turns", "prompt_style") if name in env}
    return named | dict(env.get("keywords", {}))


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads a stored recipe as plain data.

    Raises:
        ConfigError: The file cannot be read or is damaged.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise ConfigError(f"{path} is damaged: {error}") from error

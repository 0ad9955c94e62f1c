"""Ids that `gym.make` and `gym.make_vec` know, and the two functions through which the rest of Palaestra makes them."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from gymnasium.error import Error as GymnasiumError
from gymnasium.error import UnregisteredEnv

from ..core.errors import ConfigError, did_you_mean
from .options import EnvOptions
from .vector import ToolVectorEnv

IDS: dict[str, str] = {
    "CodeSandbox-v0": "palaestra.envs.code_sandbox:CodeSandboxEnv",
    "ProjectSandbox-v0": "palaestra.envs.project_sandbox:ProjectSandboxEnv",
}
"""Palaestra's own ids and their entry points."""
_VECTOR_ENTRY_POINTS: dict[str, str] = {
    "CodeSandbox-v0": "palaestra.envs.registration:make_code_sandboxes",
    "ProjectSandbox-v0": "palaestra.envs.registration:make_project_sandboxes",
}
"""Named by text, as the entry points are, so that specs can be pickled and stored."""


def register_ids() -> None:
    """Registers the ids; may be called twice."""
    for env_id, entry_point in IDS.items():
        if env_id not in gym.registry:
            gym.register(  # pyright: ignore[reportUnknownMemberType]
                id=env_id,
                entry_point=entry_point,
                vector_entry_point=_VECTOR_ENTRY_POINTS[env_id],
                disable_env_checker=True,
                order_enforce=False,
            )


def make_env(env_id: str, **kwargs: Any) -> Any:
    """Makes an environment by an id of ours, of Gymnasium, or `module:Id-v0` of the user's own package.

    Raises:
        ConfigError: The id is unknown, or a keyword is.
    """
    register_ids()
    try:
        # Gymnasium's per-step checker would warn of the NaN that marks failures; `self_check` checks more, and once.
        return gym.make(env_id, disable_env_checker=True, **kwargs)
    except (UnregisteredEnv, ModuleNotFoundError) as error:
        missing = getattr(error.__cause__ or error, "name", None) or ""  # Gymnasium raises the import's error anew
        if missing and not f"{env_id.partition(':')[0]}.".startswith(f"{missing}."):
            raise ConfigError(f"{env_id}: its module needs {missing!r}, which is not installed") from error
        raise ConfigError(f"no environment {env_id!r}{did_you_mean(env_id, IDS)} (or module:Id-v0)") from error
    except TypeError as error:
        raise ConfigError(f"{env_id}: {_type_error_text(env_id, kwargs, error)}") from error
    except GymnasiumError as error:
        raise ConfigError(f"{env_id}: {error}") from error


def make_vector_env(env_id: str, num_envs: int, *, workers: int | None = None, **kwargs: Any) -> ToolVectorEnv:
    """Makes `num_envs` environments that step without lockstep; see `ToolVectorEnv`."""
    return ToolVectorEnv([lambda: make_env(env_id, **kwargs) for _ in range(num_envs)], workers=workers)


def make_code_sandboxes(num_envs: int = 1, **kwargs: Any) -> ToolVectorEnv:
    """What `gym.make_vec("CodeSandbox-v0", num_envs)` gives."""
    return make_vector_env("CodeSandbox-v0", num_envs, **kwargs)


def make_project_sandboxes(num_envs: int = 1, **kwargs: Any) -> ToolVectorEnv:
    """What `gym.make_vec("ProjectSandbox-v0", num_envs)` gives."""
    return make_vector_env("ProjectSandbox-v0", num_envs, **kwargs)


def _type_error_text(env_id: str, kwargs: dict[str, Any], error: TypeError) -> str:
    """Names an unknown keyword and its nearest valid neighbour; else the error's own first line."""
    spec = gym.registry.get(env_id.partition(":")[2] or env_id)
    if spec is not None and spec.entry_point is not None:
        creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        parameters = inspect.signature(creator).parameters.values()
        names = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
        if len(names) < len(parameters):  # **keywords, which go to EnvOptions
            names += [option.name for option in dataclasses.fields(EnvOptions)]
        for name in kwargs:
            if name not in names and repr(name) in str(error):
                return f"unknown keyword {name!r}{did_you_mean(name, names)}"
    return str(error).splitlines()[0]

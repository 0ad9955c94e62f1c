"""Ids that `gym.make` and `gym.make_vec` know, and the two functions through which the rest of Palaestra makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.error import Error as GymnasiumError
from gymnasium.error import UnregisteredEnv

from ..core.errors import ConfigError, did_you_mean
from .vector import ToolVectorEnv

IDS: dict[str, str] = {"CodeSandbox-v0": "palaestra.envs.code_sandbox:CodeSandboxEnv"}
"""Palaestra's own ids and their entry points."""


def register_ids() -> None:
    """Registers the ids; may be called twice."""
    for env_id, entry_point in IDS.items():
        if env_id not in gym.registry:
            gym.register(
                id=env_id,
                entry_point=entry_point,
                vector_entry_point=_vector_maker(env_id),
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
        return gym.make(env_id, **kwargs)
    except (UnregisteredEnv, ModuleNotFoundError) as error:
        raise ConfigError(f"no environment {env_id!r}{did_you_mean(env_id, IDS)} (or module:Id-v0)") from error
    except TypeError as error:
        raise ConfigError(f"{env_id}: {str(error).splitlines()[0]}") from error
    except GymnasiumError as error:
        raise ConfigError(f"{env_id}: {error}") from error


def make_vector_env(env_id: str, num_envs: int, *, workers: int | None = None, **kwargs: Any) -> ToolVectorEnv:
    """Makes `num_envs` environments that step without lockstep; see `ToolVectorEnv`."""
    return ToolVectorEnv([lambda: make_env(env_id, **kwargs) for _ in range(num_envs)], workers=workers)


def _vector_maker(env_id: str) -> Callable[..., ToolVectorEnv]:
    def make(num_envs: int = 1, **kwargs: Any) -> ToolVectorEnv:
        return make_vector_env(env_id, num_envs, **kwargs)

    return make

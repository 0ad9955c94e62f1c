"""The engine that a recipe's `[rollout]` names: the model in this process, or a server that is sent its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..agents.llm import LLMPolicy
from ..models.adapters import has_adapter, merged_state
from ..models.http_engine import HttpEngine, HttpEngineConfig, find_model
from ..models.loading import save_model
from .config import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..models.engine import Engine

KEY_VARIABLE = "VLLM_API_KEY"
"""vLLM's own name for it, so that trainer and server can share an environment."""
WEIGHTS = "weights"
"""Where in the run folder the server finds them."""


def check_engine(recipe: Recipe) -> None:
    """Fails at once where a recipe's server is not there.

    Raises:
        ConfigError: One line that says what is wrong with the server, its address, its key or the model's name.
    """
    if recipe.rollout.engine == "http":
        find_model(_config(recipe, Path(recipe.run)))


def make_policy(
    recipe: Recipe, *, folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> LLMPolicy:
    """Gives the policy that a recipe trains; its episodes are sampled by the engine that the recipe names."""
    if recipe.rollout.engine == "local":
        return LLMPolicy(model, tokenizer)

    def save(target: Path) -> None:
        if recipe.rollout.weight_sync == "folder":
            save_model(model, tokenizer, target, merged_state(model) if has_adapter(model) else None)
        elif has_adapter(model):  # before there is one, the server's own model is the policy
            save_model(model, tokenizer, target)

    def make_engine(rows: int, max_context: int) -> Engine:
        return HttpEngine(_config(recipe, folder), save, rows, max_context)

    return LLMPolicy(model, tokenizer, make_engine=make_engine)


def _config(recipe: Recipe, folder: Path) -> HttpEngineConfig:
    rollout = recipe.rollout
    return HttpEngineConfig(
        url=rollout.engine_url,
        folder=folder / WEIGHTS,
        model=rollout.engine_model,
        weight_sync=rollout.weight_sync,
        api_key=os.environ.get(KEY_VARIABLE, ""),
    )

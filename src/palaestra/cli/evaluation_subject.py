"""Whom `palaestra eval` evaluates: a model's folder or hub id, a model behind a server, or a scripted agent."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from .run_settings import RECIPE_FILE

if TYPE_CHECKING:
    from ..agents.evaluation import EvalResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The options that say who it is.

    Raises:
        ConfigError: They contradict each other, or name the folder of a run instead of its model's.
    """

    model: str
    agent: str
    base_url: str
    tool_calls: str

    def __post_init__(self) -> None:
        from ..agents.native_calls import CallStyle

        if bool(self.model) == bool(self.agent):
            raise ConfigError("give exactly one of --model and --agent")
        if self.base_url and not self.model:
            raise ConfigError("--base-url: name the server's model with --model")
        if self.tool_calls != "text" and not self.base_url:
            raise ConfigError(f"--tool-calls={self.tool_calls} is for servers: name one with --base-url")
        CallStyle(self.tool_calls)  # a wrong name is found before anything is written
        if self.folder:
            _refuse_a_run_folder(self.folder)

    @property
    def name(self) -> str:
        """The model's or the agent's name."""
        return self.model or self.agent

    @property
    def folder(self) -> str:
        """The model's folder or hub id; "" where none is loaded here."""
        return "" if self.base_url else self.model

    def evaluation(self) -> Callable[..., EvalResult]:
        """What evaluates it: takes its name, the environment's id, options, progress, `ks` and `journal`."""
        from ..agents.evaluation import evaluate_model, evaluate_scripted

        if self.base_url:
            return self._behind_a_server
        return evaluate_model if self.model else evaluate_scripted

    def _behind_a_server(self, model: str, *arguments: Any, **keywords: Any) -> EvalResult:
        from ..agents.endpoint_agent import evaluate_endpoint
        from ..models.chat_endpoint import EndpointConfig

        config = EndpointConfig(base_url=self.base_url, model=model, api_key=os.environ.get("OPENAI_API_KEY", ""))
        return evaluate_endpoint(config, *arguments, **keywords, tool_calls=self.tool_calls)


def _refuse_a_run_folder(model: str) -> None:
    """Says which folder of a run holds its model, to those who name the run."""
    folder = Path(model)
    found = [folder / name for name in ("policy", "sft") if (folder / name).is_dir()]
    if (folder / RECIPE_FILE).is_file() and not (folder / "config.json").exists():
        hint = f"its model is {found[0]}" if found else "it has no model yet; continue it with palaestra train --resume"
        raise ConfigError(f"--model={model} is the folder of a run: {hint}")

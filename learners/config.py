"""Recipes: TOML files plus `key=value` overrides, validated into frozen dataclasses.

A recipe is read by the standard library, overridden on the command line (`grpo.steps=10`), and checked by pydantic
against the dataclasses below; each problem is one line that names the key, the value and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pydantic

from ..agents.branching import BranchingConfig
from ..core.errors import ConfigError, did_you_mean
from ..models.loading import ModelConfig
from .grpo import GRPOConfig
from .sft import SFTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvConfig:
    """Which environment is trained in, with which keywords."""

    id: str = "CodeSandbox-v0"
    families: tuple[str, ...] = ()
    """Task families to draw from; empty means the environment's default."""
    levels: tuple[int, ...] = ()
    """Levels to draw from; one that is listed twice is drawn twice as often. Empty: all."""
    train_levels: tuple[int, ...] = ()
    """Levels for GRPO's tasks, where they differ from `levels`."""
    max_turns: int = 10
    prompt_style: Literal["compact", "full"] = "full"
    """`compact` shows only the task's sentence (for models trained from scratch); `full` teaches the tools as well."""
    keywords: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further keywords of the environment, such as `{sandbox = "local", limits = {memory_mib = 256}}`."""

    def environment(self, levels: Sequence[int] | None = None) -> dict[str, Any]:
        """Keywords for `make_env`, without the split."""
        chosen = list(self.levels if levels is None else levels)
        return {
            "families": list(self.families),
            **({"levels": chosen} if chosen else {}),
            "max_turns": self.max_turns,
            "prompt_style": self.prompt_style,
            **({"split_tasks": True} if "tasks" in self.keywords else {}),  # held-out tasks are not trained on
            **self.keywords,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Synthetic trajectories for SFT."""

    n: int = 10_000
    mix: Mapping[str, float] = field(default_factory=lambda: {"careful": 1.0})
    """Share of each scripted expert; shares are normalised."""
    success_only: bool = False
    """Keep only demonstrations whose submission passed the hidden tests (rejection sampling)."""
    action_style: Literal["auto", "plain", "tool_call"] = "auto"
    """How actions are written: `plain`, or `<tool_call>{...}</tool_call>`; `auto`: plain for models from scratch."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"demos.n={self.n}: must be at least 1")
        if not self.mix or min(self.mix.values()) < 0 or sum(self.mix.values()) <= 0:
            raise ConfigError(f"demos.mix={dict(self.mix)}: shares must be >= 0 and not all 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """Sizes of collection."""

    max_turn_tokens: int = 256
    max_context_tokens: int = 2048
    environments: int = 128
    """Episodes that run side by side in one process."""
    workers: int = 0
    """Threads that step environments; 0 steps them in the collector's own thread (best for sub-millisecond tools)."""
    engine: Literal["local", "http"] = "local"
    """What samples: the model in the training process, or a server (vLLM, `palaestra serve`)."""
    engine_url: str = ""
    """The server, such as http://127.0.0.1:8000; the variable VLLM_API_KEY holds its key."""
    engine_model: str = ""
    """The server's name for the model; empty where it serves only one."""
    weight_sync: Literal["folder", "lora"] = "folder"
    """What the server loads after each update, from the run folder: the whole model, or GRPO's adapter for the server's
    own model, which has to be the policy that GRPO starts from (`reference`)."""
    branching: BranchingConfig = field(default_factory=BranchingConfig)
    """Episodes that go on from the middle of others: `{share = 0.75, branches = 3, at = "uniform"}`."""

    def __post_init__(self) -> None:
        for name in ("max_turn_tokens", "max_context_tokens", "environments"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name}={getattr(self, name)}: must be at least 1")
        if self.engine == "http" and not self.engine_url:
            raise ConfigError("rollout.engine_url='': name the server, such as http://127.0.0.1:8000")
        if self.engine == "local" and self.engine_url:
            raise ConfigError(f"rollout.engine_url={self.engine_url!r}: is used with rollout.engine='http' only")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Held-out evaluation before and after GRPO, and an optional look at the validation split in between."""

    n: int = 400
    """Held-out tasks, read once for the number."""
    seed: int = 1_000_003
    hard_levels: tuple[int, ...] = ()
    """Levels that `rl_success_hard` counts."""
    every: int = 0
    """Evaluate on the validation split every so many GRPO steps; 0 = never."""
    validation_n: int = 128

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("every", 0), ("validation_n", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"evaluation.{name}={getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole training run: demonstrations, SFT, GRPO, evaluation."""

    name: str
    run: str
    """The run folder."""
    seed: int = 0
    processes: int = 1
    """Data-parallel processes on this machine (torch.distributed, gloo on CPUs)."""
    threads: int = 1
    """torch threads per process; on a small machine 1 per process is fastest."""
    stages: tuple[Literal["sft", "grpo"], ...] = ("sft", "grpo")
    reference: str = ""
    """Folder of an SFT policy to start GRPO from, when `stages` leaves SFT out."""
    report: bool = True
    kept_groups: int = 40
    """Groups of training episodes to keep with their advantages, for the report; one a step, spread over the steps."""
    log_to: tuple[Literal["wandb", "trackio"], ...] = ()
    """Dashboards that get the metrics, besides `metrics.jsonl` and TensorBoard's files."""
    project: str = "palaestra"
    """Where the dashboards put the run."""
    run_name: str = ""
    """What the dashboards call the run; empty: as its folder is called."""
    model: ModelConfig = field(default_factory=ModelConfig)
    vocab_size: int = 640
    """Size of the tokenizer that is trained when the model is made from scratch."""
    env: EnvConfig = field(default_factory=EnvConfig)
    demos: DemoConfig = field(default_factory=DemoConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ConfigError(f"processes={self.processes}: must be at least 1")
        if self.threads < 1:
            raise ConfigError(f"threads={self.threads}: must be at least 1")
        if self.kept_groups < 0:
            raise ConfigError(f"kept_groups={self.kept_groups}: must be at least 0")
        if "sft" not in self.stages and not self.reference:
            raise ConfigError("reference='': name the folder of an SFT policy when stages leaves 'sft' out")
        self._check_adapter()
        self._check_server()
        if self.grpo.groups_per_step % self.processes:
            raise ConfigError(
                f"grpo.groups_per_step={self.grpo.groups_per_step}: must be a multiple of processes={self.processes}"
            )
        self._check_branching()

    def _check_server(self) -> None:
        if self.rollout.engine == "http" and self.processes > 1:
            raise ConfigError(f"processes={self.processes}: must be 1 with rollout.engine='http'")
        if self.rollout.weight_sync == "lora" and (not self.model.lora.rank or "sft" in self.stages):
            raise ConfigError(
                "rollout.weight_sync='lora': the server's own model is the reference, and adapters are all that it is "
                "sent; set model.lora.rank and stages=['grpo'] (or weight_sync='folder')"
            )

    def _check_adapter(self) -> None:
        rank, dtype = self.model.lora.rank, self.model.dtype
        if rank and self.from_scratch and "sft" in self.stages:
            raise ConfigError(f"model.lora.rank={rank}: a model made from scratch has nothing to adapt; set model.path")
        if not rank and dtype in ("bfloat16", "float16"):
            raise ConfigError(
                f"model.dtype={dtype!r}: small updates of such weights are rounded away; set model.lora.rank=16, or "
                "model.dtype='float32' (autocast computes in bfloat16 where that is faster)"
            )

    def _check_branching(self) -> None:
        branching, advantage = self.rollout.branching, self.grpo.advantage
        branching.trunks(self.grpo.group_size)
        if advantage == "tree" and not branching.share:
            raise ConfigError("grpo.advantage='tree': needs branches; set rollout.branching.share, such as 0.75")
        if advantage == "gigpo" and branching.share:
            raise ConfigError(
                f"rollout.branching.share={branching.share}: gigpo would count shared turns once for each branch; "
                "set grpo.advantage='tree' (or 'group')"
            )

    @property
    def from_scratch(self) -> bool:
        """Whether model and tokenizer are made here rather than loaded."""
        return not self.model.path


def packaged_recipes() -> list[str]:
    """Names of the recipes that ship with Palaestra."""
    folder = resources.files(__package__ or "palaestra.learners") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a packaged recipe by name, or a TOML file, and applies `key=value` overrides.

    A recipe's table `[pretrained]` holds what changes when `model` names a folder or hub id; overrides go last.

    Args:
        name_or_path: `"quickstart"`, or the path of a TOML file.
        overrides: `"grpo.steps=10"`, `"seed=1"`, `"model=FOLDER"` (short for `model.path=FOLDER`), ...
            Values are read as TOML where that works, else as strings.

    Raises:
        ConfigError: One line that names the key, the value, and what to write instead.
    """
    data = _read_toml(name_or_path)
    given: dict[str, Any] = {}
    for override in overrides:
        _apply_override(given, override)
    for_pretrained = data.pop("pretrained", {})
    if _model_path(given) or _model_path(data):
        data = _merged(data, for_pretrained)
    data = _merged(data, given)
    _check_names(data, Recipe, "")
    try:
        recipe: Recipe = pydantic.TypeAdapter(Recipe).validate_python(data)
    except pydantic.ValidationError as error:
        raise ConfigError(_one_line(error)) from error
    return recipe


def recipe_to_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as TOML-able data; unset (None) values are left out."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            pairs = ((item.name, getattr(value, item.name)) for item in dataclasses.fields(value))
            return {name: plain(inner) for name, inner in pairs if inner is not None}
        if isinstance(value, Mapping):
            return {str(key): plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, tuple | list) else value

    return plain(recipe)


def _read_toml(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.exists():
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read recipe {name_or_path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"recipe {name_or_path} is not valid TOML: {error}") from error
    else:
        names = packaged_recipes()
        if name_or_path not in names:
            raise ConfigError(
                f"no recipe {name_or_path!r}{did_you_mean(name_or_path, names)} (or give the path of a .toml file)"
            )
        text = (resources.files(__package__ or "palaestra.learners") / "recipes" / f"{name_or_path}.toml").read_text()
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {name_or_path} is not valid TOML: {error}") from error


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write key=value, such as grpo.steps=10")
    if key == "model":
        key = "model.path"
    *parents, last = key.strip().split(".")
    table = data
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is not a table")
        table = inner
    table[last] = _toml_value(text)


def _model_path(data: Mapping[str, Any]) -> str:
    """The pretrained model that a recipe names, or "" for one made from scratch."""
    model = data.get("model")
    return str(model.get("path", "")) if isinstance(model, Mapping) else ""


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, table by table; mixes of experts are replaced whole."""
    merged = dict(base)
    for name, value in changes.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and name != "mix":
            value = _merged(old, value)
        merged[name] = value
    return merged


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _check_names(data: Mapping[str, Any], kind: type, prefix: str) -> None:
    """Refuses unknown keys, with the nearest valid name."""
    valid = {item.name for item in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    for name, value in data.items():
        if name not in valid:
            raise ConfigError(f"unknown key {prefix + name!r}{did_you_mean(name, valid)}")
        inner = hints[name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{name}={value!r}: expected a table, such as {prefix}{name}.KEY=VALUE")
            _check_names(value, inner, f"{prefix}{name}.")


_PLAIN = {
    "tuple_type": "must be a list, such as [1, 2] or ['a', 'b']",
    "dict_type": "must be a table of names and values",
}
"""pydantic's messages about Python types, in the words of TOML."""


def _one_line(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{where}: missing from the recipe"
    message = _PLAIN.get(first["type"], str(first["msg"]).removeprefix("Value error, "))
    return message if not where or "=" in message else f"{where}={first.get('input')!r}: {message}"

"""Low-rank adapters (LoRA) in a transformers model, through `peft`: added, switched off, merged, saved and loaded.

Layers are put into the model itself: it stays a `PreTrainedModel`, and what reads its decoder, head or config needs to
know nothing. There is at most one adapter at a time. Nothing merges it for a while and takes it out again: round-off
would drift into the base's weights. `peft` is imported when the first adapter is made or read.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"
"""peft's name for an adapter that has no other."""
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""What peft's files put before the name of a weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): W x + (alpha / rank) B A x, where only A and B learn."""

    rank: int = 0
    """0 = no adapter: all weights are trained."""
    alpha: float = 32.0
    """Scale of what the adapter adds, times `rank` (or the root of `rank`, with `rslora`)."""
    dropout: float = 0.0
    """Of the adapter's input. Above 0, training's log-probabilities are not those of the policy that sampled."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but the output head), or names, such as `["q_proj", "v_proj"]`."""
    rslora: bool = False
    """Divide alpha by the root of the rank, so that larger ranks do not learn less (arXiv 2312.03732)."""
    save_merged: bool = False
    """Whether GRPO writes `policy-merged/` as well: an ordinary model folder, of the base's size."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"model.lora.rank={self.rank}: must be at least 0 (0 trains all weights)")
        if not self.alpha > 0:
            raise ConfigError(f"model.lora.alpha={self.alpha}: must be in (0, inf)")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.lora.dropout={self.dropout}: must be in [0, 1)")
        if not self.target_modules:
            raise ConfigError("model.lora.target_modules: name at least one, or write 'all-linear'")


def add_adapter(model: PreTrainedModel, config: LoRAConfig, *, seed: int, base: str = "") -> None:
    """Puts a new adapter into a model and freezes everything else; what the model computes stays the same.

    The adapter is float32 whatever the model's dtype: updates that small would be rounded away in half precision.

    Args:
        model: A model without an adapter.
        config: Its sizes; the rank is at least 1.
        seed: Of the first weights; global random state is left alone.
        base: Folder or hub id of the model, for `adapter_config.json`; empty = where it was loaded from. The path of
            a folder is made absolute.

    Raises:
        ConfigError: `target_modules` names no layer of this model.
        ModelError: There is an adapter already.
    """
    from peft import LoraConfig

    if has_adapter(model):
        raise ModelError("the model has an adapter already; merge it first")
    names, base = config.target_modules, base or model.name_or_path or ""
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=config.dropout,
        target_modules=names if isinstance(names, str) else list(names),
        use_rslora=config.rslora,
        task_type="CAUSAL_LM",
        base_model_name_or_path=(str(Path(base).resolve()) if base and Path(base).is_dir() else base) or None,
    )
    try:
        with torch.random.fork_rng(devices=[]):  # peft draws on the CPU, then moves
            torch.manual_seed(seed % 2**63)
            _inject(lora, model)
    except ValueError as error:
        _forget(model)
        raise ConfigError(f"model.lora.target_modules={names!r}: {_first_sentence(error)}") from error


def _inject(config: Any, model: PreTrainedModel) -> None:
    """Puts an adapter's layers into a model: float32, in the mode that the model is in."""
    from peft import inject_adapter_in_model

    training = model.training
    inject_adapter_in_model(config, model, ADAPTER)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    model.train(training)


def has_adapter(model: nn.Module) -> bool:
    """Whether a model has an adapter, be it on or off."""
    return bool(getattr(model, "peft_config", None))


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """For a while the model computes what its base computes."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    learns = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, learnt in learns:  # peft freezes what it switches off, and lets all learn that it switches on
            parameter.requires_grad_(learnt)


def merge_adapter(model: PreTrainedModel) -> None:
    """Makes the adapter part of the weights and leaves an ordinary model, in which everything can be trained.

    Sums are made in float32 and rounded once to the weights' dtype; this cannot be taken back.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer.get_base_layer())
    _forget(model)
    model.requires_grad_(True)


def _forget(model: Any) -> None:
    if "peft_config" in vars(model):
        del model.peft_config


# ------------------------------------------------------------------------------------------------------------ weights
def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes: the adapter's where there is one, else all."""
    if not has_adapter(model):
        return model.state_dict()
    return {name: parameter.detach() for name, parameter in model.named_parameters() if ".lora_" in name}


def load_trained_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restores `trained_state()`.

    Raises:
        ModelError: The weights are those of a model with other layers, or of another adapter.
    """
    wanted = trained_state(model)
    if wanted.keys() != state.keys() or any(value.shape != state[name].shape for name, value in wanted.items()):
        raise ModelError("the saved weights do not fit this model and adapter")
    model.load_state_dict(dict(state), strict=not has_adapter(model))


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of an ordinary model that computes what this one does; merged weights are copies on the CPU."""
    from peft.tuners.lora import LoraLayer

    state = {name: value for name, value in model.state_dict().items() if ".lora_" not in name}
    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in layers.items():
        weight = state[f"{name}.base_layer.weight"]
        delta = layer.get_delta_weight(ADAPTER)
        state[f"{name}.base_layer.weight"] = (weight.float() + delta.float()).to("cpu", weight.dtype)
    return {name.replace(".base_layer.", "."): value for name, value in state.items()}


# -------------------------------------------------------------------------------------------------------------- files
def write_adapter(model: Any, folder: Path) -> None:
    """Writes the adapter alone, as `PeftModel.from_pretrained` reads it."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy.copy(model.peft_config[ADAPTER])
    config.inference_mode = True  # as peft itself writes it: whoever loads it decides
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    contiguous = {_PREFIX + name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(contiguous, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def read_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Puts the adapter of a folder into its base model; it can be trained on.

    Raises:
        ModelError: It is an adapter of another kind, or of another model.
    """
    from peft import LoraConfig, PeftConfig
    from peft.utils import set_peft_model_state_dict
    from safetensors.torch import load_file

    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ModelError(f"{folder} holds an adapter of kind {config.peft_type}; only LoRA is known here")
    config.inference_mode = False
    state = load_file(folder / WEIGHTS_FILE)
    _inject(config, model)
    plain = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    result = set_peft_model_state_dict(model, plain, ADAPTER)
    missing = [name for name in result.missing_keys if ".lora_" in name]
    if missing or result.unexpected_keys:
        raise ModelError(f"the adapter in {folder} does not fit its base: {(missing + result.unexpected_keys)[0]}")


def base_of_adapter(folder: Path) -> str:
    """Folder or hub id of the model that an adapter belongs to; one that was moved with the adapter is found.

    Raises:
        ModelError: The adapter names no model, or its configuration cannot be read.
    """
    try:
        name = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"cannot read {folder / CONFIG_FILE}: {error}") from error
    if not isinstance(name, str) or not name:
        raise ModelError(f"{folder / CONFIG_FILE} names no base model (base_model_name_or_path)")
    beside = folder.resolve().parent / Path(name).name
    if Path(name).is_absolute() and not Path(name).is_dir() and beside.is_dir():
        return str(beside)
    return name


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0]


# ---------------------------------------------------------------------------------------------------- a layer's parts
@dataclass(frozen=True, slots=True)
class LinearParts:
    """What a linear layer multiplies with: W x + b + up (down x)."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None
    """A, [rank, inputs]."""
    up: Tensor | None = None
    """B times its scale, [outputs, rank]."""

    def joined(self) -> Tensor:
        """One matrix that does the same; the layer's own weight is not touched."""
        return self.weight if self.down is None or self.up is None else self.weight + self.up @ self.down


@torch.no_grad()
def linear_parts(layer: nn.Module) -> LinearParts | None:
    """Takes a linear layer apart, with an adapter or without; None for what computes anything else."""
    if type(layer) is nn.Linear:
        return LinearParts(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
    if type(layer).__module__ != "peft.tuners.lora.layer" or type(layer).__name__ != "Linear":
        return None
    lora: Any = layer
    names = [name for name in lora.active_adapters if name in lora.lora_A]
    if type(lora.base_layer) is not nn.Linear or any(
        name in lora.lora_variant or lora.lora_bias[name] for name in names
    ):
        return None
    parts = linear_parts(lora.base_layer)
    if parts is None or lora.merged or lora.disable_adapters or not names:
        return parts
    down = torch.cat([lora.lora_A[name].weight for name in names])
    up = torch.cat([lora.lora_B[name].weight * lora.scaling[name] for name in names], dim=1)
    return LinearParts(parts.weight, parts.bias, down, up)

"""LoRA adapters as `peft` saves them, read without it and added to a model's weights.

Matrices alone: W + scale * B A (arXiv 2106.09685, equation 3). Adapters that hold more (whole modules, DoRA's
magnitudes, embeddings) are refused by name, because serving them in part would be another model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import ModelError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Matrices by the names of the modules that they change."""

    is_transposed: bool
    """Whether the modules keep their weights as (in, out)."""
    matrices: Mapping[str, LoraMatrices]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraMatrices:
    """What is added to one module's weights: `scale * b @ a`."""

    a: torch.Tensor
    """(rank, in)"""
    b: torch.Tensor
    """(out, rank)"""
    scale: float


def read_adapter(folder: str | Path, model: nn.Module) -> Adapter:
    """Reads an adapter and checks that it fits the model.

    Raises:
        ModelError: The folder holds no adapter, or one that is not made of LoRA matrices for this model.
    """
    path = Path(folder)
    config, tensors = _config(path), _tensors(path)
    if config.get("alpha_pattern") or config.get("use_dora"):
        raise ModelError(f"{path}: only plain LoRA is served (no alpha_pattern, no use_dora)")
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, rest = name.removeprefix(_PREFIX).partition(".lora_")
        if rest not in ("A.weight", "B.weight"):
            raise ModelError(f"{path}: only LoRA matrices are served, and this adapter holds {name}")
        pairs.setdefault(module, {})[rest[0]] = tensor
    transposed = bool(config.get("fan_in_fan_out"))
    for module, pair in pairs.items():
        _check(path, model, module, pair, transposed)
    matrices: dict[str, LoraMatrices] = {}
    for module, pair in pairs.items():
        rank = pair["A"].shape[0]
        alpha = float(config.get("lora_alpha", rank))  # peft keeps one for all modules, whatever their ranks
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        matrices[module] = LoraMatrices(a=pair["A"], b=pair["B"], scale=scale)
    return Adapter(is_transposed=transposed, matrices=matrices)


class AdapterSlot:
    """A model that carries one adapter or none; without one, its weights are bit for bit what they were."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._originals: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def put(self, adapter: Adapter | None) -> None:
        """Takes out the adapter that is there, and puts in this one."""
        for name, original in self._originals.items():
            self._weight(name).copy_(original)
        self._originals.clear()
        if adapter is None:
            return
        for name, matrices in adapter.matrices.items():
            weight = self._weight(name)
            self._originals[name] = weight.detach().clone()
            change = matrices.scale * (matrices.b.to(weight.device).float() @ matrices.a.to(weight.device).float())
            weight += (change.T if adapter.is_transposed else change).to(weight.dtype)

    def _weight(self, module: str) -> torch.Tensor:
        return _weight_of(self._model, module)


def _weight_of(model: nn.Module, module: str) -> torch.Tensor:
    weight = model.get_submodule(module).weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} holds no adapter: cannot read {CONFIG_FILE}") from error
    if not isinstance(config, dict) or config.get("peft_type", "LORA") != "LORA":
        raise ModelError(f"{path}: only LoRA adapters are served")
    return config


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} holds no adapter: cannot read {WEIGHTS_FILE}") from error


def _check(path: Path, model: nn.Module, module: str, pair: Mapping[str, torch.Tensor], transposed: bool) -> None:
    try:
        shape = tuple(_weight_of(model, module).shape)
    except AttributeError as error:
        raise ModelError(f"{path}: the model that is served has no module {module}") from error
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if embeddings is not None and _weight_of(model, module) is embeddings.weight:
        raise ModelError(f"{path}: {module} shares its weights with the embeddings, so that it cannot be changed alone")
    if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
        raise ModelError(f"{path}: the matrices of {module} do not belong together")
    change = (pair["B"].shape[0], pair["A"].shape[1])
    if (change[::-1] if transposed else change) != shape:
        raise ModelError(f"{path}: the matrices of {module} change {change} weights, the model has {shape}")

"""LoRA adapters as peft saves them: the same model as peft's own, exactly undone, and refused where they are more."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from palaestra.core.errors import ModelError
from palaestra.models.lora_folder import AdapterSlot, read_adapter

MakeModel = Callable[..., PreTrainedModel]
Q = "base_model.model.model.layers.0.self_attn.q_proj"
TOKENS = torch.tensor([[5, 6, 7, 8]])


def write(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def matrices(rank: int = 2, out: int = 32, inner: int = 32, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        f"{Q}.lora_A.weight": torch.randn(rank, inner, generator=random),
        f"{Q}.lora_B.weight": torch.randn(out, rank, generator=random),
    }


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_added_is_scale_times_b_a(tiny_model: MakeModel, tmp_path: Path, rslora: bool) -> None:
    model, pair = tiny_model(), matrices(rank=2)
    before = model.get_submodule("model.layers.0.self_attn.q_proj").weight.detach().clone()
    write(tmp_path / "a", pair, lora_alpha=3, r=2, use_rslora=rslora)
    slot = AdapterSlot(model)
    slot.put(read_adapter(tmp_path / "a", model))
    after = model.get_submodule("model.layers.0.self_attn.q_proj").weight.detach()
    scale = 3 / math.sqrt(2) if rslora else 3 / 2
    wanted = before + scale * pair[f"{Q}.lora_B.weight"] @ pair[f"{Q}.lora_A.weight"]
    assert torch.allclose(after, wanted, atol=1e-6)
    write(tmp_path / "b", matrices(seed=1), lora_alpha=2)
    slot.put(read_adapter(tmp_path / "b", model))
    slot.put(None)
    assert torch.equal(model.get_submodule("model.layers.0.self_attn.q_proj").weight, before), "bit for bit"


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft on transformers 5.24
def test_peft_gives_the_same_logits(tiny_model: MakeModel, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft saves the adapters")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", rank_pattern={"q_proj": 2})
    wrapped = peft.get_peft_model(tiny_model("qwen3"), config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    wrapped.save_pretrained(tmp_path / "adapter")
    model = tiny_model("qwen3")
    plain = logits(model)
    AdapterSlot(model).put(read_adapter(tmp_path / "adapter", model))
    assert (logits(model) - logits(wrapped)).abs().max() < 1e-4
    assert (logits(model) - plain).abs().max() > 0.01


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        (matrices(), {"peft_type": "IA3"}, "only LoRA adapters"),
        (matrices(), {"use_dora": True}, "only plain LoRA"),
        (matrices(), {"alpha_pattern": {"q_proj": 3}}, "only plain LoRA"),
        (
            {"base_model.model.lm_head.weight": torch.ones(2, 2)},
            {},
            "this adapter holds base_model.model.lm_head.weight",
        ),
        ({f"{Q}.lora_A.weight": torch.ones(2, 32)}, {}, "do not belong together"),
        (matrices(out=16), {}, r"change \(16, 32\) weights, the model has \(32, 32\)"),
        (
            {name.replace("q_proj", "z_proj"): tensor for name, tensor in matrices().items()},
            {},
            "has no module model.layers.0.self_attn.z_proj",
        ),
        (
            {
                "base_model.model.lm_head.lora_A.weight": torch.ones(2, 32),
                "base_model.model.lm_head.lora_B.weight": torch.ones(400, 2),
            },
            {},
            "lm_head shares its weights with the embeddings",
        ),
    ],
)
def test_other_adapters_are_refused_in_one_line(
    tiny_model: MakeModel, tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        read_adapter(write(tmp_path / "a", tensors, **config), tiny_model())
    assert "\n" not in str(caught.value)


def test_damaged_folders_are_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", matrices())
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"cannot read adapter_model\.safetensors"):
        read_adapter(folder, tiny_model())
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read adapter_config\.json"):
        read_adapter(folder, tiny_model())
    with pytest.raises(ModelError, match="holds no adapter"):
        read_adapter(tmp_path / "nowhere", tiny_model())

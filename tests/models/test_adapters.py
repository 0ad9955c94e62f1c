from __future__ import annotations

import contextlib
import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from palaestra.core.errors import ConfigError, ModelError
from palaestra.models import fused_weights
from palaestra.models.adapters import (
    LoRAConfig,
    adapter_off,
    add_adapter,
    has_adapter,
    linear_parts,
    load_trained_state,
    merge_adapter,
    merged_state,
    trained_state,
)
from palaestra.models.cached_decoder import CachedDecoder
from palaestra.models.decoder_choice import choose_decoder, disagreement
from palaestra.models.decoders import RecomputeDecoder
from palaestra.models.engine import GenerationRequest
from palaestra.models.fused_decoder import FusedDecoder
from palaestra.models.loading import load_model, save_model
from palaestra.models.local_engine import LocalEngine

Make = Callable[..., PreTrainedModel]
CONFIG = LoRAConfig(rank=4, alpha=8.0)


def learnt(model: PreTrainedModel, config: LoRAConfig = CONFIG, scale: float = 0.1, seed: int = 3) -> PreTrainedModel:
    """The model with an adapter that matters, as after some training."""
    add_adapter(model, config, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=rng))
    return model


def bits(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Copies of all weights but the adapter's, by their names in an ordinary model."""
    return {
        name.replace(".base_layer.", "."): value.clone()
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@torch.no_grad()
def logits(model: PreTrainedModel, vocabulary: int = 400) -> torch.Tensor:
    ids = torch.randint(vocabulary, (2, 24), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, use_cache=False).logits.float()


# ------------------------------------------------------------------------------------------------------------- adding
def test_a_new_adapter_changes_nothing_and_learns_alone(tiny_model: Make) -> None:
    model, plain = tiny_model("qwen3"), tiny_model("qwen3")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    add_adapter(model, CONFIG, seed=0)
    assert torch.equal(torch.rand(3), expected), "global randomness is left alone"
    assert torch.equal(logits(model), logits(plain))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == set(trained_state(model))
    assert len(learning) == 2 * 2 * 7, "A and B of seven linear layers in each of two layers; not the head"
    assert not model.training
    with pytest.raises(ModelError, match="an adapter already"):
        add_adapter(model, CONFIG, seed=0)


def test_equal_seeds_give_equal_adapters(tiny_model: Make) -> None:
    states = []
    for seed in (1, 1, 2):
        model = tiny_model()
        add_adapter(model, CONFIG, seed=seed)
        states.append({name: value.clone() for name, value in trained_state(model).items()})
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


def test_an_adapter_of_half_precision_weights_is_float32(tiny_model: Make) -> None:
    model = learnt(tiny_model().bfloat16())
    assert {value.dtype for value in trained_state(model).values()} == {torch.float32}
    assert model.dtype == torch.bfloat16
    assert logits(model).isfinite().all()


def test_names_and_scales_are_peft_s(tiny_model: Make) -> None:
    model = tiny_model()
    add_adapter(model, LoRAConfig(rank=4, alpha=8.0, rslora=True, target_modules=("q_proj", "v_proj")), seed=0)
    assert {name.split(".")[4] for name in trained_state(model)} == {"q_proj", "v_proj"}
    layer: Any = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert layer.scaling["default"] == 8.0 / 4**0.5


def test_mistakes_are_one_line(tiny_model: Make) -> None:
    for wrong, message in (
        ({"rank": -1}, r"^model\.lora\.rank=-1: must be at least 0"),
        ({"alpha": 0.0}, r"^model\.lora\.alpha=0\.0: must be in \(0, inf\)$"),
        ({"dropout": 1.0}, r"^model\.lora\.dropout=1\.0: must be in \[0, 1\)$"),
        ({"target_modules": ()}, r"^model\.lora\.target_modules: name at least one"),
    ):
        with pytest.raises(ConfigError, match=message):
            LoRAConfig(**wrong)  # pyright: ignore[reportArgumentType]
    model = tiny_model()
    with pytest.raises(ConfigError, match=r"^model\.lora\.target_modules=\('q_porj',\): .*not found") as caught:
        add_adapter(model, LoRAConfig(rank=2, target_modules=("q_porj",)), seed=0)
    assert "\n" not in str(caught.value)
    add_adapter(model, CONFIG, seed=0)  # nothing of the failed one is left


# -------------------------------------------------------------------------------------------------------- off, merging
def test_off_is_the_base_bit_for_bit_and_comes_back(tiny_model: Make) -> None:
    plain, model = tiny_model("qwen3"), learnt(tiny_model("qwen3"))
    adapted, state = logits(model), {name: p.requires_grad for name, p in model.named_parameters()}
    assert (adapted - logits(plain)).abs().max() > 0.1
    with contextlib.suppress(KeyboardInterrupt), adapter_off(model):
        assert torch.equal(logits(model), logits(plain))
        raise KeyboardInterrupt
    assert torch.equal(logits(model), adapted)
    assert state == {name: p.requires_grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_leaves_an_ordinary_model_that_can_be_trained(tiny_model: Make, dtype: torch.dtype) -> None:
    model = learnt(tiny_model("qwen3").to(dtype))  # pyright: ignore[reportArgumentType]
    adapted, exact = logits(model), merged_state(model)
    merge_adapter(model)
    assert not has_adapter(model)
    assert equal(exact, model.state_dict()), "both ways round once"
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(logits(model), adapted, rtol=0, atol=2e-5 if dtype == torch.float32 else 0.5)
    add_adapter(model, CONFIG, seed=1)
    assert torch.equal(logits(model), logits(copy.deepcopy(model)))


# ------------------------------------------------------------------------------------------------------------- rollout
def sampled(engine: LocalEngine, key: int, ids: list[int], n: int = 12) -> tuple[list[int], list[float]]:
    request = GenerationRequest(
        key=key, token_ids=ids, generator=np.random.default_rng(key), max_tokens=n, end_ids=frozenset()
    )
    [completion] = engine.generate([request])
    return completion.token_ids, completion.logprobs


@torch.no_grad()
def forward_logprobs(model: PreTrainedModel, ids: list[int], sampled_ids: list[int]) -> np.ndarray:
    everything = torch.tensor([[*ids, *sampled_ids]])
    scores = model(input_ids=everything, use_cache=False).logits[0, len(ids) - 1 : -1].float().log_softmax(-1)
    return scores[torch.arange(len(sampled_ids)), torch.tensor(sampled_ids)].numpy()


@pytest.mark.parametrize("kind", ["joined", "separate", "cached", "recompute"])
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_the_engine_samples_with_the_adapter(
    tiny_model: Make, architecture: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded log-probabilities are those of the training forward, before and after an update."""
    if kind == "separate":
        monkeypatch.setattr(fused_weights, "_JOINED_LIMIT", 0)
    model = learnt(tiny_model(architecture), scale=0.02)
    base = bits(model)
    maker = {"cached": CachedDecoder, "recompute": RecomputeDecoder}.get(kind, FusedDecoder)
    engine = LocalEngine(model, 4, 64, decoder=maker(model, 4, 64))
    prompt = [5, 9, 30, 7, 100]
    for version in range(2):
        ids, logprobs = sampled(engine, version, prompt)
        np.testing.assert_allclose(logprobs, forward_logprobs(model, prompt, ids), atol=1e-5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter.mul_(1.5)
        with adapter_off(model):
            assert np.abs(forward_logprobs(model, prompt, ids) - logprobs).max() > 1e-3, "the adapter matters"
        engine.update_weights(version + 1)
    assert equal(base, bits(model)), "nothing was merged into the base"


def test_the_fast_decoder_is_chosen_and_follows_the_switch(tiny_model: Make) -> None:
    model = learnt(tiny_model("qwen3"))
    decoder = choose_decoder(model, 3, 64)
    assert isinstance(decoder, FusedDecoder)
    with adapter_off(model):
        assert disagreement(decoder, model, 3, 64) > 1e-2
        decoder.refresh()
        assert disagreement(decoder, model, 3, 64) < 1e-4
    decoder.refresh()
    assert disagreement(decoder, model, 3, 64) < 1e-4


def test_half_precision_decodes_as_it_trains(tiny_model: Make) -> None:
    """An adapter too small for the weights' own precision is seen by the engine: it is not rounded into them."""
    model = learnt(tiny_model("qwen3").bfloat16(), scale=1e-4)
    layer: Any = model.get_submodule("model.layers.0.mlp.down_proj")
    merged = layer.base_layer.weight + layer.get_delta_weight("default").to(torch.bfloat16)
    assert (merged == layer.base_layer.weight).float().mean() > 0.5, "most of it would be lost"
    parts = linear_parts(layer)
    assert parts is not None
    assert parts.down is not None
    decoder = choose_decoder(model, 3, 64)
    assert isinstance(decoder, FusedDecoder)
    x = torch.randn(7, layer.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(fused_weights._affine(parts)(x), layer(x), rtol=0, atol=0)


def test_other_adapters_go_through_the_model_s_own_forward(tiny_model: Make) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = tiny_model()
    inject_adapter_in_model(LoraConfig(r=4, use_dora=True, target_modules="all-linear"), model)
    assert linear_parts(model.get_submodule("model.layers.0.self_attn.q_proj")) is None
    assert isinstance(choose_decoder(model, 3, 64), CachedDecoder)


# --------------------------------------------------------------------------------------------------------------- files
def saved(tiny_model: Make, tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedModel:
    """`folder/sft`, an ordinary model, and `folder/policy`, an adapter of it; gives the adapted model."""
    save_model(tiny_model("qwen3"), tokenizer, folder / "sft")
    model, _ = load_model(folder / "sft")
    learnt(model)
    save_model(model, tokenizer, folder / "policy")
    return model


def test_an_adapter_s_folder_is_small_and_loads_with_its_base(
    tiny_model: Make, compact_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = saved(tiny_model, compact_tokenizer, tmp_path)
    assert not (tmp_path / "policy" / "config.json").exists()
    assert len(load_file(tmp_path / "policy" / "adapter_model.safetensors")) == 28
    loaded, tokenizer = load_model(tmp_path / "policy")
    assert torch.equal(logits(loaded), logits(model))
    assert tokenizer.chat_template == compact_tokenizer.chat_template
    assert equal(trained_state(loaded), trained_state(model))
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == set(trained_state(model))
    save_model(loaded, tokenizer, tmp_path / "merged", merged_state(loaded))
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(model))


def test_peft_reads_what_we_write_and_we_read_what_peft_writes(
    tiny_model: Make, compact_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    from peft import PeftModel

    model = saved(tiny_model, compact_tokenizer, tmp_path)
    with warnings.catch_warnings():  # peft's use of transformers' older names
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
        theirs = PeftModel.from_pretrained(base, str(tmp_path / "policy"))
        assert torch.equal(logits(theirs), logits(model))  # pyright: ignore[reportArgumentType]
        theirs.save_pretrained(str(tmp_path / "theirs"))
    ours, tokenizer = load_model(tmp_path / "theirs")  # it has no tokenizer: the base's is taken
    assert torch.equal(logits(ours), logits(model))
    assert tokenizer.eos_token == compact_tokenizer.eos_token


def test_an_adapter_of_an_adapter_loads_with_both(
    tiny_model: Make, compact_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run leaves it whose `reference` is another run's policy."""
    saved(tiny_model, compact_tokenizer, tmp_path)
    monkeypatch.chdir(tmp_path)
    model, tokenizer = load_model("policy")
    merge_adapter(model)
    add_adapter(model, CONFIG, seed=9, base="policy")
    with torch.no_grad():
        for value in trained_state(model).values():
            value.add_(0.05)
    save_model(model, tokenizer, tmp_path / "second")
    monkeypatch.chdir("/")
    assert torch.equal(logits(load_model(tmp_path / "second")[0]), logits(model))


def test_a_moved_run_finds_its_base(
    tiny_model: Make, compact_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = saved(tiny_model, compact_tokenizer, tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert torch.equal(logits(load_model(tmp_path / "elsewhere" / "policy")[0]), logits(model))


def test_damaged_adapters_are_one_line(
    tiny_model: Make, compact_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    saved(tiny_model, compact_tokenizer, tmp_path)
    policy = tmp_path / "policy"
    settings = json.loads((policy / "adapter_config.json").read_text())

    def fails(message: str) -> None:
        with pytest.raises(ModelError, match=message) as caught:
            load_model(policy)
        assert "\n" not in str(caught.value)

    (policy / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    fails("names no base model")
    (policy / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "/gone/away"}))
    fails("no model folder /gone/away")
    (policy / "adapter_config.json").write_text(json.dumps({**settings, "r": 3}))
    fails("policy")
    (policy / "adapter_config.json").write_text("{")
    fails("cannot read")
    (policy / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": ["q_proj"]}))
    fails("does not fit its base")
    (policy / "adapter_config.json").write_text(json.dumps(settings))
    (policy / "adapter_model.safetensors").write_bytes(b"x" * 100)
    fails("policy")
    (policy / "adapter_model.safetensors").unlink()
    fails("policy")


def test_states_of_other_models_are_refused(tiny_model: Make) -> None:
    model, other = learnt(tiny_model()), learnt(tiny_model(), LoRAConfig(rank=2))
    with pytest.raises(ModelError, match="do not fit"):
        load_trained_state(model, trained_state(other))
    with pytest.raises(ModelError, match="do not fit"):
        load_trained_state(model, trained_state(tiny_model()))
    state = {name: torch.full_like(value, 0.5) for name, value in trained_state(model).items()}
    load_trained_state(model, state)
    assert equal(trained_state(model), state)

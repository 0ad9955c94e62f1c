from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from palaestra.models.cached_decoder import CachedDecoder
from palaestra.models.decoder_choice import choose_decoder, disagreement
from palaestra.models.decoders import Decoder, RecomputeDecoder
from palaestra.models.fused_decoder import FusedDecoder, fits

VOCABULARY = 120
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FUSED: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)),
    "llama, scaled rope": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE)),
    "llama, one kv head, tied": lambda: LlamaForCausalLM(
        LlamaConfig(**{**SIZES, "num_key_value_heads": 1}, tie_word_embeddings=True)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
}
CACHED: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            **{k: SIZES[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")},
            ffn_dim=48,
            word_embed_proj_dim=16,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=0,
        )
    ),
    "mistral, window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
    "gemma2, window in every second layer": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=8, sliding_window=4, attn_implementation="eager")
    ),
    "qwen2, window in some layers": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, sliding_window=4, use_sliding_window=True, max_window_layers=1)
    ),
    "llama, eager": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation="eager")),
}
RECOMPUTED: dict[str, Callable[[], PreTrainedModel]] = {
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)),
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=2)
    ),
}


def sharpened(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model whose attention and predictions are far from uniform, so that a wrong mask or position shows."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", FUSED)
def test_the_fused_forward_is_chosen_and_agrees(name: str) -> None:
    model = sharpened(FUSED[name])
    decoder = choose_decoder(model, 4, 64)
    assert isinstance(decoder, FusedDecoder)
    assert disagreement(decoder, model, 4, 64) <= 1e-5


@pytest.mark.parametrize("name", ["llama, biases", "qwen3"])
def test_weights_too_large_to_copy_are_used_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palaestra.models.fused_weights._JOINED_LIMIT", 0)
    model = sharpened(FUSED[name])
    assert disagreement(FusedDecoder(model, 4, 64), model, 4, 64) <= 1e-5


@pytest.mark.parametrize("name", CACHED)
def test_other_architectures_use_their_own_forward_with_our_cache(name: str) -> None:
    model = sharpened(CACHED[name])
    if name == "llama, eager":
        decoder: Decoder = CachedDecoder(model, 4, 64)
    else:
        decoder = choose_decoder(model, 4, 64)
    assert isinstance(decoder, CachedDecoder)
    assert disagreement(decoder, model, 4, 64) <= 1e-5


@pytest.mark.parametrize("name", RECOMPUTED)
def test_models_that_take_no_cache_of_ours_are_recomputed(name: str) -> None:
    model = sharpened(RECOMPUTED[name])
    decoder = choose_decoder(model, 4, 64)
    assert isinstance(decoder, RecomputeDecoder)
    assert disagreement(decoder, model, 4, 64) <= 1e-4


def test_dropout_is_off_while_decoding_and_the_mode_is_kept() -> None:
    model = sharpened(CACHED["gpt2"]).train()
    assert disagreement(CachedDecoder(model, 4, 64), model, 4, 64) <= 1e-5
    assert model.training


def test_an_adapter_on_a_projection_takes_the_models_own_forward() -> None:
    class Adapted(torch.nn.Linear):
        """Its weight is not all that it computes, as with LoRA."""

    model = sharpened(FUSED["llama"])
    assert fits(model, 64)
    old = model.model.layers[1].mlp.up_proj
    model.model.layers[1].mlp.up_proj = Adapted(old.in_features, old.out_features, bias=False)
    assert not fits(model, 64)
    assert isinstance(choose_decoder(model, 4, 64), CachedDecoder)


def test_a_decoder_that_is_wrong_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_table(self: FusedDecoder) -> torch.Tensor:
        return right_table(self).flip(0)

    right_table = FusedDecoder._rotary_table
    monkeypatch.setattr(FusedDecoder, "_rotary_table", wrong_table)
    assert isinstance(choose_decoder(sharpened(FUSED["llama"]), 4, 64), CachedDecoder)


@pytest.mark.parametrize("kind", [FusedDecoder, CachedDecoder])
def test_the_cache_grows_with_the_conversation(kind: Callable[..., Decoder]) -> None:
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "max_position_embeddings": 1024})).eval()
    decoder = kind(model, 2, 1024)
    text = np.random.default_rng(0).integers(0, VOCABULARY, 700)
    decoder.prefill(np.array([1]), np.array([0]), [text[:200]])
    for start, stop in ((200, 201), (201, 290), (290, 699)):
        decoder.prefill(np.array([1]), np.array([start]), [text[start:stop]])
    logits_BV = decoder.decode(np.array([0, text[699]]), np.array([0, 699]))
    with torch.no_grad():
        wanted_V = model(input_ids=torch.from_numpy(text)[None]).logits[0, -1]
    torch.testing.assert_close(logits_BV[1], wanted_V, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [FusedDecoder, CachedDecoder, RecomputeDecoder])
def test_copied_rows_go_on_like_the_original(kind: Callable[..., Decoder]) -> None:
    model = sharpened(FUSED["llama"])
    decoder = kind(model, 5, 64)
    text = np.arange(3, 12)
    decoder.prefill(np.array([3]), np.array([0]), [text[:-1]])
    decoder.copy_rows(np.array([3, 3]), np.array([0, 1]), len(text) - 1)
    logits = decoder.decode(np.full(4, text[-1]), np.full(4, len(text) - 1))
    torch.testing.assert_close(logits[0], logits[3])
    torch.testing.assert_close(logits[1], logits[3])


@pytest.mark.parametrize("make", [FUSED["llama"], CACHED["gpt2"]])
def test_changed_weights_are_seen_after_refresh(make: Callable[[], PreTrainedModel]) -> None:
    model = sharpened(make)
    decoder = choose_decoder(model, 4, 64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    decoder.refresh()
    assert disagreement(decoder, model, 4, 64) <= 1e-5


def test_half_precision_is_decoded_in_half_precision() -> None:
    model = sharpened(FUSED["llama"]).bfloat16()
    decoder = choose_decoder(model, 4, 64)
    assert isinstance(decoder, FusedDecoder)
    logits = decoder.prefill(np.array([0]), np.array([0]), [np.arange(5)])
    assert logits.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", [FUSED["qwen3"], CACHED["gpt2"], RECOMPUTED["bloom"]])
def test_decoders_agree_on_a_gpu(make: Callable[[], PreTrainedModel]) -> None:
    model = sharpened(make).cuda()
    assert disagreement(choose_decoder(model, 4, 64), model, 4, 64) <= 1e-4

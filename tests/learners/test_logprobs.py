from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_runs import VOCABULARY, episode, random_segment, tiny_model, with_logprobs

from palaestra.core.seeding import generator
from palaestra.core.trajectories import Segment
from palaestra.learners.batch import TokenBatch
from palaestra.learners.logprobs import action_logprobs, logit_head, segment_logprobs, sequence_kl
from palaestra.learners.precision import has_bfloat16_units, training_arithmetic

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ARCHITECTURES = {
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "gemma2 caps its logits": ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 0.7}),
    "cohere scales its logits": ("Cohere", {"logit_scale": 0.25}),
    "granite divides its logits": ("Granite", {"logits_scaling": 4.0}),
}


def architecture(name: str) -> Any:
    kind, extra = ARCHITECTURES[name]
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **extra})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def segments(n: int = 5) -> list[Segment]:
    return [random_segment(generator("logprobs-test", i)) for i in range(n)]


def slow_logprobs(model: Any, segment: Segment, temperature: float = 1.0) -> list[float]:
    """One token at a time, each from a forward pass of its own over exactly the tokens before it."""
    ids = torch.tensor(segment.token_ids_T.astype(np.int64))
    scored: list[float] = []
    for t in np.flatnonzero(segment.action_mask_T):
        with torch.no_grad():
            logits = model(input_ids=ids[None, :t]).logits[0, -1].double() / temperature
        scored.append(logits.log_softmax(0)[ids[t]].item())
    return scored


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_one_token_at_a_time(name: str) -> None:
    """Also shows that padding on the right changes nothing: rows differ in length, and no mask is passed."""
    model = architecture(name)
    rows = segments()
    batch = TokenBatch.from_segments(rows)
    expected = [logprob for row in rows for logprob in slow_logprobs(model, row)]
    assert logit_head(model) is not None, "the fast path must apply"
    got = action_logprobs(model, batch.input_ids_BT, batch.action_mask_BT)
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=2e-5)


def test_an_unknown_head_falls_back_to_the_whole_forward_pass() -> None:
    model = tiny_model()
    plain_forward = model.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        output = plain_forward(*args, **kwargs)
        output.logits = output.logits * torch.linspace(0.5, 1.5, VOCABULARY)
        return output

    model.forward = shifted
    assert logit_head(model) is None
    rows = segments()
    batch = TokenBatch.from_segments(rows)
    expected = [logprob for row in rows for logprob in slow_logprobs(model, row)]
    got = action_logprobs(model, batch.input_ids_BT, batch.action_mask_BT)
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=2e-5)


def test_chunks_change_neither_values_nor_gradients() -> None:
    batch = TokenBatch.from_segments(segments())
    results: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    for max_logits in (1 << 25, 3 * VOCABULARY):
        model = tiny_model()
        logprobs = action_logprobs(model, batch.input_ids_BT, batch.action_mask_BT, max_logits=max_logits)
        logprobs.square().sum().backward()
        results.append(logprobs.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


def test_logits_are_computed_for_action_tokens_only() -> None:
    model, seen = tiny_model(), []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: seen.append(tuple(inputs[0].shape)))
    logit_head(model)
    seen.clear()
    batch = TokenBatch.from_segments(segments())
    action_logprobs(model, batch.input_ids_BT, batch.action_mask_BT)
    assert seen == [(int(batch.action_mask_BT.sum()), 16)]


def test_observation_tokens_have_zero_gradient() -> None:
    """The gradient at the logits of every position that predicts a context token is exactly 0."""
    model = tiny_model()
    model.set_output_embeddings(torch.nn.Linear(16, VOCABULARY, bias=False))
    rows = segments(1)
    batch = TokenBatch.from_segments(rows)
    hidden: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        hidden.append(output.last_hidden_state)

    logit_head(model)
    model.model.register_forward_hook(keep)
    action_logprobs(model, batch.input_ids_BT, batch.action_mask_BT).sum().backward()
    gradient = hidden[-1].grad
    assert gradient is not None
    predicts_action = torch.zeros(len(rows[0]), dtype=torch.bool)
    predicts_action[:-1] = batch.action_mask_BT[0, 1:]
    assert (gradient[0][~predicts_action] == 0).all()
    assert (gradient[0][predicts_action].norm(dim=-1) > 0).all()


def test_temperature_divides_the_logits() -> None:
    model, rows = tiny_model(), segments(2)
    got = segment_logprobs(model, rows, temperature=0.5, autocast="none")
    for row, logprobs_T in zip(rows, got, strict=True):
        np.testing.assert_allclose(logprobs_T[row.action_mask_T], slow_logprobs(model, row, 0.5), atol=2e-5)
        assert (logprobs_T[~row.action_mask_T] == 0).all()


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_segments_come_back_in_order_whatever_the_budget(budget: int) -> None:
    model, rows = tiny_model(), segments(6)
    got = segment_logprobs(model, rows, batch_tokens=budget, autocast="none")
    for row, logprobs_T in zip(rows, got, strict=True):
        np.testing.assert_allclose(logprobs_T[row.action_mask_T], slow_logprobs(model, row), atol=2e-5)


def test_sequence_kl_sums_over_segments_and_skips_failed_episodes() -> None:
    reference = tiny_model()
    rows = segments(3)
    scored = segment_logprobs(reference, rows, autocast="none")
    shifted = [with_logprobs(row, logprobs_T + 0.25) for row, logprobs_T in zip(rows, scored, strict=True)]
    failed = episode((rows[0],), math.nan, failure={"kind": "sandbox_died"}, success=None)
    episodes = [episode((shifted[0], shifted[1]), 1.0), failed, episode((shifted[2],), 0.0)]
    tokens = [int(row.action_mask_T.sum()) for row in rows]
    expected = [0.25 * (tokens[0] + tokens[1]), 0.25 * tokens[2]]
    assert sequence_kl(reference, episodes, autocast="none") == pytest.approx(expected, abs=1e-4)


def test_bfloat16_is_near_and_leaves_the_model_as_it_was() -> None:
    model, batch = tiny_model(), TokenBatch.from_segments(segments())
    exact = action_logprobs(model, batch.input_ids_BT, batch.action_mask_BT)
    rounded = action_logprobs(model, batch.input_ids_BT, batch.action_mask_BT, autocast="bfloat16")
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.1
    assert model.config._attn_implementation == "sdpa"


def test_attention_is_eager_only_where_that_is_faster() -> None:
    model = tiny_model()
    used: list[str] = []

    def look(length: int, autocast: Any) -> None:
        with training_arithmetic(model, length**2, autocast):
            used.append(model.config._attn_implementation)

    look(100, "bfloat16")
    look(5000, "bfloat16")
    look(100, "none")
    with torch.no_grad():
        look(100, "bfloat16")
    enable = "activation_checkpointing_enable"  # transformers 5.20; before, "gradient"
    getattr(model, enable if hasattr(model, enable) else "gradient_checkpointing_enable")()
    look(100, "bfloat16")
    assert used == ["eager", "sdpa", "sdpa", "sdpa", "sdpa"]
    assert isinstance(has_bfloat16_units(torch.device("cpu")), bool)

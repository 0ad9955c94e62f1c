from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_bytes import LiveBytes
from tiny_runs import random_segment, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from palaestra.core.seeding import generator
from palaestra.learners import tiled_logprobs as module
from palaestra.learners.batch import TokenBatch
from palaestra.learners.logprobs import action_logprobs, logit_head
from palaestra.learners.tiled_logprobs import TILE_LOGITS, tiled_logprobs


def plain_logprobs(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor, t: float
) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden_NH, weight_VH, bias_V).float() / t
    return -torch.nn.functional.cross_entropy(logits, targets_N, reduction="none")


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 30),
    hidden=st.integers(1, 12),
    vocabulary=st.integers(2, 70),
    tile_tokens=st.integers(1, 12),
    tile_logits=st.integers(1, 200),
    sharpness=st.sampled_from([0.1, 1.0, 8.0]),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    with_bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients_are_those_of_the_whole_vocabulary(
    tokens: int,
    hidden: int,
    vocabulary: int,
    tile_tokens: int,
    tile_logits: int,
    sharpness: float,
    temperature: float,
    with_bias: bool,
    seed: int,
) -> None:
    rng = torch.Generator().manual_seed(seed)
    hidden_NH = sharpness * torch.randn(tokens, hidden, generator=rng)
    weight_VH = torch.randn(vocabulary, hidden, generator=rng)
    bias_V = torch.randn(vocabulary, generator=rng) if with_bias else None
    targets_N = torch.randint(vocabulary, (tokens,), generator=rng)
    upstream_N = torch.randn(tokens, generator=rng)
    results: list[tuple[torch.Tensor, torch.Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE_LOGITS", tile_logits)
        patch.setattr(module, "_TILE_TOKENS", tile_tokens)
        for score in (tiled_logprobs, plain_logprobs):
            leaf = hidden_NH.clone().requires_grad_()
            logprobs = score(leaf, weight_VH, bias_V, targets_N, temperature)
            (logprobs * upstream_N).sum().backward()
            assert leaf.grad is not None
            results.append((logprobs.detach(), leaf.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_likely_tokens_keep_their_gradient(dtype: torch.dtype) -> None:
    """At p = 1 - 1e-6 the gradient is a difference that float32's p would lose: it is not computed as one."""
    weight_VH = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    hidden_NH = (1.6 * weight_VH[:10]).clone().requires_grad_()
    targets_N = torch.arange(10)
    logprobs = tiled_logprobs(hidden_NH, weight_VH, None, targets_N, 1.0)
    logprobs.sum().backward()
    exact = hidden_NH.detach().double().requires_grad_()
    logits = exact @ weight_VH.double().T
    if dtype == torch.bfloat16:  # the logits that the model itself computes, whose slopes are the exact ones'
        rounded = (hidden_NH.detach() @ weight_VH.T).double()
        logits = logits + (rounded - logits).detach()
    wanted = logits.log_softmax(-1)[torch.arange(10), targets_N]
    wanted.sum().backward()
    assert exact.grad is not None
    assert hidden_NH.grad is not None
    assert wanted.max() > -1e-4, "some tokens are all but certain"
    sizes = exact.grad.norm(dim=1)
    errors = (hidden_NH.grad.double() - exact.grad).norm(dim=1) / sizes
    assert errors.max() < (1e-4 if dtype == torch.float32 else 0.02)
    torch.testing.assert_close(logprobs.double(), wanted, rtol=1e-3, atol=1e-7)


def test_impossible_and_certain_tokens_stay_finite() -> None:
    weight_VH = torch.tensor([[1.0], [-1.0], [0.0]])
    hidden_NH = torch.tensor([[200.0], [200.0], [-200.0]], requires_grad=True)
    logprobs = tiled_logprobs(hidden_NH, weight_VH, None, torch.tensor([0, 1, 1]), 1.0)
    logprobs.sum().backward()
    assert logprobs.tolist() == pytest.approx([0.0, -400.0, 0.0])
    assert hidden_NH.grad is not None
    assert hidden_NH.grad.flatten().tolist() == pytest.approx([0.0, -2.0, 0.0])


def frozen(vocabulary: int, **sizes: Any) -> Any:
    """A model whose head learns nothing, and whose first layer does."""
    model = tiny_model(vocab_size=vocabulary, **sizes).requires_grad_(False)
    model.model.layers[0].requires_grad_(True)
    return model


def batch(rows: int, length: int, vocabulary: int) -> TokenBatch:
    made = TokenBatch.from_segments([random_segment(generator("tiles", i), length) for i in range(rows)])
    scaled = made.input_ids_BT * (vocabulary // 24)
    return TokenBatch(input_ids_BT=scaled, action_mask_BT=made.action_mask_BT)


@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_a_model_with_a_frozen_head_is_scored_in_tiles_and_equals_one_that_is_not(autocast: Any) -> None:
    vocabulary, rows = 40_000, batch(6, 60, 40_000)
    results: list[tuple[torch.Tensor, torch.Tensor]] = []
    for trained_head in (False, True):
        model = frozen(vocabulary)
        model.get_output_embeddings().weight.requires_grad_(trained_head)
        head = logit_head(model)
        assert head is not None
        assert head.is_frozen_matrix is not trained_head
        logprobs = action_logprobs(
            model, rows.input_ids_BT, rows.action_mask_BT, temperature=0.8, autocast=autocast, max_logits=1 << 30
        )
        assert len(logprobs) * vocabulary > TILE_LOGITS
        name = type(logprobs.grad_fn).__name__
        assert ("TiledLogprobs" in name) is not trained_head
        logprobs.square().sum().backward()
        gradients = [p.grad.flatten() for p in model.model.layers[0].parameters() if p.grad is not None]
        results.append((logprobs.detach(), torch.cat(gradients)))
    error = (results[0][1] - results[1][1]).norm() / results[1][1].norm()
    if autocast == "none":
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
        assert error < 1e-4
    else:
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-3, atol=1e-3)
        assert error < 0.03


@pytest.mark.parametrize("rows", [8, 32])
def test_memory_does_not_grow_with_tokens_times_vocabulary(rows: int) -> None:
    """The whole of the logits would be 30 and 120 times a tile; forward and backward stay within a few tiles."""
    vocabulary = 151_936
    model = frozen(vocabulary, max_position_embeddings=256)
    tokens = batch(rows, 200, vocabulary)
    logit_head(model)
    with LiveBytes() as live:
        logprobs = action_logprobs(model, tokens.input_ids_BT, tokens.action_mask_BT)
        logprobs.sum().backward()
    tile = 4 * TILE_LOGITS
    whole = 4 * vocabulary * len(logprobs)
    assert whole > 25 * tile * rows / 8
    assert tile < live.peak < 3 * tile + 40_000 * rows
    assert logprobs.isfinite().all()


def test_scoring_without_a_gradient_computes_none() -> None:
    model = frozen(40_000)
    rows = batch(6, 60, 40_000)
    logit_head(model)
    counts: list[int] = []

    class CountHeadProducts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "mm" in func.__name__ and max(size for arg in args for size in arg.shape) > 1000:
                counts[-1] += 1
            return func(*args, **(kwargs or {}))

    for enabled in (False, True):
        counts.append(0)
        with torch.set_grad_enabled(enabled), CountHeadProducts():
            action_logprobs(model, rows.input_ids_BT, rows.action_mask_BT)
    assert counts[0] > 0
    assert counts[1] == 2 * counts[0]

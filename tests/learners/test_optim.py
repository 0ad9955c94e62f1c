from __future__ import annotations

import math

import pytest
import torch
from tiny_runs import parameters_of, tiny_model

from palaestra.learners.muon import BatchedMuon
from palaestra.learners.optim import Optimisers, constant_then_linear, warmup_cosine


def with_gradients(model: torch.nn.Module, scale: float = 1.0) -> None:
    rng = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=rng)


def test_muon_takes_the_layers_matrices_and_adamw_the_rest() -> None:
    model = tiny_model()
    optimisers = Optimisers(model, learning_rate=1e-3, muon_learning_rate=0.02)
    adamw, muon = optimisers._optimisers
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert all("proj" in name for name in by_muon)
    assert by_adamw == set(names.values()) - by_muon
    assert any("embed" in name for name in by_adamw)


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported() -> None:
    model = tiny_model()
    with_gradients(model, scale=5.0)
    before = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
    optimisers = Optimisers(model, learning_rate=1e-3, max_grad_norm=0.5)
    assert optimisers.step(1.0) == pytest.approx(before, rel=1e-5)
    after = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
    assert after == pytest.approx(0.5, rel=1e-4)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model = tiny_model()
    before = parameters_of(model)
    with_gradients(model)
    next(model.parameters()).grad[0] = math.nan  # type: ignore[index]
    norm = Optimisers(model, learning_rate=1e-3, muon_learning_rate=0.02).step(1.0)
    assert not math.isfinite(norm)
    torch.testing.assert_close(parameters_of(model), before, rtol=0, atol=0)


def test_the_schedule_scales_every_learning_rate() -> None:
    model = tiny_model()
    optimisers = Optimisers(model, learning_rate=1e-3, muon_learning_rate=0.02)
    with_gradients(model)
    optimisers.step(0.25)
    assert [o.param_groups[0]["lr"] for o in optimisers._optimisers] == [0.25e-3, 0.005]


@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_a_restored_optimiser_takes_the_same_step(muon: float) -> None:
    models = [tiny_model(), tiny_model()]
    first, second = (Optimisers(m, learning_rate=1e-3, muon_learning_rate=muon, weight_decay=0.01) for m in models)
    with_gradients(models[0])
    first.step(1.0)
    models[1].load_state_dict(models[0].state_dict())
    second.load_state_dict(first.state_dict())
    for model in models:
        with_gradients(model, 2.0)
    first.step(0.5)
    second.step(0.5)
    torch.testing.assert_close(parameters_of(models[1]), parameters_of(models[0]), rtol=0, atol=0)


def test_batched_muon_makes_the_same_steps_as_torch() -> None:
    shapes = [(8, 8), (2, 8), (24, 8), (8, 24), (8, 8), (24, 8), (5, 3)]
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=rng) for shape in shapes]
    sides = [[torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2)]
    optimisers = [
        kind(side, lr=0.02, weight_decay=0.01)
        for kind, side in zip((torch.optim.Muon, BatchedMuon), sides, strict=True)
    ]
    for step in range(5):
        gradients = [torch.randn(shape, generator=rng) for shape in shapes]
        for side, optimiser in zip(sides, optimisers, strict=True):
            for parameter, gradient in zip(side, gradients, strict=True):
                parameter.grad = gradient.clone()
            side[0].grad = None if step == 2 else side[0].grad
            optimiser.step()
    for theirs, ours, before in zip(*sides, start, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)  # bfloat16 products may round differently
        assert (ours - before).abs().max() > 0.02
    restored = BatchedMuon(sides[0], lr=0.02, weight_decay=0.01)
    restored.load_state_dict(optimisers[0].state_dict())


def test_cosine_by_hand() -> None:
    shares = [warmup_cosine(s, 100, warmup_steps=10, min_share=0.1) for s in (0, 9, 50, 100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[2] == pytest.approx(0.55)
    assert shares[3] == pytest.approx(0.1)
    assert max(warmup_cosine(s, 100, warmup_steps=0, min_share=0.1) for s in range(100)) == 1.0


def test_constant_then_linear_by_hand() -> None:
    shares = [constant_then_linear(s, 100, warmup_steps=4, decay_from=0.5, min_share=0.1) for s in (0, 3, 49, 75, 99)]
    assert shares == pytest.approx([0.25, 1.0, 1.0, 0.5, 0.1])
    assert constant_then_linear(99, 100, warmup_steps=0, decay_from=1.0, min_share=0.1) == 1.0

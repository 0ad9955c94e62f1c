from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from palaestra.learners.losses import grpo_loss

B, T = 4, 7


def example(seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(B, T, generator=rng, dtype=torch.float64)

    logprobs = -normal().abs() - 0.1
    mask = torch.rand(B, T, generator=rng) < 0.6
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + 0.4 * normal(),
        "advantages": normal()[:, :1].expand(B, T),
        "mask": mask,
        "reference_logprobs": logprobs + 0.5 * normal(),
    }


def slow_loss(x: dict[str, Tensor], beta: float, denominator: float, low: float = 0.2, high: float = 0.28) -> float:
    """Token by token, from DeepSeekMath eq. 3 (clipping), DAPO eq. 10 (asymmetric), k3 times the ratio."""
    total = 0.0
    for b in range(B):
        for t in range(T):
            if not x["mask"][b, t]:
                continue
            lp, old, ref, a = (
                x[k][b, t].item() for k in ("logprobs", "old_logprobs", "reference_logprobs", "advantages")
            )
            ratio = math.exp(lp - old)
            clipped = min(max(ratio, 1 - low), 1 + high)
            k3 = math.exp(ref - lp) - 1 - (ref - lp)
            total += -min(ratio * a, clipped * a) + beta * ratio * k3
    return total / denominator


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loop(beta: float, seed: int) -> None:
    x = example(seed)
    got = grpo_loss(**x, denominator=11.0, kl_beta=beta)
    assert got.loss.item() == pytest.approx(slow_loss(x, beta, 11.0), rel=1e-12)


def test_number_by_hand() -> None:
    """Ratios 1.5 (A = +1: clipped to 1.28), 0.5 (A = -1: clipped to 0.8), 1.1 (A = 2)."""
    old = torch.zeros(3)
    logprobs = torch.tensor([1.5, 0.5, 1.1]).log()
    advantages, mask = torch.tensor([1.0, -1.0, 2.0]), torch.ones(3, dtype=torch.bool)
    result = grpo_loss(logprobs, old, advantages, mask, denominator=2.0)
    assert result.loss.item() == pytest.approx((-1.28 + 0.8 - 2.2) / 2)
    assert {name: int(value) for name, value in result.sums.items()} == {"tokens": 3, "clip_low": 1, "clip_high": 1}


def test_clipped_tokens_and_masked_tokens_have_exactly_zero_gradient() -> None:
    logprobs = torch.tensor([1.5, 0.5, 1.1, 0.3]).log().requires_grad_()
    mask = torch.tensor([True, True, True, False])
    grpo_loss(logprobs, torch.zeros(4), torch.tensor([1.0, -1.0, 2.0, 5.0]), mask, denominator=1.0).loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.0, 0.0, -2.2, 0.0])


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_what_stands_at_masked_tokens_is_never_read(garbage: float) -> None:
    x = example()
    clean = x["logprobs"].clone().requires_grad_()
    expected = grpo_loss(**{**x, "logprobs": clean}, denominator=5.0, kl_beta=0.1).loss
    expected.backward()
    spoilt = {k: v if k == "mask" else v.masked_fill(~x["mask"], garbage) for k, v in x.items()}
    logprobs = spoilt["logprobs"].clone().requires_grad_()
    loss = grpo_loss(**{**spoilt, "logprobs": logprobs}, denominator=5.0, kl_beta=0.1).loss
    loss.backward()
    assert clean.grad is not None
    assert logprobs.grad is not None
    assert loss.item() == expected.item()
    torch.testing.assert_close(logprobs.grad, clean.grad, rtol=0, atol=0)
    assert (logprobs.grad[~x["mask"]] == 0).all()


def test_padding_splitting_and_order_change_nothing() -> None:
    x = example()
    whole = grpo_loss(**x, denominator=9.0, kl_beta=0.1).loss
    halves = [
        grpo_loss(**{k: v[rows] for k, v in x.items()}, denominator=9.0, kl_beta=0.1).loss for rows in ([0, 1], [2, 3])
    ]
    torch.testing.assert_close(sum(halves), whole)
    shuffled = grpo_loss(**{k: v[[2, 0, 3, 1]] for k, v in x.items()}, denominator=9.0, kl_beta=0.1).loss
    torch.testing.assert_close(shuffled, whole)
    padded = {k: torch.nn.functional.pad(v, (1, 3)) for k, v in x.items()}
    torch.testing.assert_close(grpo_loss(**padded, denominator=9.0, kl_beta=0.1).loss, whole)


def test_importance_weights_scale_tokens() -> None:
    x = example()
    doubled = grpo_loss(**x, denominator=3.0, kl_beta=0.1, weights=torch.full((B, T), 2.0)).loss
    torch.testing.assert_close(doubled, 2 * grpo_loss(**x, denominator=3.0, kl_beta=0.1).loss)


def test_kl_needs_a_reference() -> None:
    x = example()
    del x["reference_logprobs"]
    with pytest.raises(ValueError, match="reference_logprobs are needed"):
        grpo_loss(**x, denominator=1.0, kl_beta=0.1)

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palaestra.learners.losses import LossResult, LossSettings, PolicyLoss, PolicyTokens, grpo_loss

B, T = 4, 7
LOSSES: tuple[PolicyLoss, ...] = ("clipped", "gspo", "cispo")


def example(seed: int = 0, per_token: bool = False) -> dict[str, Tensor]:
    """Four answers, the last of them without a single token; advantages of answers, or of tokens."""
    rng = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(B, T, generator=rng, dtype=torch.float64)

    logprobs = -normal().abs() - 0.1
    mask = torch.rand(B, T, generator=rng) < 0.6
    mask[-1] = False
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + 0.4 * normal(),
        "advantages": normal() if per_token else normal()[:, :1].expand(B, T),
        "mask": mask,
        "reference_logprobs": logprobs + 0.5 * normal(),
        "weights": torch.rand(B, T, generator=rng, dtype=torch.float64) + 0.5,
        "sequences": torch.arange(B)[:, None].expand(B, T),
    }


def loss_of(x: dict[str, Tensor], denominator: float = 9.0, **changes: Any) -> LossResult:
    return grpo_loss(PolicyTokens(**x), LossSettings(**{"kl_beta": 0.1, **changes}), denominator=denominator)


def gradient_of(x: dict[str, Tensor], loss: Callable[[dict[str, Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
    logprobs = x["logprobs"].clone().requires_grad_()
    value = loss({**x, "logprobs": logprobs})
    value.backward()
    assert logprobs.grad is not None
    return value.detach(), logprobs.grad


def slow_loss(x: dict[str, Tensor], setting: LossSettings, denominator: float) -> Tensor:
    """Token by token: PPO eq. 7 and DAPO eq. 10 (clipped), GSPO-token eq. 13 and 14, CISPO eq. 4 and 5; k3 x ratio."""
    total = torch.zeros((), dtype=torch.float64)
    for b in range(B):
        tokens = [t for t in range(T) if x["mask"][b, t]]
        for t in tokens:
            lp, old, ref, a = (x[k][b, t] for k in ("logprobs", "old_logprobs", "reference_logprobs", "advantages"))
            own = ratio = (lp - old).exp()
            if setting.loss == "gspo":
                mean = sum(float((x["logprobs"] - x["old_logprobs"])[b, u].detach()) for u in tokens) / len(tokens)
                ratio = math.exp(mean) * lp.exp() / lp.exp().detach()
            low, high = 1 - setting.clip_low, 1 + setting.clip_high
            if setting.loss == "cispo":
                term = -min(max(float(ratio.detach()), low), high) * a * lp
            else:
                term = -torch.minimum(ratio * a, ratio.clamp(low, high) * a)
            d = (ref - lp).detach()
            k3 = float(d.exp() - 1 - d)
            # the gradient of r k3 is -r d grad(log pi), see `kl.k3_times_ratio`
            kl = own.detach() * (k3 - d * (lp - lp.detach()))
            total = total + x["weights"][b, t] * (term + setting.kl_beta * kl)
    return total / denominator


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradient_equal_the_loop(loss: PolicyLoss, beta: float, seed: int, per_token: bool) -> None:
    x = example(seed, per_token)
    bounds = {"clip_low": 0.05, "clip_high": 0.08} if loss == "gspo" else {}
    setting = LossSettings(loss=loss, kl_beta=beta, **bounds)
    got = gradient_of(x, lambda y: grpo_loss(PolicyTokens(**y), setting, denominator=11.0).loss)
    expected = gradient_of(x, lambda y: slow_loss(y, setting, 11.0))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)
    assert (got[1][~x["mask"]] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_gspo_is_the_papers_mean_over_answers(seed: int) -> None:
    """GSPO eq. 5 and 7 with the gradient through s_i itself: the mean over answers of min(s A, clip(s) A)."""
    x = example(seed)
    lengths = x["mask"].sum(dim=1, keepdim=True).clamp(min=1)

    def paper(y: dict[str, Tensor]) -> Tensor:
        terms = []
        for b in range(B - 1):  # the last answer is empty
            chosen = x["mask"][b]
            s = (y["logprobs"][b] - y["old_logprobs"][b])[chosen].mean().exp()
            terms.append(-torch.minimum(s * y["advantages"][b, 0], s.clamp(0.95, 1.08) * y["advantages"][b, 0]))
        return torch.stack(terms).sum() / (B - 1)

    weights = (1 / lengths.double()).expand(B, T)
    setting = {"loss": "gspo", "clip_low": 0.05, "clip_high": 0.08, "kl_beta": 0.0}
    got = gradient_of(x, lambda y: loss_of({**y, "weights": weights}, B - 1, **setting).loss)
    torch.testing.assert_close(got, gradient_of(x, paper), rtol=1e-11, atol=1e-13)


def test_number_by_hand() -> None:
    """Ratios 1.5 (A = +1: clipped to 1.28), 0.5 (A = -1: clipped to 0.8), 1.1 (A = 2)."""
    x = {
        "logprobs": torch.tensor([1.5, 0.5, 1.1]).log(),
        "old_logprobs": torch.zeros(3),
        "advantages": torch.tensor([1.0, -1.0, 2.0]),
        "mask": torch.ones(3, dtype=torch.bool),
        "sequences": torch.tensor([0, 0, 1]),
    }
    counts = {"clipped": (1, 1), "gspo": (0, 0), "cispo": (1, 1)}
    root = math.sqrt(0.75)  # the geometric mean of the first answer's ratios
    values = {
        "clipped": (-1.28 + 0.8 - 2.2) / 2,
        "gspo": (-root + root - 2.2) / 2,
        "cispo": (-1.28 * math.log(1.5) + 0.8 * math.log(0.5) - 2.2 * math.log(1.1)) / 2,
    }
    for loss in LOSSES:
        result = loss_of(x, 2.0, loss=loss, kl_beta=0.0)
        assert result.loss.item() == pytest.approx(values[loss])
        low, high = counts[loss]
        assert {k: int(v) for k, v in result.sums.items()} == {"tokens": 3, "clip_low": low, "clip_high": high}


def test_only_cispo_keeps_the_gradient_of_tokens_beyond_the_bounds() -> None:
    """Ratios 1.5 (A = +1), 0.5 (A = -1), 1.1 (A = 2), and a masked token."""
    x = {
        "logprobs": torch.tensor([1.5, 0.5, 1.1, 0.3]).log(),
        "old_logprobs": torch.zeros(4),
        "advantages": torch.tensor([1.0, -1.0, 2.0, 5.0]),
        "mask": torch.tensor([True, True, True, False]),
    }
    clipped = gradient_of(x, lambda y: loss_of(y, 1.0, kl_beta=0.0).loss)[1]
    assert clipped.tolist() == pytest.approx([0.0, 0.0, -2.2, 0.0])
    kept = gradient_of(x, lambda y: loss_of(y, 1.0, loss="cispo", kl_beta=0.0).loss)[1]
    assert kept.tolist() == pytest.approx([-1.28, 0.8, -2.2, 0.0])
    unbounded_below = gradient_of(x, lambda y: loss_of(y, 1.0, loss="cispo", clip_low=1.0, kl_beta=0.0).loss)[1]
    assert unbounded_below.tolist() == pytest.approx([-1.28, 0.5, -2.2, 0.0])


@pytest.mark.parametrize("loss", LOSSES)
def test_on_policy_every_loss_is_the_policy_gradient(loss: PolicyLoss) -> None:
    x = example(per_token=True)
    x["old_logprobs"] = x["logprobs"]
    _, gradient = gradient_of(x, lambda y: loss_of(y, 1.0, loss=loss, kl_beta=0.0).loss)
    torch.testing.assert_close(gradient, torch.where(x["mask"], -x["advantages"] * x["weights"], 0.0))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_what_stands_at_masked_tokens_is_never_read(garbage: float, loss: PolicyLoss) -> None:
    x = example()
    spoilt = {k: v if k == "mask" else v.masked_fill(~x["mask"], garbage) for k, v in x.items() if k != "sequences"}
    spoilt["sequences"] = x["sequences"].masked_fill(~x["mask"], -7)
    expected, clean = gradient_of(x, lambda y: loss_of(y, loss=loss).loss)
    value, gradient = gradient_of(spoilt, lambda y: loss_of(y, loss=loss).loss)
    assert value.item() == expected.item()
    torch.testing.assert_close(gradient, clean, rtol=0, atol=0)
    assert (gradient[~x["mask"]] == 0).all()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(LOSSES),
    st.integers(0, 1000),
    st.permutations(range(B)),
    st.integers(1, B - 1),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_padding_splitting_order_and_flattening_change_nothing(
    loss: PolicyLoss, seed: int, order: list[int], cut: int, padding: tuple[int, int]
) -> None:
    x = example(seed, per_token=True)
    whole = loss_of(x, loss=loss)
    parts = [loss_of({k: v[rows] for k, v in x.items()}, loss=loss) for rows in (order[:cut], order[cut:])]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss)
    for name, count in whole.sums.items():
        assert int(parts[0].sums[name] + parts[1].sums[name]) == int(count)
    padded = {k: torch.nn.functional.pad(v, padding) for k, v in x.items()}
    torch.testing.assert_close(loss_of(padded, loss=loss).loss, whole.loss)
    flat = {k: v[x["mask"]] for k, v in x.items()}
    torch.testing.assert_close(loss_of(flat, loss=loss).loss, whole.loss)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_scale_tokens(loss: PolicyLoss) -> None:
    x = example()
    doubled = loss_of({**x, "weights": torch.full((B, T), 2.0)}, 3.0, loss=loss).loss
    del x["weights"]
    torch.testing.assert_close(doubled, 2 * loss_of(x, 3.0, loss=loss).loss)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_token_at_all_is_zero(loss: PolicyLoss) -> None:
    x = {k: v[:0] for k, v in example().items()}
    assert loss_of(x, loss=loss).loss.item() == 0.0


def test_what_is_needed_is_asked_for() -> None:
    tokens = PolicyTokens(**example())
    with pytest.raises(ValueError, match="reference_logprobs are needed"):
        grpo_loss(dataclasses.replace(tokens, reference_logprobs=None), LossSettings(kl_beta=0.1), denominator=1.0)
    with pytest.raises(ValueError, match="sequences are needed"):
        grpo_loss(dataclasses.replace(tokens, sequences=None), LossSettings(loss="gspo"), denominator=1.0)

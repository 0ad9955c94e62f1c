from __future__ import annotations

import math

import pytest
import torch

from palaestra.learners.kl import KLController, k1, k2, k3, k3_times_ratio


def categorical(seed: int, size: int = 6) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_kl_gradient(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    theta = logits.clone().requires_grad_()
    logprobs = theta.log_softmax(0)
    (logprobs.exp() * (logprobs - reference)).sum().backward()
    assert theta.grad is not None
    return theta.grad


def expected_gradient(estimator: object, logits: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The gradient that a loss gets on average over tokens drawn from `old`: every token is enumerated."""
    theta = logits.clone().requires_grad_()
    (old.exp() * estimator(theta.log_softmax(0))).sum().backward()  # type: ignore[operator]
    assert theta.grad is not None
    return theta.grad


@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_k3_times_ratio_has_the_gradient_of_the_kl(drift: float) -> None:
    """On-policy and off-policy; k3 alone has not."""
    logits, reference = categorical(0), categorical(1).log_softmax(0)
    old = (logits + drift * categorical(2)).log_softmax(0)
    exact = exact_kl_gradient(logits, reference)
    ours = expected_gradient(lambda lp: k3_times_ratio(lp, reference, old), logits, old)
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-12)
    k3_alone = expected_gradient(lambda lp: k3(lp, reference), logits, old)
    assert (k3_alone - exact).norm() > 0.2 * exact.norm()


def test_values_are_unbiased_on_policy() -> None:
    logprobs, reference = categorical(0).log_softmax(0), categorical(1).log_softmax(0)
    kl = (logprobs.exp() * (logprobs - reference)).sum()
    for estimate in (k1(logprobs, reference), k3(logprobs, reference), k3_times_ratio(logprobs, reference, logprobs)):
        torch.testing.assert_close((logprobs.exp() * estimate).sum(), kl)


def test_numbers_by_hand() -> None:
    logprobs, reference, old = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)]), torch.tensor([0.0])
    assert k1(logprobs, reference).item() == pytest.approx(math.log(2))
    assert k2(logprobs, reference).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(logprobs, reference).item() == pytest.approx(0.5 - 1 + math.log(2))
    # ratio 0.5, and d = log pi_ref - log pi = -log 2
    assert k3_times_ratio(logprobs, reference, old).item() == pytest.approx(0.5 * (0.5 - 1 + math.log(2)))


@pytest.mark.parametrize("gap", [-800.0, -50.0, 50.0, 800.0])
def test_extreme_log_ratios_stay_finite_and_push_the_right_way(gap: float) -> None:
    """A token that the policy has made much rarer than the reference did must be pushed up, however rare."""
    logprobs = torch.tensor([gap], requires_grad=True)
    term = k3_times_ratio(logprobs, torch.tensor([0.0]), torch.tensor([gap]))
    term.sum().backward()
    assert torch.isfinite(term).all()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(gap)
    assert torch.isfinite(k3(torch.tensor([gap]), torch.tensor([0.0]))).all()


def test_controller_by_hand() -> None:
    controller = KLController(0.1, target=3.0)
    assert controller.update(3.0) == pytest.approx(0.1)
    assert controller.update(6.0) == pytest.approx(0.1 * math.exp(0.3))  # 0.3 * (2 - 1), at the limit
    assert controller.update(60.0) == pytest.approx(0.1 * math.exp(0.6))  # limited to 0.3 a step
    assert controller.update(1.5) == pytest.approx(0.1 * math.exp(0.6 - 0.15))


def test_controller_smooths_and_keeps_its_bounds() -> None:
    controller = KLController(0.1, target=1.0, gain=1.0, limit=5.0, smoothing=0.5, minimum=0.05, maximum=0.2)
    assert controller.update(1.0) == pytest.approx(0.1)
    assert controller.update(1.2) == pytest.approx(0.1 * math.exp(0.1))  # average 1.1
    assert controller.update(50.0) == 0.2
    for _ in range(20):
        controller.update(0.0)
    assert controller.beta == 0.05


def test_controller_without_target_is_fixed_and_nan_is_ignored() -> None:
    fixed = KLController(0.1)
    assert fixed.update(100.0) == 0.1
    steered = KLController(0.1, target=3.0)
    assert steered.update(math.nan) == 0.1


def test_controller_resumes() -> None:
    first, second = (KLController(0.1, target=3.0, smoothing=0.7) for _ in range(2))
    first.update(5.0)
    second.load_state_dict(first.state_dict())
    assert second.update(2.0) == first.update(2.0)

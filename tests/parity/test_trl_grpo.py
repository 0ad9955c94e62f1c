"""Our loss against TRL's: its real `GRPOTrainer._compute_loss`, on a stub that has no model."""

from __future__ import annotations

import types
import warnings
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from palaestra.learners.advantages import STD_EPSILON, group_advantages
from palaestra.learners.losses import LossResult, LossSettings, PolicyTokens, grpo_loss

B, T, MAX_LENGTH = 8, 12, 16


@pytest.fixture(scope="module")
def trainer_class() -> Any:
    """TRL's trainer class; what importing it warns about is not ours to fail on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from trl import GRPOTrainer
        except Exception as error:  # broken or absent: any reason will do
            pytest.skip(f"trl cannot be imported: {error}")
    return GRPOTrainer


def example(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    logprobs = -3 * torch.rand(B, T, generator=rng, dtype=torch.float64)
    mask = torch.rand(B, T, generator=rng) > 0.25
    mask[:, 0] = True
    return {
        "logprobs": logprobs,
        "old": logprobs + 0.3 * normal(B, T),
        "reference": logprobs + 0.4 * normal(B, T),
        "advantages": normal(B),
        "mask": mask,
        "weights": torch.rand(B, 1, generator=rng, dtype=torch.float64) + 0.5,
    }


def trl_loss(
    trainer_class: Any, x: dict[str, Tensor], *, kind: str, beta: float, weighted: bool = False, **changes: Any
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """TRL's loss, its gradient with respect to the log-probabilities, and the clip fractions it logs."""
    logprobs = x["logprobs"].clone().requires_grad_()

    def same(value: Any, *_: Any, **__: Any) -> Any:
        return value

    args = types.SimpleNamespace(delta=None, use_bias_correction_kl=True, steps_per_generation=1)
    trainer = types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros(B, T), None),
        accelerator=types.SimpleNamespace(
            num_processes=1, gather=same, reduce=same, gather_for_metrics=same, sync_gradients=True
        ),
        args=args,
        aux_loss_enabled=False,
        beta=beta,
        current_gradient_accumulation_steps=1,
        epsilon_high=0.28,
        epsilon_low=0.2,
        importance_sampling_level="token",
        loss_type=kind,
        max_completion_length=MAX_LENGTH,
        model=types.SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=weighted,
        vllm_importance_sampling_correction=weighted,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    vars(trainer).update(changes)
    inputs = {
        "prompt_ids": torch.zeros(B, 2, dtype=torch.long),
        "prompt_mask": torch.ones(B, 2, dtype=torch.long),
        "completion_ids": torch.zeros(B, T, dtype=torch.long),
        "completion_mask": torch.ones(B, T, dtype=torch.long),
        "tool_mask": x["mask"].long(),
        "advantages": x["advantages"],
        "old_per_token_logps": x["old"],
        "ref_per_token_logps": x["reference"],
        "num_items_in_batch": x["mask"].sum(),
        "importance_sampling_ratio": x["weights"],
        "sampling_per_token_logps": x["old"],
    }
    loss = trainer_class._compute_loss(trainer, None, inputs)
    loss.backward()
    assert logprobs.grad is not None
    logged = {name: float(values[-1]) for name, values in trainer._metrics["train"].items()}
    return loss.detach(), logprobs.grad, logged


def our_loss(
    x: dict[str, Tensor], *, denominator: float, beta: float, weights: Tensor | None = None, **changes: Any
) -> tuple[LossResult, Tensor]:
    logprobs = x["logprobs"].clone().requires_grad_()
    tokens = PolicyTokens(
        logprobs=logprobs,
        old_logprobs=x["old"],
        advantages=x["advantages"][:, None].expand(B, T),
        mask=x["mask"],
        reference_logprobs=x["reference"],
        weights=weights,
        sequences=torch.arange(B)[:, None].expand(B, T),
    )
    result = grpo_loss(tokens, LossSettings(kl_beta=beta, **changes), denominator=denominator)
    result.loss.backward()
    assert logprobs.grad is not None
    return result, logprobs.grad


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("kind", ["dapo", "bnpo", "dr_grpo"])
def test_loss_and_gradient(trainer_class: Any, kind: str, beta: float, seed: int) -> None:
    """`dapo` and `bnpo` are a mean over tokens, `dr_grpo` divides by a constant; the KL term is k3 x ratio."""
    x = example(seed)
    denominator = float(B * MAX_LENGTH) if kind == "dr_grpo" else float(x["mask"].sum())
    theirs, their_gradient, _ = trl_loss(trainer_class, x, kind=kind, beta=beta)
    ours, our_gradient = our_loss(x, denominator=denominator, beta=beta)
    torch.testing.assert_close(ours.loss.detach(), theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-9, atol=1e-14)
    assert (our_gradient[~x["mask"]] == 0).all()


def answer_means(x: dict[str, Tensor]) -> Tensor:
    """Weights that turn a sum over tokens into a sum over answers of their means."""
    return (1 / x["mask"].sum(dim=1, keepdim=True).double()).expand(B, T)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_mean_over_answers(trainer_class: Any, beta: float, seed: int) -> None:
    """`grpo`, as published: a mean over each answer, then over answers."""
    x = example(seed)
    theirs, their_gradient, _ = trl_loss(trainer_class, x, kind="grpo", beta=beta)
    ours, our_gradient = our_loss(x, denominator=float(B), beta=beta, weights=answer_means(x))
    torch.testing.assert_close(ours.loss.detach(), theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_gspo(trainer_class: Any, seed: int) -> None:
    """Without a KL term: TRL multiplies its own by the answer's ratio, which is not the KL's gradient; ours is k3 x the
    token's ratio for every loss."""
    x, bounds = example(seed), {"clip_low": 0.05, "clip_high": 0.06}
    their_bounds = {"epsilon_low": 0.05, "epsilon_high": 0.06, "importance_sampling_level": "sequence"}
    theirs, their_gradient, logged = trl_loss(trainer_class, x, kind="grpo", beta=0.0, **their_bounds)
    ours, our_gradient = our_loss(x, denominator=float(B), beta=0.0, weights=answer_means(x), loss="gspo", **bounds)
    torch.testing.assert_close(ours.loss.detach(), theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-9, atol=1e-14)
    clipped = logged["clip_ratio/low_mean"] + logged["clip_ratio/high_mean"]
    assert (clipped > 0) == bool(ours.sums["clip_low"] + ours.sums["clip_high"])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_cispo(trainer_class: Any, beta: float, seed: int) -> None:
    """TRL's `epsilon_high` is the bound itself, and there is no lower one."""
    x = example(seed)
    theirs, their_gradient, _ = trl_loss(trainer_class, x, kind="cispo", beta=beta, epsilon_high=1.28)
    ours, our_gradient = our_loss(
        x, denominator=float(x["mask"].sum()), beta=beta, loss="cispo", clip_low=1.0, clip_high=0.28
    )
    torch.testing.assert_close(ours.loss.detach(), theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-9, atol=1e-14)


def test_rloo(trainer_class: Any) -> None:
    """TRL's `RLOOTrainer` takes the ratio of the whole answer; on-policy its gradient is ours, which is REINFORCE's."""
    from trl import RLOOTrainer

    x = example(0)
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.3, 2.0, 0.1, 0.0]], dtype=torch.float64)
    baselines = (rewards.sum(dim=1, keepdim=True) - rewards) / 3  # as in its _generate_and_score_completions
    advantages = group_advantages(rewards.numpy(), normalise_std=False, leave_one_out=True)
    torch.testing.assert_close(torch.from_numpy(advantages), rewards - baselines)
    x["advantages"] = torch.from_numpy(advantages).flatten()
    x["old"] = x["logprobs"]
    _, our_gradient = our_loss(x, denominator=float(B), beta=0.0)
    logprobs = x["logprobs"].clone().requires_grad_()

    def same(value: Any, *_: Any, **__: Any) -> Any:
        return value

    trainer = types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros(B, T), None),
        accelerator=types.SimpleNamespace(gather=same, reduce=same, gather_for_metrics=same),
        aux_loss_enabled=False,
        epsilon_high=0.28,
        epsilon_low=0.2,
        model=types.SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(B, 2, dtype=torch.long),
        "prompt_mask": torch.ones(B, 2, dtype=torch.long),
        "completion_ids": torch.zeros(B, T, dtype=torch.long),
        "completion_mask": x["mask"].long(),
        "advantages": x["advantages"],
        "old_logps": (x["old"] * x["mask"]).sum(dim=1),
    }
    RLOOTrainer._compute_loss(trainer, None, inputs).backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(our_gradient, logprobs.grad, rtol=1e-9, atol=1e-14)


def test_importance_weights_on_the_policy_term(trainer_class: Any) -> None:
    """Without a KL term. With one they differ on purpose: TRL leaves its KL unweighted, although its tokens were
    sampled by the same rollout engine."""
    x = example(0)
    theirs, their_gradient, _ = trl_loss(trainer_class, x, kind="dapo", beta=0.0, weighted=True)
    ours, our_gradient = our_loss(x, denominator=float(x["mask"].sum()), beta=0.0, weights=x["weights"].expand(B, T))
    torch.testing.assert_close(ours.loss.detach(), theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-9, atol=1e-14)


def test_clip_fractions(trainer_class: Any) -> None:
    x = example(1)
    _, _, logged = trl_loss(trainer_class, x, kind="dapo", beta=0.0)
    ours, _ = our_loss(x, denominator=1.0, beta=0.0)
    for name in ("low", "high"):
        share = float(ours.sums[f"clip_{name}"] / ours.sums["tokens"])
        assert 0 < share == pytest.approx(logged[f"clip_ratio/{name}_mean"])


def test_advantages(trainer_class: Any) -> None:
    """TRL divides by the sample's deviation (G - 1), we by the population's (G); nothing else differs."""
    from trl.trainer.grpo_trainer import nanstd

    group = 4
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.3, 2.0, 0.1, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    std = nanstd(rewards, dim=1)[:, None]
    theirs = (rewards - rewards.mean(dim=1, keepdim=True)) / (std * ((group - 1) / group) ** 0.5 + STD_EPSILON)
    torch.testing.assert_close(torch.from_numpy(group_advantages(rewards.numpy())), theirs)

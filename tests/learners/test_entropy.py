from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from test_grpo import gradient_of, groups_for, step_of
from test_losses import example, loss_of
from tiny_runs import CONFIG, VOCABULARY, adapted_model, episode, random_segment, tiny_model

from palaestra.core.seeding import generator
from palaestra.core.trajectories import Group, SegmentBuilder
from palaestra.learners.batch import TokenBatch
from palaestra.learners.entropy import EntropyController, entropies
from palaestra.learners.grpo import GRPOLearner
from palaestra.learners.logprobs import action_logprobs, action_logprobs_and_entropies


def batch() -> TokenBatch:
    return TokenBatch.from_segments([random_segment(generator("entropy-test", i)) for i in range(4)])


def slow_entropies(model: Any, batch: TokenBatch, temperature: float) -> torch.Tensor:
    """Token by token, by definition."""
    values = []
    for row, mask in zip(batch.input_ids_BT, batch.action_mask_BT, strict=True):
        for t in torch.nonzero(mask).flatten().tolist():
            logits = model(input_ids=row[None, :t]).logits[0, -1] / temperature
            p = logits.exp() / logits.exp().sum()
            values.append(sum(-p[v] * p[v].log() for v in range(len(p))))
    return torch.stack(values)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("max_logits", [1, 100, 1 << 25])  # a token at a time, a few chunks, everything at once
def test_values_and_gradients_equal_the_loop(temperature: float, max_logits: int) -> None:
    fast, slow, tokens = tiny_model(), tiny_model(), batch()
    logprobs_N, entropies_N = action_logprobs_and_entropies(
        fast, tokens.input_ids_BT, tokens.action_mask_BT, temperature=temperature, max_logits=max_logits
    )
    alone_N = action_logprobs(fast, tokens.input_ids_BT, tokens.action_mask_BT, temperature=temperature)
    torch.testing.assert_close(logprobs_N, alone_N, rtol=0, atol=1e-6)
    expected_N = slow_entropies(slow, tokens, temperature)
    torch.testing.assert_close(entropies_N, expected_N, rtol=1e-5, atol=1e-5)
    weights_N = torch.linspace(-1, 2, len(expected_N))
    (entropies_N * weights_N).sum().backward()
    (expected_N * weights_N).sum().backward()
    torch.testing.assert_close(gradient_of(fast), gradient_of(slow), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_logits", [1, 100])
def test_a_frozen_head_gives_entropies_too(max_logits: int) -> None:
    """With an adapter, log-probabilities alone go through `tiled_logprobs`, which knows no entropies."""
    model, tokens = adapted_model(), batch()
    logprobs_N, entropies_N = action_logprobs_and_entropies(
        model, tokens.input_ids_BT, tokens.action_mask_BT, max_logits=max_logits
    )
    alone_N = action_logprobs(model, tokens.input_ids_BT, tokens.action_mask_BT, max_logits=max_logits)
    torch.testing.assert_close(logprobs_N, alone_N, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropies_N, slow_entropies(model, tokens, 1.0), rtol=1e-5, atol=1e-5)
    entropies_N.sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_numbers_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, -1e9], [1e9, 0.0, 0.0]])
    assert entropies(logits.log_softmax(-1)).tolist() == pytest.approx([math.log(2), 0.0])


def test_the_loss_rewards_entropy_at_the_policys_tokens_alone() -> None:
    x = example()
    entropies_BT = torch.rand(x["mask"].shape, dtype=torch.float64, requires_grad=True)
    spoilt_BT = torch.where(x["mask"], entropies_BT, math.nan)
    plain = loss_of(x).loss
    result = loss_of({**x, "entropies": spoilt_BT}, entropy_bonus=0.3)
    bonus = 0.3 * (x["weights"] * entropies_BT)[x["mask"]].sum() / 9.0
    torch.testing.assert_close(result.loss, plain - bonus)
    torch.testing.assert_close(result.sums["entropy"], entropies_BT[x["mask"]].sum())
    result.loss.backward()
    torch.testing.assert_close(entropies_BT.grad, torch.where(x["mask"], -0.3 * x["weights"] / 9.0, 0.0))
    with pytest.raises(ValueError, match="entropies are needed"):
        loss_of(x, entropy_bonus=0.3)


def test_a_step_adds_the_gradient_of_the_mean_entropy() -> None:
    settings = dataclasses.replace(CONFIG, loss_normaliser="tokens", kl_on_all_groups=True)
    groups = groups_for(tiny_model())
    plain, row = step_of(groups, settings)
    pushed, pushed_row = step_of(groups, dataclasses.replace(settings, entropy_bonus=0.5))
    assert "entropy_exact" not in row
    assert (row["entropy_bonus"], pushed_row["entropy_bonus"]) == (0.0, 0.5)
    model = tiny_model()
    segments = [s for g in groups for e in g.episodes for t in e.trajectories for s in t.segments]
    tokens = TokenBatch.from_segments(segments)
    mean = slow_entropies(model, tokens, 1.0).mean()
    assert pushed_row["entropy_exact"] == pytest.approx(float(mean.detach()), rel=1e-5)
    (-0.5 * mean).backward()
    torch.testing.assert_close(pushed - plain, gradient_of(model), rtol=1e-3, atol=1e-6)


def test_controller_by_hand() -> None:
    controller = EntropyController(0.01, 0.5, gain=0.2, limit=0.1, minimum=0.005, maximum=0.02)
    assert controller.bonus == 0.01
    assert controller.update(0.4) == pytest.approx(0.01 * math.exp(0.2 * 0.2))
    assert controller.update(0.0) == pytest.approx(0.01 * math.exp(0.04 + 0.1))  # limited
    for _ in range(20):
        controller.update(0.0)
    assert controller.bonus == 0.02
    assert controller.update(math.nan) == 0.02
    assert controller.update(0.6) == 0.0  # there is enough: the bonus rests, and its coefficient shrinks
    assert controller.coefficient == pytest.approx(0.02 * math.exp(-0.2 * 0.2))
    for _ in range(40):
        controller.update(9.0)
    assert controller.coefficient == 0.005
    resumed = EntropyController(0.01, 0.5, minimum=0.005)
    resumed.load_state_dict(controller.state_dict())
    assert (resumed.coefficient, resumed.bonus) == (0.005, 0.0)
    assert EntropyController(0.3).update(0.01) == 0.3


def sampled_groups(model: Any, step: int) -> list[Group]:
    """Four groups of eight tokens that the policy sampled; the reward favours high numbers."""
    rng = generator("entropy bandit", step)
    groups = []
    for number in range(4):
        prompt = [number, 3]
        with torch.no_grad():
            p = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1).numpy()
        episodes = []
        for token in rng.choice(VOCABULARY, 8, p=p).tolist():
            builder = SegmentBuilder()
            builder.append_context(prompt)
            builder.append_action([token], [math.log(p[token])])
            episodes.append(episode((builder.build(),), token / VOCABULARY))
        groups.append(Group(task_id=str(number), episodes=tuple(episodes)))
    return groups


@pytest.mark.parametrize("target", [None, 0.8, 1.6])
def test_the_controller_holds_its_target(target: float | None) -> None:
    """Without one, the rewards drive the entropy towards 0."""
    settings = dataclasses.replace(
        CONFIG, steps=100, kl_target=None, kl_beta=0.0, kl_on_all_groups=True, learning_rate=5e-3, warmup_steps=1,
        decay_from=1.0, loss_normaliser="tokens", entropy_bonus=0.1 if target else 0.0, entropy_target=target,
        entropy_min=0.05, entropy_max=3.0,
    )  # fmt: skip
    learner = GRPOLearner(tiny_model(), settings, seed=0)
    rows = [learner.step(lambda step: sampled_groups(learner.model, step)) for _ in range(100)]
    late = sum(row["entropy"] for row in rows[-40:]) / 40
    assert rows[0]["entropy"] > 2
    if target is None:
        assert late < 0.4
    else:
        assert late == pytest.approx(target, rel=0.25)

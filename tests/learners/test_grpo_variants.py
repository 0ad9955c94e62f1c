"""Whole steps of GRPO's relatives against loops written from the papers, on off-policy groups of a tiny model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import CONFIG, episode, scripted_groups, tiny_model
from torch import Tensor

from palaestra.core.trajectories import Episode, Group, Segment, Turn
from palaestra.learners.credit import credit
from palaestra.learners.grpo import GRPOConfig, GRPOLearner

DR_GRPO = {"normalise_std": False, "loss_normaliser": "constant"}
RLOO = {"advantage": "rloo", "normalise_std": False, "loss_normaliser": "constant"}
GSPO = {"loss": "gspo", "loss_normaliser": "sequences", "clip_low": 0.03, "clip_high": 0.04}
CISPO = {"loss": "cispo", "loss_normaliser": "tokens", "clip_low": 1.0}
PUBLISHED = {"loss_normaliser": "sequences"}
GIGPO = {"advantage": "gigpo", "loss_normaliser": "sequences"}
VARIANTS = {"dr_grpo": DR_GRPO, "rloo": RLOO, "gspo": GSPO, "cispo": CISPO, "published": PUBLISHED}


def config(**changes: Any) -> GRPOConfig:
    return dataclasses.replace(CONFIG, kl_target=None, kl_beta=0.1, tokens_per_episode=5.0, **changes)


def groups_for(drift: float = 0.3) -> list[Group]:
    """Four groups, one of them flat, one with a failed episode."""
    groups = scripted_groups(tiny_model(), 1, range(4), drift=drift)
    failed = episode((), math.nan, failure={"kind": "sandbox_died"}, success=None)
    groups[1] = Group(task_id="t1", episodes=(failed, *groups[1].episodes))
    return groups


def in_parts(groups: list[Group]) -> list[Group]:
    """Every trajectory in two segments of the same context, the second with the later actions."""

    def cut(one: Episode) -> Episode:
        if one.failed:
            return one
        [trajectory] = one.trajectories
        [segment] = trajectory.segments
        actions = np.flatnonzero(segment.action_mask_T)
        early = np.arange(len(segment)) <= actions[len(actions) // 2]
        parts = tuple(masked(segment, keep) for keep in (early, ~early))
        return dataclasses.replace(one, trajectories=(dataclasses.replace(trajectory, segments=parts),))

    return [Group(task_id=group.task_id, episodes=tuple(map(cut, group.episodes))) for group in groups]


def masked(segment: Segment, keep: np.ndarray) -> Segment:
    mask = segment.action_mask_T & keep
    recorded = np.where(mask, segment.logprobs_T, np.nan).astype(np.float32)
    return Segment(token_ids_T=segment.token_ids_T, action_mask_T=mask, logprobs_T=recorded)


def step_of(groups: list[Group], settings: GRPOConfig) -> tuple[Tensor, dict[str, Any]]:
    """The gradient (before clipping) that one step takes, and its row."""
    unclipped = dataclasses.replace(settings, max_grad_norm=1e9)
    learner = GRPOLearner(tiny_model(), unclipped, seed=0, reference=tiny_model(seed=1))
    row = learner.step(lambda _: groups)
    return gradient_of(learner.model), row


def gradient_of(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def token_logprobs(model: Any, segment: Segment) -> Tensor:
    ids = torch.tensor(segment.token_ids_T.astype(np.int64))[None]
    scored = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return scored[torch.tensor(segment.action_mask_T[1:])]


def slow_gradient(groups: list[Group], variant: str, settings: GRPOConfig) -> Tensor:
    """One answer after the other: its advantage, its loss as its paper writes it, its weight."""
    model, reference = tiny_model(), tiny_model(seed=1)
    answers = [(g, e) for g in groups for e in g.episodes if not e.failed]
    tokens = sum(e.trajectories[0].action_token_count for _, e in answers)
    attempts = sum(len(g.episodes) for g in groups)  # a constant counts failed episodes, too
    for group, one in answers:
        rewards = [e.reward for e in group.episodes if not e.failed]
        if max(rewards) == min(rewards):
            continue
        [segment] = one.trajectories[0].segments
        lp = token_logprobs(model, segment)
        old = torch.tensor(segment.logprobs_T[segment.action_mask_T])
        a = answer_advantage(one.reward, rewards, variant)
        r = ((lp - old).mean() if variant == "gspo" else lp - old).exp()
        if variant == "cispo":
            term = -r.clamp(max=1 + settings.clip_high).detach() * a * lp
        else:
            term = -torch.minimum(r * a, r.clamp(1 - settings.clip_low, 1 + settings.clip_high) * a).expand(len(lp))
        d = token_logprobs(reference, segment).detach() - lp
        term = term + settings.kl_beta * (lp - old).exp() * (d.exp() - 1 - d)
        total = term.mean() / len(answers)
        if variant == "cispo":
            total = term.sum() / tokens
        elif variant in ("dr_grpo", "rloo"):
            total = term.sum() / (attempts * settings.tokens_per_episode)
        total.backward()
    return gradient_of(model)


def answer_advantage(reward: float, rewards: list[float], variant: str) -> float:
    mean = sum(rewards) / len(rewards)
    if variant == "dr_grpo":
        return reward - mean
    if variant == "rloo":
        return reward - (sum(rewards) - reward) / (len(rewards) - 1)
    return (reward - mean) / (math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards)) + 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_step_equals_the_loop(variant: str) -> None:
    settings = config(**VARIANTS[variant])
    groups = groups_for()
    got, row = step_of(groups, settings)
    expected = slow_gradient(groups, variant, settings)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)
    assert row["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-4)
    assert row["clip_high"] > 0
    assert (row["clip_low"] > 0) == (variant != "cispo")  # without a lower bound
    assert "shared_anchors" not in row


@pytest.mark.parametrize("budget", [1, 60, 10_000])
@pytest.mark.parametrize("split", [lambda groups: groups, in_parts], ids=["whole", "in parts"])
@pytest.mark.parametrize("variant", ["gspo", "cispo", "published"])
def test_micro_batches_and_segments_change_nothing(
    variant: str, split: Callable[[list[Group]], list[Group]], budget: int
) -> None:
    """A trajectory's ratio is over all of its segments, in whichever micro-batch they would have been."""
    whole, row = step_of(groups_for(), config(**VARIANTS[variant]))
    got, same = step_of(split(groups_for()), config(**VARIANTS[variant], micro_batch_tokens=budget))
    torch.testing.assert_close(got, whole, rtol=1e-3, atol=1e-6)
    for name in ("loss", "clip_low", "clip_high", "tokens"):
        assert same[name] == pytest.approx(row[name], rel=1e-4), name


def test_rloo_on_policy_is_the_papers_estimator() -> None:
    """Ahmadian et al. 2024: the mean over answers of (R(y_i) - mean of the others) grad log pi(y_i)."""
    groups = scripted_groups(tiny_model(), 1, range(1, 3), drift=0.0)
    got, _ = step_of(groups, dataclasses.replace(config(**RLOO), kl_beta=0.0, tokens_per_episode=1.0))
    model = tiny_model()
    answers = [(e, [o.reward for o in g.episodes if o is not e]) for g in groups for e in g.episodes]
    for one, others in answers:
        advantage = one.reward - sum(others) / len(others)
        logprob = token_logprobs(model, one.trajectories[0].segments[0]).sum()
        (-advantage * logprob / len(answers)).backward()
    torch.testing.assert_close(got, gradient_of(model), rtol=1e-3, atol=1e-6)


def turns_of(one: Episode, anchors: tuple[str, ...]) -> Episode:
    """The episode with a turn for each run of action tokens; the reward is the last one's."""
    [trajectory] = one.trajectories
    mask = trajectory.segments[0].action_mask_T.astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]))).reshape(-1, 2)
    turns = tuple(
        Turn(action="a", observation="", start=int(start), stop=int(stop), anchor=anchors[number % len(anchors)])
        for number, (start, stop) in enumerate(edges)
    )
    return dataclasses.replace(one, trajectories=(dataclasses.replace(trajectory, turns=turns),))


def test_gigpo_gives_every_turn_its_own_gradient() -> None:
    groups = [
        Group(task_id=g.task_id, episodes=tuple(turns_of(e, ("a", "b", "c")) for e in g.episodes))
        for g in scripted_groups(tiny_model(), 1, range(4), drift=0.0)
    ]
    settings = dataclasses.replace(config(**GIGPO), kl_beta=0.0)
    got, row = step_of(groups, settings)
    model = tiny_model()
    for entry in credit(groups, settings, np.random.default_rng(0)):
        advantages = torch.tensor(entry.advantages_T[entry.segment.action_mask_T])
        (-(advantages * token_logprobs(model, entry.segment)).mean() / 16).backward()
    torch.testing.assert_close(got, gradient_of(model), rtol=1e-3, atol=1e-6)
    assert 0.5 < row["shared_anchors"] <= 1.0
    assert not torch.allclose(got, step_of(groups, dataclasses.replace(settings, step_weight=0.0))[0], rtol=0.1)


@pytest.mark.parametrize("settings", [*VARIANTS.values(), GIGPO], ids=[*VARIANTS, "gigpo"])
def test_equal_rewards_move_nothing(settings: dict[str, Any]) -> None:
    """Not even by rounding: without a KL there is no update at all."""
    groups = [
        Group(task_id="t", episodes=tuple(dataclasses.replace(e, reward=0.7) for e in group.episodes))
        for group in scripted_groups(tiny_model(), 1, range(2))
    ]
    learner = GRPOLearner(tiny_model(), dataclasses.replace(config(**settings), kl_beta=0.0), seed=0)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    row = learner.step(lambda _: groups)
    assert row["zero_variance_share"] == 1.0
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())

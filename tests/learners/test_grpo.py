from __future__ import annotations

import dataclasses
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from tiny_runs import CONFIG, episode, parameters_of, random_segment, scripted_groups, tiny_model, with_logprobs

from palaestra.core.errors import ConfigError
from palaestra.core.seeding import generator
from palaestra.core.trajectories import Episode, Group, Segment, Trajectory
from palaestra.learners.advantages import group_advantages
from palaestra.learners.checkpoint import CheckpointStore
from palaestra.learners.distributed import Ranks, launch
from palaestra.learners.grpo import GRPOConfig, GRPOLearner, train_grpo
from palaestra.learners.logprobs import segment_logprobs
from palaestra.learners.metrics import MetricsWriter, read_metrics

CONTRACT_KEYS = {
    "stage", "step", "seconds", "reward_mean", "reward_std", "success", "kl_seq", "kl_token", "beta", "entropy",
    "clip_low", "clip_high", "grad_norm", "zero_variance_share", "truncation_rate", "failures", "parse_errors",
    "mean_turns", "tokens", "seconds_generation", "seconds_environment", "seconds_update", "loss", "lr",
}  # fmt: skip


def config(**changes: Any) -> GRPOConfig:
    return dataclasses.replace(CONFIG, **changes)


def groups_for(model: Any, numbers: range = range(4), drift: float = 0.1) -> list[Group]:
    return scripted_groups(model, 1, numbers, drift=drift)


def step_of(
    groups: list[Group], settings: GRPOConfig = CONFIG, model: Any = None, **options: Any
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The gradient (before clipping) that one step takes on these groups, and its row."""
    learner = GRPOLearner(model or tiny_model(), dataclasses.replace(settings, max_grad_norm=1e9), seed=0, **options)
    row = learner.step(lambda _: groups)
    return gradient_of(learner.model), row


def gradient_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def slow_gradient(model: Any, reference: Any, groups: list[Group], denominator: float, beta: float) -> torch.Tensor:
    """The whole step as a loop over single tokens, each with a forward pass of its own, straight from the papers."""
    model.zero_grad()
    for group in groups:
        rewards = [e.reward for e in group.episodes]
        if max(rewards) == min(rewards):
            continue
        mean = sum(rewards) / len(rewards)
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
        for one in group.episodes:
            advantage = (one.reward - mean) / (std + 1e-4)
            for segment in (s for trajectory in one.trajectories for s in trajectory.segments):
                ids = torch.tensor(segment.token_ids_T.astype(np.int64))
                for t in np.flatnonzero(segment.action_mask_T):
                    prefix = ids[None, :t]
                    lp = model(input_ids=prefix).logits[0, -1].log_softmax(0)[ids[t]]
                    ref = reference(input_ids=prefix).logits[0, -1].log_softmax(0)[ids[t]].detach()
                    ratio = (lp - float(segment.logprobs_T[t])).exp()
                    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
                    k3 = (ref - lp).exp() - 1 - (ref - lp)
                    ((beta * ratio * k3 - gain) / denominator).backward()
    return gradient_of(model)


@pytest.mark.parametrize("normaliser", ["tokens", "constant"])
def test_step_equals_the_loop(normaliser: Any) -> None:
    reference = tiny_model(seed=1)
    groups = groups_for(tiny_model(), drift=0.3)
    settings = config(loss_normaliser=normaliser, tokens_per_episode=5.0)
    got, row = step_of(groups, settings, reference=reference)
    tokens = sum(t.action_token_count for g in groups for e in g.episodes for t in e.trajectories)
    denominator = tokens if normaliser == "tokens" else 16 * 5.0
    expected = slow_gradient(tiny_model(), reference, groups, denominator, beta=0.1)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)
    assert row["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-4)


def test_row_has_every_key_and_the_right_numbers() -> None:
    model = tiny_model()
    groups = groups_for(model, drift=0.0)
    failed = episode((), math.nan, failure={"kind": "sandbox_died"}, success=None, truncated=True)
    groups[1] = Group(task_id="t1", episodes=(*groups[1].episodes, failed))
    groups[2] = Group(
        task_id="t2", episodes=(*groups[2].episodes[:3], dataclasses.replace(groups[2].episodes[3], truncated=True))
    )
    _, row = step_of(groups, model=model)
    assert row.keys() >= CONTRACT_KEYS
    assert (row["stage"], row["step"], row["beta"]) == ("grpo", 1, 0.1)
    assert row["reward_mean"] == row["success"] == pytest.approx(10 / 16)
    assert row["reward_std"] == pytest.approx(math.sqrt(10 / 16 * 6 / 16))
    assert row["zero_variance_share"] == 0.25
    assert row["failures"] == 1
    assert row["truncation_rate"] == 1 / 16
    assert row["mean_turns"] == 1
    assert row["kl_seq"] == pytest.approx(0.0, abs=1e-4)
    assert row["mismatch_k3"] == pytest.approx(0.0, abs=1e-6)
    assert row["mismatch_ess"] == pytest.approx(1.0, abs=1e-4)
    assert row["lr"] == pytest.approx(CONFIG.learning_rate / 4)
    assert all(isinstance(v, int | float | str) for v in row.values())


def test_kl_counts_every_trajectory_also_of_groups_without_spread() -> None:
    model, reference = tiny_model(), tiny_model(seed=1)
    groups = groups_for(model)
    segments = [s for g in groups for e in g.episodes for t in e.trajectories for s in t.segments]
    scored = segment_logprobs(reference, segments, autocast="none")
    kls = [float((s.logprobs_T - ref)[s.action_mask_T].sum()) for s, ref in zip(segments, scored, strict=True)]
    _, row = step_of(groups, model=model, reference=reference)
    assert row["kl_seq"] == pytest.approx(sum(kls) / 16, rel=1e-4)
    tokens = sum(int(s.action_mask_T.sum()) for s in segments)
    assert row["kl_token"] == pytest.approx(sum(kls) / tokens, rel=1e-4)
    recorded = [lp for s in segments for lp in s.logprobs_T[s.action_mask_T]]
    assert row["entropy"] == pytest.approx(-sum(recorded) / tokens, rel=1e-4)


@pytest.mark.parametrize("budget", [1, 40, 100])
def test_micro_batches_and_padding_change_nothing(budget: int) -> None:
    groups = groups_for(tiny_model())
    whole, _ = step_of(groups, config(micro_batch_tokens=10_000))
    split, _ = step_of(groups, config(micro_batch_tokens=budget))
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-6)


def test_order_of_groups_and_episodes_changes_nothing() -> None:
    groups = groups_for(tiny_model())
    turned = [Group(task_id=g.task_id, episodes=g.episodes[::-1]) for g in groups[::-1]]
    torch.testing.assert_close(step_of(turned)[0], step_of(groups)[0], rtol=1e-4, atol=1e-6)


def test_cutting_a_trajectory_into_segments_of_the_same_context_changes_nothing() -> None:
    """A second segment repeats the context with its actions masked; advantage and denominator stay the same."""

    def cut(one: Episode) -> Episode:
        segment = one.trajectories[0].segments[0]
        actions = np.flatnonzero(segment.action_mask_T)
        early = np.arange(len(segment)) <= actions[len(actions) // 2]
        parts = tuple(_masked(segment, keep) for keep in (early, ~early))
        return dataclasses.replace(one, trajectories=(dataclasses.replace(one.trajectories[0], segments=parts),))

    groups = groups_for(tiny_model())
    in_parts = [Group(task_id=g.task_id, episodes=tuple(map(cut, g.episodes))) for g in groups]
    for settings in (CONFIG, config(loss_normaliser="tokens", importance_cap=1.5)):
        whole, row = step_of(groups, settings)
        parts, row_of_parts = step_of(in_parts, settings)
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)
        assert row_of_parts["kl_seq"] == pytest.approx(row["kl_seq"], rel=1e-3)


def test_an_observation_at_the_end_changes_nothing() -> None:
    def observe(one: Episode) -> Episode:
        segment = one.trajectories[0].segments[0]
        extra = 3
        longer = Segment(
            token_ids_T=np.append(segment.token_ids_T, np.full(extra, 5, np.int32)),
            action_mask_T=np.append(segment.action_mask_T, [False] * extra),
            logprobs_T=np.append(segment.logprobs_T, np.full(extra, np.nan, np.float32)),
        )
        return dataclasses.replace(one, trajectories=(Trajectory(segments=(longer,), turns=one.trajectories[0].turns),))

    groups = groups_for(tiny_model())
    longer = [Group(task_id=g.task_id, episodes=tuple(map(observe, g.episodes))) for g in groups]
    for settings in (CONFIG, config(loss_normaliser="tokens")):
        torch.testing.assert_close(step_of(longer, settings)[0], step_of(groups, settings)[0], rtol=1e-4, atol=1e-6)


def test_failed_episodes_do_not_touch_the_gradient() -> None:
    """With a token-mean. (A constant per episode counts what was asked for, failed or not.)"""
    groups = groups_for(tiny_model())
    broken = episode((random_segment(generator("broken")),), math.nan, failure={"kind": "sandbox_died"}, success=None)
    with_failures = [Group(task_id=g.task_id, episodes=(*g.episodes, broken)) for g in groups]
    settings = config(loss_normaliser="tokens")
    torch.testing.assert_close(step_of(with_failures, settings)[0], step_of(groups, settings)[0], rtol=1e-4, atol=1e-6)


def test_without_anything_to_learn_from_no_weight_moves() -> None:
    """Not even by momentum of earlier steps."""
    learner = GRPOLearner(tiny_model(), CONFIG, seed=0)
    learner.step(lambda step: scripted_groups(learner.model, step, range(4)))
    before = parameters_of(learner.model)
    row = learner.step(lambda step: scripted_groups(learner.model, step, range(0, 16, 4)))  # equal rewards
    assert row["zero_variance_share"] == 1.0
    assert row["updates_skipped"] == 1
    assert math.isnan(row["grad_norm"])
    assert torch.equal(parameters_of(learner.model), before)


def test_all_episodes_failed_is_a_step_without_update() -> None:
    failed = episode((), math.nan, failure={"kind": "sandbox_died"}, success=None)
    row = GRPOLearner(tiny_model(), CONFIG, seed=0).step(lambda _: [Group(task_id="t", episodes=(failed, failed))])
    assert row["failures"] == 2
    assert math.isnan(row["reward_mean"])
    assert math.isnan(row["kl_seq"])


def test_kl_on_all_groups_pulls_groups_without_spread_too() -> None:
    reference = tiny_model(seed=1)
    flat = scripted_groups(tiny_model(), 1, range(0, 16, 4))
    gradient, _ = step_of(flat, config(kl_on_all_groups=True), reference=reference)
    assert gradient.norm() > 0


def test_recorded_logprobs_are_the_old_policy() -> None:
    """Recorded 1 nat less likely than now: every ratio is e, and each token with a positive advantage is clipped."""
    groups = [_shift_logprobs(g, -1.0) for g in groups_for(tiny_model(), range(1, 4), drift=0.0)]
    _, row = step_of(groups)
    tokens = [(e.reward, e.trajectories[0].action_token_count) for g in groups for e in g.episodes]
    positive = sum(n for reward, n in tokens if reward > 0.5)
    assert row["clip_high"] == pytest.approx(positive / sum(n for _, n in tokens))
    assert row["clip_low"] == 0
    assert row["mismatch_k3"] == pytest.approx(math.e - 1 - 1, rel=1e-3)
    assert row["mismatch_ess"] == pytest.approx(1.0, abs=1e-4)


def test_importance_correction_by_hand() -> None:
    """Recorded 0.1 nats too low on every token: weight min(exp(0.1 * tokens), cap), and the ratio itself is 1."""
    model = tiny_model()
    exact = groups_for(model, range(1, 2), drift=0.0)
    shifted = [_shift_logprobs(g, -0.1) for g in exact]
    settings = config(kl_beta=0.0, kl_target=None)
    corrected, _ = step_of(shifted, dataclasses.replace(settings, importance_cap=2.0), model=tiny_model())

    expected = torch.zeros_like(corrected)
    rewards = [e.reward for e in exact[0].episodes]
    for one, advantage in zip(exact[0].episodes, group_advantages(rewards), strict=True):
        tokens = one.trajectories[0].action_token_count
        copy = tiny_model()
        segment = one.trajectories[0].segments[0]
        ids = torch.tensor(segment.token_ids_T.astype(np.int64))[None]
        logprobs = copy(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        weight = min(math.exp(0.1 * tokens), 2.0)
        chosen = logprobs[torch.tensor(segment.action_mask_T[1:])]
        (-weight * advantage * chosen.sum() / (4 * settings.tokens_per_episode)).backward()
        expected += gradient_of(copy)
    torch.testing.assert_close(corrected, expected, rtol=1e-3, atol=1e-6)


def test_shuffled_rewards_keep_their_values_and_lose_their_owners() -> None:
    groups = groups_for(tiny_model())
    plain, plain_row = step_of(groups)
    shuffled, row = step_of(groups, config(shuffle_rewards=True))
    assert row["reward_mean"] == plain_row["reward_mean"]
    assert not torch.allclose(shuffled, plain, rtol=0.1)


def test_minibatches_use_every_sample_once() -> None:
    groups = groups_for(tiny_model())
    _, row = step_of(groups, config(minibatches=3))
    _, whole = step_of(groups)
    assert row["updates_skipped"] == 0
    assert row["loss"] != whole["loss"]
    assert row["tokens"] == whole["tokens"]


def test_beta_follows_the_controller() -> None:
    learner = GRPOLearner(tiny_model(), CONFIG, seed=0, reference=tiny_model(seed=1))
    rows = [learner.step(lambda step: scripted_groups(learner.model, step, range(4))) for _ in range(4)]
    controller = CONFIG.kl_controller()
    expected = [0.1] + [controller.update(row["kl_seq"]) for row in rows[:-1]]
    assert [row["beta"] for row in rows] == pytest.approx(expected)
    assert len({row["beta"] for row in rows}) == 4


def bandit_rows(**changes: Any) -> list[dict[str, Any]]:
    """One action token after one prompt token, sampled from the model itself; the reward prefers even tokens."""
    model = tiny_model()
    learner = GRPOLearner(model, config(steps=40, learning_rate=5e-3, warmup_steps=1, **changes), seed=0)
    collect = lambda step: [_bandit_group(model, generator("bandit", step, i)) for i in range(8)]  # noqa: E731
    return [learner.step(collect) for _ in range(40)]


def test_it_learns_and_the_kl_is_steered_to_its_target() -> None:
    steered = bandit_rows(kl_target=0.5, kl_beta=0.5, kl_beta_min=0.1, kl_beta_max=3.0)
    free = bandit_rows(kl_target=None, kl_beta=0.0)
    for rows in (steered, free):
        assert rows[0]["reward_mean"] < 0.65
        assert _mean(rows[20:], "reward_mean") > rows[0]["reward_mean"] + 0.25
    assert 0.25 < _mean(steered[20:], "kl_seq") < 1.0
    assert _mean(free[20:], "kl_seq") > 1.5


def test_two_processes_equal_one_with_all_the_groups() -> None:
    one, two = tiny_runs.weights_after_training(Ranks()), launch(tiny_runs.weights_after_training, 2)
    assert (one["grpo"] - two["grpo"]).abs().max() < 1e-6
    assert (one["sft"] - two["sft"]).abs().max() < 1e-6
    for name in ("reward_mean", "kl_seq", "entropy", "zero_variance_share", "grad_norm", "loss", "tokens"):
        assert two["row"][name] == pytest.approx(one["row"][name], rel=1e-4), name


def test_resume_after_sigkill_is_bit_exact(tmp_path: Path) -> None:
    """A run is killed between checkpoints; the resumed one ends with the weights of a run that nobody disturbed."""
    undisturbed = tiny_runs.train_in(Ranks(), str(tmp_path / "whole"), resume=False)
    folder = tmp_path / "killed"
    script = [sys.executable, tiny_runs.__file__, str(folder), "1", "new", "0.3"]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line == "step 3\n":  # checkpoints are written at 2 and 4
                run.kill()
                break
    assert run.returncode == -signal.SIGKILL
    assert [row["step"] for row in read_metrics(folder)] == [1, 2, 3]
    resumed = tiny_runs.train_in(Ranks(), str(folder), resume=True)
    assert torch.equal(resumed, undisturbed)
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    whole = read_metrics(tmp_path / "whole")
    untimed = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
    assert untimed == [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in whole]


def test_a_stop_leaves_a_checkpoint_of_the_last_step(tmp_path: Path) -> None:
    stop = False
    learner = GRPOLearner(tiny_model(), CONFIG, seed=0, ranks=Ranks(0, 1, lambda: stop))
    store = CheckpointStore(tmp_path)

    def collect(step: int) -> list[Group]:
        nonlocal stop
        stop = step == 3
        return scripted_groups(learner.model, step, range(4))

    assert not train_grpo(learner, collect, checkpoints=store)
    assert (saved := store.load_latest()) is not None
    assert saved.step == learner.steps_done == 3
    stop = False
    with MetricsWriter(tmp_path / "run") as metrics:
        assert train_grpo(learner, collect, metrics=metrics, checkpoints=store, resume=True) is True
    assert learner.steps_done == CONFIG.steps
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [4, 5, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_low": -0.1}, r"^grpo\.clip_low=-0\.1: must be in \(0, 1\]$"),
        ({"advantage": "roo"}, r"^grpo\.advantage='roo'; did you mean 'rloo'\?$"),
        ({"loss": "gpso"}, r"^grpo\.loss='gpso'; did you mean 'gspo'\?$"),
        ({"step_discount": 0.0}, r"^grpo\.step_discount=0\.0: must be in \(0, 1\]$"),
        ({"advantage": "rloo"}, r"^grpo\.normalise_std=True: rloo .*; set grpo\.normalise_std=false "),
        ({"loss": "gspo"}, r"^grpo\.loss_normaliser='tokens': gspo .*; set grpo\.loss_normaliser='sequences'$"),
        (
            {"advantage": "gigpo", "shuffle_rewards": True},
            r"^grpo\.shuffle_rewards=True: gigpo .*; set grpo\.advantage",
        ),
        ({"group_size": 1}, r"^grpo\.group_size=1: must be in \[2, inf\)$"),
        ({"kl_target": 0.0}, r"^grpo\.kl_target=0\.0: must be in \(0, inf\)$"),
        ({"loss_normaliser": "token"}, r"^grpo\.loss_normaliser='token'; did you mean 'tokens'\?$"),
        ({"schedule": "fix"}, r"^grpo\.schedule='fix'; did you mean 'fixed'\?$"),
        ({"temperature_final": 0.0}, r"^grpo\.temperature_final=0\.0: must be in \(0, inf\)$"),
        ({"temperature_schedule": "cosin"}, r"^grpo\.temperature_schedule='cosin'; did you mean 'cosine'\?$"),
        ({"curriculum": "sucess"}, r"^grpo\.curriculum='sucess'; did you mean 'success'\?$"),
        ({"entropy_bonus": -1.0}, r"^grpo\.entropy_bonus=-1\.0: must be in \[0, inf\)$"),
        ({"entropy_target": 0.5}, r"^grpo\.entropy_bonus=0\.0: must be in \[0\.0001, 0\.1\], the bounds entropy_min"),
        ({"kl_beta": 0.5, "kl_target": 3.0}, r"^grpo\.kl_beta=0\.5: must be in \[0\.03, 0\.2\], the bounds"),
    ],
)
def test_bad_values_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GRPOConfig(**changes)


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _masked(segment: Segment, keep: np.ndarray) -> Segment:
    mask = segment.action_mask_T & keep
    return Segment(
        token_ids_T=segment.token_ids_T,
        action_mask_T=mask,
        logprobs_T=np.where(mask, segment.logprobs_T, np.nan).astype(np.float32),
    )


def _shift_logprobs(group: Group, shift: float) -> Group:
    def shifted(one: Episode) -> Episode:
        segment = one.trajectories[0].segments[0]
        part = (with_logprobs(segment, segment.logprobs_T + shift),)
        return dataclasses.replace(one, trajectories=(dataclasses.replace(one.trajectories[0], segments=part),))

    return Group(task_id=group.task_id, episodes=tuple(map(shifted, group.episodes)))


def _bandit_group(model: Any, rng: np.random.Generator) -> Group:
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([[3]])).logits[0, -1].double().log_softmax(0).numpy()
    episodes: list[Episode] = []
    for _ in range(8):
        token = int(rng.choice(len(logprobs), p=np.exp(logprobs) / np.exp(logprobs).sum()))
        segment = Segment(
            token_ids_T=np.array([3, token], np.int32),
            action_mask_T=np.array([False, True]),
            logprobs_T=np.array([np.nan, logprobs[token]], np.float32),
        )
        episodes.append(episode((segment,), float(token % 2 == 0)))
    return Group(task_id="bandit", episodes=tuple(episodes))

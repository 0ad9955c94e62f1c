from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_grpo import gradient_of, step_of
from tiny_runs import CONFIG, VOCABULARY, episode, tiny_model

from palaestra.core.errors import ConfigError
from palaestra.core.seeding import generator
from palaestra.core.trajectories import Episode, Group, SegmentBuilder, Trajectory, Turn
from palaestra.learners.advantages import group_advantages
from palaestra.learners.batch import TokenBatch
from palaestra.learners.config import load_recipe
from palaestra.learners.credit import credit
from palaestra.learners.group_statistics import group_row, group_sums
from palaestra.learners.grpo import GRPOLearner
from palaestra.learners.logprobs import action_logprobs
from palaestra.learners.tree_advantages import Path, tree_advantages


def test_tree_by_hand() -> None:
    """Three levels: 1 and 2 part from 0 after two turns, 3 from 1 after three; 4 is alone; 5 failed."""
    paths = [
        Path(turns=4),
        Path(turns=5, parent=0, forked_at=2),
        Path(turns=3, parent=0, forked_at=2),
        Path(turns=4, parent=1, forked_at=3),
        Path(turns=1),
        Path(turns=3, parent=0, forked_at=1),
    ]
    rewards = [0.0, 1.0, 0.0, 0.5, 1.0, math.nan]
    got = tree_advantages(rewards, paths, step_weight=2.0, normalise_std=False)
    root, fork, later = 0.5, 1.5 / 4, 1.5 / 2
    shared = (fork - root) + 2 * (fork - root)
    assert got[0] == pytest.approx([shared] * 2 + [(0 - root) + 2 * (0 - fork)] * 2)
    middle = (later - root) + 2 * (later - fork)
    assert got[1] == pytest.approx([shared] * 2 + [middle] + [(1 - root) + 2 * (1 - later)] * 2)
    assert got[2] == pytest.approx([shared] * 2 + [(0 - root) + 2 * (0 - fork)])
    assert got[3] == pytest.approx([shared] * 2 + [middle] + [(0.5 - root) + 2 * (0.5 - later)])
    assert got[4] == pytest.approx([3 * (1 - root)])
    assert got[5].tolist() == [0.0] * 3


def test_the_documented_example() -> None:
    paths = [Path(turns=2), Path(turns=2, parent=0, forked_at=1), Path(turns=1)]
    got = tree_advantages([0, 1, 1], paths, normalise_std=False)
    assert [list(values) for values in got] == [
        pytest.approx([-1 / 3, -7 / 6]),
        pytest.approx([-1 / 3, 5 / 6]),
        pytest.approx([2 / 3]),
    ]


@st.composite
def forests(draw: Any) -> tuple[list[float], list[Path]]:
    paths: list[Path] = []
    for number in range(draw(st.integers(2, 7))):
        turns = draw(st.integers(1, 5))
        if number and draw(st.booleans()):
            parent = draw(st.integers(0, number - 1))
            forked_at = draw(st.integers(1, paths[parent].turns))
            paths.append(Path(turns=max(turns, forked_at), parent=parent, forked_at=forked_at))
        else:
            paths.append(Path(turns=turns))
    rewards = [draw(st.sampled_from([0.0, 0.25, 1.0, math.nan])) for _ in paths]
    return rewards, paths


def slow_tree(rewards: list[float], paths: list[Path], weight: float, normalise: bool) -> list[list[float]]:
    """Builds the tree as nested dictionaries of turns, then walks down from the root."""
    names: list[list[str]] = []
    for i, path in enumerate(paths):
        copied = [] if path.parent is None else names[path.parent][: path.forked_at]
        names.append(copied + [f"{i}:{k}" for k in range(len(copied), path.turns)])
    known = [i for i, reward in enumerate(rewards) if not math.isnan(reward)]
    values = [rewards[i] for i in known]
    result = [[0.0] * path.turns for path in paths]
    if not values or max(values) == min(values):
        return result
    root = sum(values) / len(values)
    scale = math.sqrt(sum((v - root) ** 2 for v in values) / len(values)) + 1e-4 if normalise else 1.0
    for i in known:
        last, pending = root, []
        for k in range(paths[i].turns):
            pending.append(k)
            here = [j for j in known if names[j][: k + 1] == names[i][: k + 1]]
            onward = {names[j][k + 1] if k + 1 < len(names[j]) else f"end of {j}" for j in here}
            if len(onward) > 1 or k + 1 == paths[i].turns:  # they part here, or this is the episode's end
                value = rewards[i] if k + 1 == paths[i].turns else sum(rewards[j] for j in here) / len(here)
                for turn in pending:
                    result[i][turn] = ((value - root) + weight * (value - last)) / scale
                last, pending = value, []
    return result


@given(forests(), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_equals_the_loop(forest: tuple[list[float], list[Path]], weight: float, normalise: bool) -> None:
    rewards, paths = forest
    got = tree_advantages(rewards, paths, step_weight=weight, normalise_std=normalise)
    for ours, theirs in zip(got, slow_tree(rewards, paths, weight, normalise), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, math.nan]), min_size=2, max_size=6), st.sampled_from([0.0, 0.5]))
def test_without_forks_it_is_grpo(rewards: list[float], weight: float) -> None:
    got = tree_advantages(rewards, [Path(turns=2)] * len(rewards), step_weight=weight)
    np.testing.assert_allclose([a[0] for a in got], (1 + weight) * group_advantages(rewards), atol=1e-12)


# ------------------------------------------------------------------------------------------------- tokens of a group
def forked_group() -> Group:
    """A trunk of three turns, a branch after its first, one that failed, and one that started afresh."""
    trunk = made([[5, 6], [7], [8, 9]], 0.0)
    branch = made([[5, 6], [10, 11, 12]], 1.0, replica=2, trunk=0, forked_at=1)
    failed = made([[5, 6], [13]], math.nan, replica=3, trunk=0, forked_at=1)
    failed = dataclasses.replace(failed, failure={"kind": "sandbox_died"}, success=None)
    return Group(task_id="t", episodes=(trunk, made([[14]], 1.0, replica=1), branch, failed))


def made(actions: list[list[int]], reward: float, replica: int = 0, **fork: Any) -> Episode:
    builder, turns = SegmentBuilder(), []
    for action in actions:
        builder.append_context([1, 2])
        start = len(builder)
        builder.append_action(action, [-1.0 - 0.01 * token for token in action])
        turns.append(Turn(action="a", observation="", start=start, stop=len(builder)))
    info = {"replica": replica, **({"trunk": fork["trunk"]} if fork else {})}
    trajectory = Trajectory(segments=(builder.build(),), turns=tuple(turns), forked_at=fork.get("forked_at"))
    return episode((), reward, trajectories=(trajectory,), info=info)


TREE = dataclasses.replace(CONFIG, advantage="tree", normalise_std=False, loss_normaliser="tokens", kl_beta=0.05,
                           kl_target=None)  # fmt: skip


def test_shared_tokens_are_trained_once_with_the_advantage_of_all_that_came_of_them() -> None:
    entries = credit([forked_group()], TREE, generator("x"))
    trained = [entry.advantages_T[entry.trained.action_mask_T].tolist() for entry in entries]
    root, fork = 2 / 3, 1 / 2
    assert trained[0] == pytest.approx([2 * (fork - root)] * 2 + [-root - fork] * 3)
    assert trained[1] == pytest.approx([2 * (1 - root)])
    assert trained[2] == pytest.approx([(1 - root) + (1 - fork)] * 3)
    assert [entry.trajectory_tokens for entry in entries] == [5, 1, 3]


def test_statistics_count_sampled_tokens_once() -> None:
    sums = group_sums([forked_group()])
    assert (sums["tokens"], sums["forked"], sums["trajectories"]) == (9, 1, 3)
    assert sums["surprise"] == pytest.approx(sum(1 + 0.01 * t for t in (5, 6, 7, 8, 9, 14, 10, 11, 12)), rel=1e-5)
    assert group_row(sums)["forked_share"] == pytest.approx(1 / 3)


def test_a_step_equals_the_loop_over_tokens_and_the_kl_is_that_of_whole_episodes() -> None:
    group, model, reference = forked_group(), tiny_model(), tiny_model(1)
    got, row = step_of([group], TREE, tiny_model(), reference=reference)
    advantages = {
        0: {2: -1 / 3, 3: -1 / 3, 6: -7 / 6, 9: -7 / 6, 10: -7 / 6}, 1: {2: 2 / 3}, 2: {6: 5 / 6, 7: 5 / 6, 8: 5 / 6}
    }  # fmt: skip
    kl = 0.0
    for number, one in enumerate(group.episodes[:3]):
        (segment,) = one.trajectories[0].segments
        ids = torch.from_numpy(segment.token_ids_T.astype(np.int64))
        assert int(ids.max()) < VOCABULARY
        for t in np.flatnonzero(segment.action_mask_T).tolist():
            lp = model(input_ids=ids[None, :t]).logits[0, -1].log_softmax(0)[ids[t]]
            with torch.no_grad():
                ref = reference(input_ids=ids[None, :t]).logits[0, -1].log_softmax(0)[ids[t]]
            old = float(segment.logprobs_T[t])
            kl += old - float(ref)
            if t not in advantages[number]:
                continue
            ratio, a = (lp - old).exp(), advantages[number][t]
            gain = torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
            k3 = (ref - lp).exp() - 1 - (ref - lp)
            ((0.05 * ratio * k3 - gain) / 9).backward()
    torch.testing.assert_close(got, gradient_of(model), rtol=1e-4, atol=1e-6)
    assert row["kl_seq"] == pytest.approx(kl / 3, rel=1e-5)
    assert row["tokens"] == 9


def test_without_forks_every_advantage_trains_what_was_recorded() -> None:
    plain = Group(task_id="t", episodes=(made([[5], [6]], 0.0), made([[7]], 1.0, replica=1)))
    for advantage in ("group", "gigpo"):
        entries = credit([plain], dataclasses.replace(TREE, advantage=advantage), generator("x"))
        assert all(entry.trained is entry.segment for entry in entries)


def test_branches_alone_are_trained_by_their_outcome() -> None:
    learner = GRPOLearner(tiny_model(), dataclasses.replace(TREE, advantage="group"), seed=0)
    assert math.isfinite(learner.step(lambda _: [forked_group()])["loss"])
    masked = TokenBatch.from_segments([forked_group().episodes[2].trajectories[0].own_segments()[0]])
    assert len(action_logprobs(learner.model, masked.input_ids_BT, masked.action_mask_BT)) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["grpo.advantage=tree"], r"^grpo\.advantage='tree': needs branches; set rollout\.branching\.share"),
        (
            ["rollout.branching.share=0.5", "grpo.advantage=gigpo"],
            r"^rollout\.branching\.share=0\.5: gigpo would count",
        ),
        (["rollout.branching.share=2"], r"^rollout\.branching\.share=2\.0: must be in \[0, 1\]$"),
        (["rollout.branching.at=entrpy"], r"rollout\.branching\.at='entrpy'"),
        (["rollout.branching.shar=0.5"], r"^unknown key 'rollout\.branching\.shar'; did you mean"),
        (["rollout.branching.share=0.5", "rollout.branching.branches=9"], r"must be at most grpo\.group_size=8$"),
    ],
)
def test_bad_recipes_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe("quickstart", overrides)
    assert "\n" not in str(caught.value)


def test_a_recipe_with_branches() -> None:
    recipe = load_recipe("quickstart", ["rollout.branching={share = 0.5, at = 'entropy'}", "grpo.advantage=tree"])
    assert recipe.rollout.branching.trunks(8) == [None] * 6 + [0, 0]

"""Episodes that go on from the middle of others: records, determinism, failures."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

sys.path.append(str(Path(__file__).parent))
from test_rollout import SAMPLING, TEXTS, CountingEnv, same, tiny_policy

from palaestra.agents.branching import BranchingConfig, ForkPoint
from palaestra.agents.llm import LLMPolicy
from palaestra.agents.rollout import CollectorTelemetry, EpisodeSpec, collect
from palaestra.core.errors import ConfigError, EnvironmentFailure
from palaestra.core.records import episode_from_record, episode_to_record
from palaestra.core.seeding import generator
from palaestra.core.trajectories import Episode
from palaestra.envs.vector import ToolVectorEnv
from palaestra.models.tokenizers import train_tokenizer

SIZE, BRANCHES = 6, 3


class ForkingEnv(CountingEnv):
    """A `CountingEnv` whose live episodes can be copied; counts copies that are open."""

    can_fork = True
    open_copies = 0
    made = 0

    def __init__(self, *, fork_fails: bool = False, copies_fail: bool = False, **more: Any) -> None:
        super().__init__(**more)
        self.fork_fails, self.copies_fail = fork_fails, copies_fail
        self.is_copy = False

    def fork(self, n: int) -> list[ForkingEnv]:
        if self.fork_fails or (self.copies_fail and self.is_copy):
            raise EnvironmentFailure("sandbox_died", "no copy")
        copies = []
        for _ in range(n):
            made = ForkingEnv(copies_fail=self.copies_fail, chatty=self.chatty, delay_s=self.delay_s)
            made.turns, made.seed, made.count, made.actions = self.turns, self.seed, self.count, list(self.actions)
            made.is_copy = True
            copies.append(made)
        ForkingEnv.open_copies += n
        ForkingEnv.made += n
        return copies

    def step(self, action: str) -> Any:
        if self.is_copy and self.copies_fail:
            failure = {"kind": "sandbox_died", "message": "gone", "retryable": True}
            return "", math.nan, False, True, self._info() | {"failure": failure}
        return super().step(action)

    def close(self) -> None:
        ForkingEnv.open_copies -= self.is_copy
        self.is_copy = False


@pytest.fixture(scope="module")
def policy() -> LLMPolicy:
    torch.set_num_threads(1)
    tokenizer: PreTrainedTokenizerFast = train_tokenizer(TEXTS, 300)
    return tiny_policy(tokenizer)


def vector(n: int = 5, workers: int = 0, **kwargs: Any) -> ToolVectorEnv:
    return ToolVectorEnv([lambda: ForkingEnv(**kwargs)] * n, workers=workers)


def specs(groups: int = 4) -> list[EpisodeSpec]:
    trunks = BranchingConfig(share=1.0, branches=BRANCHES).trunks(SIZE)
    return [
        EpisodeSpec(task_id=f"t{group % 4 + 2}", seed=group, replica=i, group=group, trunk=trunk)
        for group in range(groups)
        for i, trunk in enumerate(trunks)
    ]


def run(policy: LLMPolicy, envs: ToolVectorEnv, todo: list[EpisodeSpec], **changes: Any) -> list[Episode]:
    options: dict[str, Any] = {"sampling": SAMPLING, "seed_parts": (0, "rollout", 1)} | changes
    return collect(policy, envs, todo, **options)


def pairs(todo: list[EpisodeSpec], episodes: list[Episode]) -> list[tuple[Episode, Episode]]:
    """Each branch with its trunk."""
    by_name = {(spec.group, spec.replica): e for spec, e in zip(todo, episodes, strict=True)}
    return [
        (e, by_name[spec.group, spec.trunk])
        for spec, e in zip(todo, episodes, strict=True)
        if spec.trunk is not None and e.trajectories[0].forked_at is not None
    ]


def test_a_group_is_divided_into_trees_and_others() -> None:
    assert BranchingConfig(share=0.75, branches=3).trunks(8) == [None] * 4 + [0, 0, 1, 1]
    assert BranchingConfig(share=0.1, branches=4).trunks(5) == [None] * 2 + [0, 0, 0]
    assert BranchingConfig().trunks(3) == [None] * 3
    with pytest.raises(ConfigError, match=r"^rollout\.branching\.branches=3: must be at most grpo\.group_size=2$"):
        BranchingConfig(share=0.5).trunks(2)


@pytest.mark.parametrize("at", ["uniform", "entropy"])
@pytest.mark.parametrize("schedule", ["fixed", "refill"])
def test_branches_share_the_trunks_tokens_and_go_their_own_ways(policy: LLMPolicy, at: Any, schedule: Any) -> None:
    todo, telemetry = specs(), CollectorTelemetry()
    episodes = run(policy, vector(), todo, fork_at=at, schedule=schedule, telemetry=telemetry)
    found = pairs(todo, episodes)
    assert len(found) == 4 * 4  # every trunk has at least two turns here
    for branch, trunk in found:
        ours, theirs = branch.trajectories[0], trunk.trajectories[0]
        k = ours.forked_at
        assert k is not None
        assert 1 <= k < len(theirs.turns)
        assert ours.turns[:k] == theirs.turns[:k]
        assert (branch.task_id, branch.info["trunk"]) == (trunk.task_id, trunk.info["replica"])
        start = ours.turns[k].start
        assert start == theirs.turns[k].start
        for array in ("token_ids_T", "action_mask_T", "logprobs_T"):
            np.testing.assert_array_equal(
                getattr(ours.segments[0], array)[:start], getattr(theirs.segments[0], array)[:start]
            )
        assert len(ours.turns) == branch.level  # the copy had counted the shared turns
        (own,) = ours.own_segments()
        assert not own.action_mask_T[:start].any()
        np.testing.assert_array_equal(own.action_mask_T[start:], ours.segments[0].action_mask_T[start:])
        assert np.isnan(own.logprobs_T[:start]).all()
    assert any(b.trajectories[0].turns != t.trajectories[0].turns for b, t in found)
    sampled = sum(int(s.action_mask_T.sum()) for e in episodes for s in e.trajectories[0].own_segments())
    assert telemetry.sampled_tokens == sampled  # shared tokens were sampled once
    assert telemetry.forks >= 4 * 2 * (BRANCHES - 1)
    assert ForkingEnv.open_copies == 0


def test_logprobs_of_branches_are_the_models_own(policy: LLMPolicy) -> None:
    todo = specs(2)
    for branch, _ in pairs(todo, run(policy, vector(), todo)):
        (segment,) = branch.trajectories[0].segments
        ids = torch.from_numpy(segment.token_ids_T.astype(np.int64))
        with torch.no_grad():
            logits = policy.model(input_ids=ids[None]).logits[0, :-1]
        wanted = logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]].numpy()
        mask = segment.action_mask_T
        np.testing.assert_allclose(segment.logprobs_T[mask], wanted[mask[1:]], atol=1e-5, rtol=0)


def test_the_fixed_schedule_is_bit_exact_and_others_members_are_as_without_branches(policy: LLMPolicy) -> None:
    todo = specs()
    first = run(policy, vector(workers=3, delay_s=0.001), todo, schedule="fixed")
    assert same(first, run(policy, vector(workers=3), todo, schedule="fixed"))
    alone = [EpisodeSpec(task_id=s.task_id, seed=s.seed, replica=s.replica, group=s.group) for s in todo]
    plain = run(policy, vector(), alone, schedule="fixed")
    for spec, ours, theirs in zip(todo, first, plain, strict=True):
        if spec.trunk is None:
            assert [t.action for t in ours.trajectories[0].turns] == [t.action for t in theirs.trajectories[0].turns]


def test_records_keep_the_fork(policy: LLMPolicy) -> None:
    todo = specs(1)
    for branch, _ in pairs(todo, run(policy, vector(), todo)):
        again = episode_from_record(episode_to_record(branch))
        assert again.trajectories[0].forked_at == branch.trajectories[0].forked_at
        assert again.info["trunk"] == branch.info["trunk"]


def test_short_trunks_have_branches_that_start_afresh(policy: LLMPolicy) -> None:
    todo = [EpisodeSpec(task_id="t1", seed=3, replica=i, trunk=0 if i else None) for i in range(3)]
    episodes = run(policy, vector(), todo)
    assert [e.trajectories[0].forked_at for e in episodes] == [None] * 3
    assert all("trunk" not in e.info and len(e.trajectories[0].turns) == 1 for e in episodes)


def test_branches_that_cannot_be_copied_are_masked_and_their_trunk_stands(policy: LLMPolicy) -> None:
    """The copy that was kept of the trunk cannot be copied again."""
    todo = specs(1)
    episodes = run(policy, vector(copies_fail=True), todo)
    for spec, one in zip(todo, episodes, strict=True):
        assert one.failed == (spec.trunk is not None)
        assert math.isnan(one.reward) == one.failed
    assert all(branch.trajectories[0].forked_at for branch, _ in pairs(todo, episodes))
    assert ForkingEnv.open_copies == 0


def test_a_lone_branch_that_fails_after_its_fork_is_masked(policy: LLMPolicy) -> None:
    """With one branch the snapshot itself goes on, and its first step fails; there is nothing to try again from."""
    todo = [EpisodeSpec(task_id="t5", seed=3, replica=i, trunk=0 if i else None) for i in range(2)]
    telemetry = CollectorTelemetry()
    trunk, branch = run(policy, vector(copies_fail=True), todo, telemetry=telemetry)
    assert not trunk.failed
    assert (branch.failed, telemetry.retries) == (True, 0)
    assert ForkingEnv.open_copies == 0


def test_where_copies_cannot_be_made_branches_start_afresh(policy: LLMPolicy) -> None:
    episodes = run(policy, vector(fork_fails=True), specs(1))
    assert [e.trajectories[0].forked_at for e in episodes] == [None] * SIZE
    assert not any(e.failed for e in episodes)


def test_a_trunk_that_fails_is_tried_again_and_forked_anew(policy: LLMPolicy) -> None:
    todo = [EpisodeSpec(task_id="t5", seed=3, replica=i, trunk=0 if i else None) for i in range(3)]
    failing = vector(1, failures={3: 1})  # the second turn fails once
    episodes = run(policy, failing, todo)
    assert not any(e.failed for e in episodes)
    assert same(episodes, run(policy, vector(1), todo), within=1e-5)  # guesses learn from what failed
    lost = run(policy, vector(1, failures={3: 9}), todo)  # and now always
    assert all(e.failed for e in lost)
    assert [e.trajectories[0].forked_at for e in lost] == [None] * 3
    assert ForkingEnv.open_copies == 0


def test_an_interrupted_collection_leaves_no_copies(policy: LLMPolicy) -> None:
    envs, before = vector(), ForkingEnv.made
    original = list(envs.envs)

    def stop(done: int, total: int) -> None:
        if ForkingEnv.made > before + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(policy, envs, specs(), on_progress=stop)
    assert ForkingEnv.open_copies == 0
    assert envs.envs == original


def test_environments_that_cannot_fork_are_named(policy: LLMPolicy) -> None:
    with pytest.raises(ConfigError, match=r"^CountingEnv cannot be forked$"):
        run(policy, ToolVectorEnv([CountingEnv], workers=0), specs(1))
    limited = ToolVectorEnv([lambda: gym.wrappers.TimeLimit(ForkingEnv(), 5)], workers=0)
    with pytest.raises(ConfigError, match=r"^ForkingEnv cannot be forked inside TimeLimit$"):
        run(policy, limited, specs(1))
    with pytest.raises(ConfigError, match=r"^trunk=7: is no episode of group 0 that starts afresh$"):
        run(policy, vector(), [EpisodeSpec(task_id="t3", seed=0, trunk=7)])


def test_uniform_choice_is_uniform_and_entropy_takes_the_most_surprising() -> None:
    counts = np.zeros(5)
    for seed in range(2000):
        fork = ForkPoint("uniform", generator("test", seed))
        counts[[i for i in range(5) if fork.wants([])][-1]] += 1
    assert counts.min() > 330
    assert counts.max() < 470
    fork = ForkPoint("entropy", generator("test", 0))
    assert [fork.wants([-x, -x]) for x in (0.1, 0.3, 0.2, 0.3, 0.5)] == [True, True, False, False, True]

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from palaestra.agents.evaluation import EvalOptions, evaluate_policy
from palaestra.agents.evaluation_journal import Journal, attempt_key
from palaestra.agents.llm import LLMPolicy
from palaestra.agents.rollout import CollectorTelemetry, EpisodeSpec, collect
from palaestra.core.errors import ConfigError
from palaestra.core.messages import tool, user
from palaestra.core.records import episode_from_record, episode_to_record
from palaestra.core.spaces import Unicode
from palaestra.core.trajectories import Episode, Sampling
from palaestra.envs.vector import ToolVectorEnv
from palaestra.models.loading import ModelConfig, build_model
from palaestra.models.tokenizers import train_tokenizer

TEMPLATES = Path(__file__).parents[1] / "models" / "templates"
TEXTS = ["Count to 3, please.", "number 2 of 5, said run", "run\nx = x[::2]", "submit"] * 20
SAMPLING = Sampling(max_turn_tokens=12, max_context_tokens=256)


class CountingEnv(gym.Env[str, str]):
    """Ends after as many turns as the task says; answers with text whose length varies."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    observation_space, action_space = Unicode(), Unicode()

    def __init__(self, *, delay_s: float = 0.0, failures: dict[int, int] | None = None, chatty: int = 1) -> None:
        self.delay_s, self.failures, self.chatty = delay_s, failures if failures is not None else {}, chatty
        self.actions: list[str] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        self.turns = int(options.get("task_id", f"t{(seed or 0) % 5 + 1}").removeprefix("t"))
        self.seed, self.count, self.actions = seed or 0, 0, []
        text = f"Count to {self.turns}, please."
        info = self._info() | {"messages": [user(text)], "tools": []}
        return text, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self.delay_s * (1 + self.seed % 3))
        self.count += 1
        self.actions.append(action)
        left = self.failures.get(self.seed, 0)
        if left and self.count == 2:
            self.failures[self.seed] = left - 1
            failure = {"kind": "sandbox_died", "message": "gone", "retryable": True}
            return "", math.nan, False, True, self._info() | {"failure": failure}
        done = self.count >= self.turns
        text = "" if done else f"number {self.count} of {self.turns}, said {action[:8]}" + "." * (self.count % 3)
        text *= self.chatty
        messages = [] if done else [tool(text)]
        info = self._info() | {"messages": messages}
        if done:
            info |= {"success": len(action) % 2 == 0, "stop_reason": "submitted", "reward_components": {"a": 1.0}}
        return text, float(done and len(action) % 2 == 0), done, False, info

    def _info(self) -> dict[str, Any]:
        return {
            "task_id": f"t{self.turns}",
            "family": "counting",
            "level": self.turns,
            "success": None,
            "reward_components": {},
            "stop_reason": None,
            "parse_error": "no action" if self.count % 2 else None,
            "failure": None,
            "messages": [],
            "anchor": f"at {self.count}",
        }


def tiny_policy(tokenizer: PreTrainedTokenizerFast, seed: int = 0, end_bias: float = 3.0) -> LLMPolicy:
    """A random model that ends its turns after a few tokens."""
    config = ModelConfig(hidden_size=32, heads=2, kv_heads=1, intermediate_size=48, context=256, tie=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = build_model(config, len(tokenizer), seed, pad_id=0, eos_id=int(end)).eval()  # pyright: ignore
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 3.0
        model.lm_head.weight[end, 0] = end_bias / 4
    return LLMPolicy(model, tokenizer)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    torch.set_num_threads(1)
    return train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="module")
def policy(tokenizer: PreTrainedTokenizerFast) -> LLMPolicy:
    return tiny_policy(tokenizer)


def vector(n: int, workers: int = 0, **kwargs: Any) -> ToolVectorEnv:
    return ToolVectorEnv([lambda: CountingEnv(**kwargs)] * n, workers=workers)


def specs(groups: int = 4, size: int = 3) -> list[EpisodeSpec]:
    return [
        EpisodeSpec(task_id=f"t{group % 5 + 1}", seed=group, replica=i, group=group)
        for group in range(groups)
        for i in range(size)
    ]


def run(policy: LLMPolicy, envs: ToolVectorEnv, todo: list[EpisodeSpec], **changes: Any) -> list[Episode]:
    options: dict[str, Any] = {"sampling": SAMPLING, "seed_parts": (0, "rollout", 1)} | changes
    return collect(policy, envs, todo, **options)


# -------------------------------------------------------------------------------------------------------- the record
def test_episodes_come_in_order_with_the_tokens_that_were_sampled(policy: LLMPolicy) -> None:
    todo = specs()
    episodes = run(policy, vector(5), todo)
    for spec, episode in zip(todo, episodes, strict=True):
        assert (episode.task_id, episode.seed) == (spec.task_id, spec.seed)
        assert (episode.info["group"], episode.info["replica"]) == (spec.group, spec.replica)
        assert (episode.family, episode.level, episode.stop_reason) == ("counting", spec.seed % 5 + 1, "submitted")
        assert (episode.terminated, episode.truncated, episode.failure) == (True, False, None)
        assert episode.reward == float(bool(episode.success))
        assert episode.reward_components == {"a": 1.0}
        trajectory = episode.trajectories[0]
        assert len(trajectory.turns) == episode.level
        assert trajectory.sampling == SAMPLING
        (segment,) = trajectory.segments
        ids = segment.token_ids_T.tolist()
        spans = np.zeros(len(ids), dtype=bool)
        for turn in trajectory.turns:
            spans[turn.start : turn.stop] = True
            assert policy.chat.decode(ids[turn.start : turn.stop]) == turn.action
            assert 1 <= turn.stop - turn.start <= SAMPLING.max_turn_tokens
        np.testing.assert_array_equal(segment.action_mask_T, spans)
        np.testing.assert_array_equal(np.isnan(segment.logprobs_T), ~spans)
        assert [turn.parse_error for turn in trajectory.turns[:2]] == ["no action", None][: episode.level]
        assert [turn.anchor for turn in trajectory.turns] == [f"at {count}" for count in range(episode.level)]


def test_logprobs_are_the_models_own(policy: LLMPolicy) -> None:
    for episode in run(policy, vector(4), specs()):
        (segment,) = episode.trajectories[0].segments
        ids = torch.from_numpy(segment.token_ids_T.astype(np.int64))
        with torch.no_grad():
            logits = policy.model(input_ids=ids[None]).logits[0, :-1]
        wanted = logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]].numpy()
        mask = segment.action_mask_T
        np.testing.assert_allclose(segment.logprobs_T[mask], wanted[mask[1:]], atol=1e-5, rtol=0)


def test_the_text_of_an_episode_is_the_conversation(policy: LLMPolicy) -> None:
    for episode in run(policy, vector(4), specs()):
        trajectory = episode.trajectories[0]
        text = str(policy.tokenizer.decode(trajectory.segments[0].token_ids_T.tolist()))
        assert text.startswith(
            f"<|im_start|>user\nCount to {episode.level}, please.<|im_end|>\n<|im_start|>assistant\n"
        )
        assert trajectory.turns[0].messages == (user(f"Count to {episode.level}, please."),)
        for turn, following in zip(trajectory.turns, trajectory.turns[1:], strict=False):
            assert following.messages == (tool(turn.observation),)
            reply = f"\n<|im_start|>tool\n{turn.observation}<|im_end|>\n<|im_start|>assistant\n"
            assert f"{turn.action}<|im_end|>{reply}{following.action}" in text


def test_recorded_episodes_survive_their_file_format(policy: LLMPolicy) -> None:
    for episode in run(policy, vector(4), specs(2)):
        again = episode_from_record(episode_to_record(episode))
        np.testing.assert_array_equal(
            again.trajectories[0].segments[0].logprobs_T, episode.trajectories[0].segments[0].logprobs_T
        )
        assert again.trajectories[0].turns == episode.trajectories[0].turns


def test_an_action_that_is_cut_off_is_handed_over_and_closed_as_context(tokenizer: PreTrainedTokenizerFast) -> None:
    endless = tiny_policy(tokenizer, end_bias=-60.0)
    envs = vector(1)
    (episode,) = run(
        endless, envs, [EpisodeSpec(task_id="t3", seed=0)], sampling=Sampling(max_turn_tokens=4, max_context_tokens=256)
    )
    (segment,) = episode.trajectories[0].segments
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for turn in episode.trajectories[0].turns[:-1]:
        assert turn.stop - turn.start == 4
        assert segment.token_ids_T[turn.stop] == end
        assert not segment.action_mask_T[turn.stop]
    assert envs.envs[0].actions == [turn.action for turn in episode.trajectories[0].turns]


# ------------------------------------------------------------------------------------------------------- determinism
def same(first: list[Episode], second: list[Episode], within: float = 0.0) -> bool:
    """Whether tokens and results are equal, and log-probabilities within so much."""
    pairs = zip(first, second, strict=True)
    return all(
        np.array_equal(a.trajectories[0].segments[0].token_ids_T, b.trajectories[0].segments[0].token_ids_T)
        and np.allclose(
            *(each.trajectories[0].segments[0].logprobs_T for each in (a, b)), rtol=0.0, atol=within, equal_nan=True
        )
        and (a.reward, a.success) == (b.reward, b.success)
        for a, b in pairs
    )


def test_the_fixed_schedule_repeats_to_the_last_bit_whatever_the_environments_speed(
    policy: LLMPolicy, tokenizer: PreTrainedTokenizerFast
) -> None:
    first = run(policy, vector(5), specs(), schedule="fixed")
    assert same(first, run(policy, vector(5), specs(), schedule="fixed"))
    assert same(first, run(policy, vector(5, workers=5, delay_s=0.002), specs(), schedule="fixed"))
    assert same(first, run(tiny_policy(tokenizer), vector(5), specs(), schedule="fixed"))
    assert not same(first, run(policy, vector(5), specs(), schedule="fixed", seed_parts=(0, "rollout", 2)))


def test_the_refill_schedule_gives_the_same_episodes(policy: LLMPolicy) -> None:
    """An episode's tokens come from its own generator; only the last bits of log-probs may depend on the batch."""
    fixed = run(policy, vector(5), specs(), schedule="fixed")
    refill = run(policy, vector(3, workers=3, delay_s=0.002), specs(), schedule="refill")
    for a, b in zip(fixed, refill, strict=True):
        assert [turn.action for turn in a.trajectories[0].turns] == [turn.action for turn in b.trajectories[0].turns]


def test_members_of_a_group_differ_and_greedy_ones_do_not(policy: LLMPolicy) -> None:
    members = [EpisodeSpec(task_id="t3", seed=0, replica=i) for i in range(4)]
    actions = {episode.trajectories[0].turns[0].action for episode in run(policy, vector(4), members)}
    assert len(actions) > 1
    greedy = run(policy, vector(4), members, sampling=Sampling(temperature=0.0, max_turn_tokens=5))
    assert len({episode.trajectories[0].turns[0].action for episode in greedy}) == 1


# ------------------------------------------------------------------------------------------------- limits, failures
@pytest.mark.parametrize("limit", [60, 90, 130])
def test_the_context_limit_ends_episodes_from_outside(policy: LLMPolicy, limit: int) -> None:
    sampling = Sampling(max_turn_tokens=12, max_context_tokens=limit)
    episodes = run(
        policy, vector(4, chatty=2), [EpisodeSpec(task_id="t5", seed=i) for i in range(6)], sampling=sampling
    )
    cut = [episode for episode in episodes if episode.stop_reason == "context_limit"]
    assert cut
    for episode in cut:
        assert (episode.terminated, episode.truncated) == (False, True)
        assert (episode.reward, episode.success, episode.failure) == (0.0, False, None)
    for episode in episodes:
        for turn in episode.trajectories[0].turns:
            assert turn.stop <= limit
        for segment in episode.trajectories[0].segments:
            assert len(segment) <= limit, "learners feed whole segments to the model"


def test_a_prompt_without_room_gives_an_episode_without_turns(policy: LLMPolicy) -> None:
    (episode,) = run(policy, vector(1), [EpisodeSpec(task_id="t2", seed=0)], sampling=Sampling(max_context_tokens=5))
    assert (episode.stop_reason, episode.truncated) == ("context_limit", True)
    assert episode.trajectories[0].turns == ()
    assert not episode.trajectories[0].segments[0].action_mask_T.any()


def test_the_models_own_context_is_a_limit_too(policy: LLMPolicy) -> None:
    sampling = Sampling(max_turn_tokens=12, max_context_tokens=100_000)
    episodes = run(
        policy, vector(2, chatty=9), [EpisodeSpec(task_id="t9", seed=i) for i in range(2)], sampling=sampling
    )
    assert {episode.stop_reason for episode in episodes} == {"context_limit"}


def test_a_failed_episode_is_retried_once_with_the_same_randomness(policy: LLMPolicy) -> None:
    todo, telemetry = specs(), CollectorTelemetry()
    clean = run(policy, vector(5), todo, schedule="fixed")
    retried = run(policy, vector(5, failures={2: 1}), todo, schedule="fixed", telemetry=telemetry)
    assert [episode.info["attempts"] for episode in retried].count(2) == 1
    assert telemetry.retries == 1
    for a, b in zip(clean, retried, strict=True):
        assert [turn.action for turn in a.trajectories[0].turns] == [turn.action for turn in b.trajectories[0].turns]


@pytest.mark.parametrize("times", [1, 99])
def test_a_reset_that_fails_is_retried_and_then_recorded(policy: LLMPolicy, times: int) -> None:
    left = {2: times}

    class Unlucky(CountingEnv):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            text, info = super().reset(seed=seed, options=options)
            if left.get(seed or 0, 0):
                left[seed or 0] -= 1
                info |= {"messages": [], "failure": {"kind": "sandbox_died", "message": "gone", "retryable": True}}
                return "", info
            return text, info

    todo = [EpisodeSpec(task_id="t2", seed=i) for i in range(4)]
    episodes = run(policy, ToolVectorEnv([Unlucky] * 2, workers=0), todo)
    assert [episode.failed for episode in episodes] == [False, False, times > 1, False]
    assert math.isnan(episodes[2].reward) == (times > 1)
    assert episodes[2].info["attempts"] == 2


def test_a_failure_that_stays_is_recorded_and_never_scored(policy: LLMPolicy) -> None:
    episodes = run(policy, vector(5, failures={2: 99}), specs())
    for episode in episodes:
        if episode.seed == 2:
            assert episode.failed
            assert math.isnan(episode.reward)
            assert (episode.success, episode.stop_reason, episode.truncated) == (None, "failed", True)
            assert episode.failure is not None
            assert episode.failure["kind"] == "sandbox_died"
        else:
            assert episode.failure is None


def test_an_error_in_an_environment_is_not_swallowed(policy: LLMPolicy) -> None:
    class Broken(CountingEnv):
        def step(self, action: str) -> Any:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(policy, ToolVectorEnv([Broken] * 2, workers=0), specs(1))
    assert len(run(policy, vector(2), specs(1))) == 3, "the policy's engine is clean again"


def test_an_unknown_schedule_is_refused(policy: LLMPolicy) -> None:
    with pytest.raises(ConfigError, match="schedule='lockstep'"):
        run(policy, vector(1), specs(1), schedule="lockstep")


# ------------------------------------------------------------------------------------------------- progress and time
def test_progress_and_telemetry(policy: LLMPolicy) -> None:
    seen: list[tuple[int, int]] = []
    telemetry = CollectorTelemetry()
    envs = vector(3, delay_s=0.001)
    episodes = run(policy, envs, specs(), on_progress=lambda done, n: seen.append((done, n)), telemetry=telemetry)
    assert seen[-1] == (12, 12)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert telemetry.sampled_tokens == sum(episode.trajectories[0].action_token_count for episode in episodes)
    assert telemetry.turns == sum(len(episode.trajectories[0].turns) for episode in episodes)
    assert telemetry.seconds_environment >= 0.001 * telemetry.turns
    assert telemetry.seconds_generation > 0
    shares = sum(episode.info["environment_s"] for episode in episodes)
    assert shares == pytest.approx(telemetry.seconds_environment, rel=0.05)


def test_slow_environments_do_not_hold_up_the_others(policy: LLMPolicy) -> None:
    """While one environment sleeps, the others' episodes go on and end."""
    release = threading.Event()

    class Sleeper(CountingEnv):
        def step(self, action: str) -> Any:
            if self.seed == 0:
                assert release.wait(60)
            return super().step(action)

    def on_progress(done: int, _: int) -> None:
        if done == 11:
            release.set()

    todo = [EpisodeSpec(task_id="t2", seed=i) for i in range(12)]
    episodes = run(policy, ToolVectorEnv([Sleeper] * 4, workers=4), todo, on_progress=on_progress)
    assert len(episodes) == 12


def test_changed_weights_are_used_at_once(tokenizer: PreTrainedTokenizerFast) -> None:
    changing, other = tiny_policy(tokenizer, seed=1), tiny_policy(tokenizer, seed=2)
    run(changing, vector(3), specs(1))
    changing.model.load_state_dict(other.model.state_dict())
    changing.weights_changed()
    episodes = run(changing, vector(3), specs(1), schedule="fixed")
    assert same(episodes, run(other, vector(3), specs(1), schedule="fixed"))
    assert {turn.policy_version for turn in episodes[0].trajectories[0].turns} == {1}


# -------------------------------------------------------------------------------------- templates that rewrite history
def test_a_rewritten_history_starts_a_segment(tokenizer: PreTrainedTokenizerFast) -> None:
    class Talkative(CountingEnv):
        """Answers as a user, before whom this template strips reasoning."""

        def step(self, action: str) -> Any:
            observation, reward, terminated, truncated, info = super().step(action)
            info["messages"] = [] if terminated else [user(observation)]
            return observation, reward, terminated, truncated, info

    thinking = tiny_policy(tokenizer)
    reader = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        chat_template=(TEMPLATES / "qwen3_style.jinja").read_text(),
    )
    policy = LLMPolicy(thinking.model, reader)
    spoken: Callable[..., list[str]] = policy.chat.decode_batch
    policy.chat.decode_batch = lambda actions: [f"<think>hm</think>{text}" for text in spoken(actions)]  # pyright: ignore
    episodes = run(
        policy, ToolVectorEnv([Talkative] * 2, workers=0), [EpisodeSpec(task_id="t3", seed=i) for i in range(4)]
    )
    for episode in episodes:
        trajectory = episode.trajectories[0]
        assert [turn.segment for turn in trajectory.turns] == [0, 1, 2]
        assert len(trajectory.segments) == 3
        for turn in trajectory.turns:
            assert trajectory.segments[turn.segment].action_mask_T[turn.start : turn.stop].all()
        assert "</think>" not in str(reader.decode(trajectory.segments[2].token_ids_T.tolist()))


# --------------------------------------------------------------------------------------------------------- evaluation
def test_each_episode_is_handed_over_when_it_ends(policy: LLMPolicy) -> None:
    ended: list[Episode] = []
    done_then: list[int] = []
    episodes = run(
        policy,
        vector(3),
        specs(),
        on_episode=ended.append,
        on_progress=lambda done, total: done_then.append(len(ended) - done),
    )
    assert {id(episode) for episode in ended} == {id(episode) for episode in episodes}
    assert len(ended) == len(episodes)
    assert set(done_then) == {0}


def test_an_evaluation_of_a_model_runs_what_its_journal_lacks(policy: LLMPolicy) -> None:
    compact = {"prompt_style": "compact", "max_turns": 2}
    options = EvalOptions(n=3, samples=2, levels=(1,), num_envs=4, max_turn_tokens=8, env_kwargs=compact)
    whole = evaluate_policy(policy, "CodeSandbox-v0", options)
    assert [attempt_key(episode) for episode in whole] == [(i, j) for i in range(3) for j in range(2)]
    actions = [tuple(turn.action for turn in episode.trajectories[0].turns) for episode in whole]
    assert actions[0] != actions[1], "attempts at one task are sampled apart"
    journal, ticks = Journal(), []
    for episode in whole[:5]:
        journal.add(episode)
    again = evaluate_policy(
        policy,
        "CodeSandbox-v0",
        options,
        journal=journal,
        on_progress=lambda done, total: ticks.append((done, total)),
    )
    assert ticks == [(6, 6)]
    assert all(kept is episode for kept, episode in zip(again[:5], whole[:5], strict=True))
    assert tuple(turn.action for turn in again[5].trajectories[0].turns) == actions[5]

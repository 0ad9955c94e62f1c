"""GRPO whose episodes a server samples: the tokens and weights of a run in one process, and what a lost server does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import listening_env  # noqa: F401  (registers Listening-v0)
import numpy as np
import pytest
import torch
from seeded_engine import SeededEngine
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from palaestra.agents.llm import LLMPolicy
from palaestra.agents.rollout import EpisodeSpec, collect
from palaestra.core.errors import ConfigError, EnvironmentFailure
from palaestra.core.trajectories import Episode, Group, Sampling
from palaestra.envs.registration import make_vector_env
from palaestra.learners.checkpoint import CheckpointStore
from palaestra.learners.collection import GroupCollector
from palaestra.learners.config import Recipe, load_recipe
from palaestra.learners.grpo import GRPOLearner, train_grpo
from palaestra.learners.rollout_engine import check_engine, make_policy
from palaestra.models.adapters import LoRAConfig, add_adapter
from palaestra.models.engine import GenerationRequest
from palaestra.models.loading import ModelConfig, build_model
from palaestra.models.served_model import ServedModel
from palaestra.models.server import ModelServer
from palaestra.models.tokenizers import train_tokenizer

STEPS = 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["say abc", "heard 12", "the quick brown fox jumps over the lazy dog"] * 20, 300)


def model(tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    config = ModelConfig(hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=48, context=160)
    return build_model(config, len(tokenizer), seed, pad_id=0, eos_id=2).eval()


@pytest.fixture
def server(tokenizer: PreTrainedTokenizerFast) -> Iterator[ModelServer]:
    """Serves other weights than those that are trained."""
    served = ServedModel(model(tokenizer, 5), tokenizer, name="tiny", folder="nowhere", rows=16, max_context=160)
    with ModelServer(served, host="127.0.0.1", port=0, weight_updates=True) as server:
        yield server


def recipe(folder: Path, *more: str) -> Recipe:
    return load_recipe(
        "quickstart",
        [
            f"run={folder}",
            "processes=1",
            "env.id=Listening-v0",
            "env.families=['letters']",
            "env.levels=[1]",
            "env.max_turns=3",
            "rollout.max_turn_tokens=10",
            "rollout.max_context_tokens=150",
            "rollout.environments=16",
            "grpo.groups_per_step=4",
            "grpo.group_size=4",
            f"grpo.steps={STEPS}",
            "grpo.learning_rate=3e-3",
            "grpo.autocast=none",
            *more,
        ],
    )


def trained(chosen: Recipe, policy: LLMPolicy) -> tuple[list[list[Episode]], list[dict[str, Any]]]:
    """The episodes and metrics of each step."""
    learner = GRPOLearner(policy.model, chosen.grpo, seed=0)
    steps: list[list[Episode]] = []
    with GroupCollector(chosen, policy, 0, 1) as collector:

        def remembered(step: int) -> list[Group]:
            groups = collector(step)
            steps.append([episode for group in groups for episode in group.episodes])
            return groups

        rows = [learner.step(remembered) for _ in range(STEPS)]
    policy.close()
    return steps, rows


def tokens(episodes: list[Episode]) -> list[list[int]]:
    return [s.token_ids_T.tolist() for e in episodes for t in e.trajectories for s in t.segments]


def logprobs(episodes: list[Episode]) -> np.ndarray:
    return np.concatenate([s.logprobs_T for e in episodes for t in e.trajectories for s in t.segments])


def distance(one: PreTrainedModel, other: PreTrainedModel) -> float:
    with torch.no_grad():
        return max(float((a - b).abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("schedule", ["refill", "fixed"])
def test_a_run_on_a_server_is_the_run_in_one_process(
    server: ModelServer, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, schedule: str
) -> None:
    chosen = recipe(tmp_path, f"grpo.schedule={schedule}", "rollout.engine=http", f"rollout.engine_url={server.url}")
    policy = make_policy(chosen, folder=tmp_path, model=model(tokenizer, 0), tokenizer=tokenizer)
    there, rows = trained(chosen, policy)
    mine = model(tokenizer, 0)
    local = LLMPolicy(mine, tokenizer, make_engine=lambda rows, context: SeededEngine(mine, rows, context))
    here, _ = trained(chosen, local)
    assert [tokens(step) for step in there] == [tokens(step) for step in here]
    for step, (given, wanted) in enumerate(zip(there, here, strict=True)):
        assert np.array_equal(np.isnan(logprobs(given)), np.isnan(logprobs(wanted)))
        tolerance = 1e-3 if step else 1e-5  # Adam makes much of the last bits of small gradients
        assert np.nanmax(np.abs(logprobs(given) - logprobs(wanted))) < tolerance
        assert [e.reward for e in given] == [e.reward for e in wanted]
    gap, moved = distance(policy.model, mine), distance(mine, model(tokenizer, 0))
    assert gap < 1e-3
    assert moved > 5 * gap, "the runs did train"
    assert all(row["mismatch_k3"] < 1e-6 for row in rows), "what the server samples with are the learner's weights"
    versions = {turn.policy_version for step in there for e in step for t in e.trajectories for turn in t.turns}
    assert versions == {1, 2, 3}


@pytest.mark.parametrize("sync", ["folder", "lora"])
def test_an_adapter_is_trained_on_a_server_as_in_one_process(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, sync: str
) -> None:
    """With `lora` the server keeps the base that it has; with `folder` it gets merged weights."""

    def adapted() -> PreTrainedModel:
        made = model(tokenizer, 0)
        add_adapter(made, LoRAConfig(rank=4, alpha=8.0), seed=1)
        return made

    served = ServedModel(
        model(tokenizer, 0 if sync == "lora" else 5), tokenizer, name="tiny", folder="nowhere", rows=16, max_context=160
    )
    with ModelServer(served, host="127.0.0.1", port=0, weight_updates=True) as server:
        chosen = recipe(
            tmp_path, 'stages=["grpo"]', "reference=as-loaded", "model.lora.rank=4", "rollout.engine=http",
            f"rollout.engine_url={server.url}", f"rollout.weight_sync={sync}", "grpo.learning_rate=3e-2",
        )  # fmt: skip
        policy = make_policy(chosen, folder=tmp_path, model=adapted(), tokenizer=tokenizer)
        there, rows = trained(chosen, policy)
        mine = adapted()
        local = LLMPolicy(mine, tokenizer, make_engine=lambda rows, context: SeededEngine(mine, rows, context))
        here, _ = trained(chosen, local)
    assert [tokens(step) for step in there] == [tokens(step) for step in here]
    assert all(row["mismatch_k3"] < 1e-6 for row in rows), "what the server samples with are the learner's weights"
    assert distance(policy.model, adapted()) > 1e-3, "the adapter was trained"
    assert rows[-1]["kl_seq"] > 1e-6, "and the server has seen it"


def test_before_there_is_an_adapter_the_server_s_own_model_answers(
    server: ModelServer, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    chosen = recipe(
        tmp_path, 'stages=["grpo"]', "reference=as-loaded", "model.lora.rank=4", "rollout.engine=http",
        f"rollout.engine_url={server.url}", "rollout.weight_sync=lora",
    )  # fmt: skip
    policy = make_policy(chosen, folder=tmp_path, model=model(tokenizer, 5), tokenizer=tokenizer)
    engine = policy.engine(2, 64)
    engine.update_weights(1)
    request = GenerationRequest(
        key=1, token_ids=[5, 6, 7], generator=np.random.default_rng(0), temperature=0.0, max_tokens=4,
        end_ids=frozenset({2}),
    )  # fmt: skip
    (completion,) = engine.generate([request])
    assert completion.finished != "failed"
    assert engine._sync.model == "tiny"  # type: ignore[attr-defined]
    policy.close()


def test_a_lost_server_masks_episodes_and_a_restarted_one_gets_the_weights_again(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed and opened anew on the same port, with the weights that it had at first."""
    monkeypatch.setattr("palaestra.models.http_client.EndpointConfig.__post_init__", _hurried)

    def opened(port: int) -> ModelServer:
        served = ServedModel(model(tokenizer, 5), tokenizer, name="tiny", folder="nowhere", rows=8, max_context=160)
        return ModelServer(served, host="127.0.0.1", port=port, weight_updates=True)

    first = opened(0)
    first.__enter__()
    chosen = recipe(tmp_path, "rollout.engine=http", f"rollout.engine_url={first.url}")
    policy = make_policy(chosen, folder=tmp_path, model=model(tokenizer, 0), tokenizer=tokenizer)
    envs = make_vector_env("Listening-v0", 4, workers=0, on_failure="info")
    specs = [EpisodeSpec(task_id=None, seed=i) for i in range(12)]
    sampling = Sampling(max_turn_tokens=10, max_context_tokens=150)

    def collected(on_episode: Callable[[Episode], None] | None = None) -> list[Episode]:
        return collect(policy, envs, specs, sampling=sampling, seed_parts=("lost",), on_episode=on_episode)

    whole = collected()
    assert not any(episode.failed for episode in whole)
    ended: list[Episode] = []

    def close_after_five(episode: Episode) -> None:
        ended.append(episode)
        if len(ended) == 5:
            first.close()

    episodes = collected(close_after_five)
    failed = [episode for episode in episodes if episode.failed]
    assert len(failed) >= 12 - 5 - 4
    for episode in failed:
        assert math.isnan(episode.reward)
        assert episode.failure is not None
        assert (episode.failure["kind"], episode.info["attempts"]) == ("endpoint", 2)
    done = [(a, b) for a, b in zip(episodes, whole, strict=True) if not a.failed]
    assert len(done) >= 5
    assert all(tokens([a]) == tokens([b]) for a, b in done), "what was done is what it would have been"

    with opened(int(first.url.split(":")[2].split("/")[0])):
        again = collected()
        assert not any(episode.failed for episode in again)
        assert tokens(again) == tokens(whole), "with the trained weights, not with those that the server began with"
        assert 1 <= sum(episode.info["attempts"] == 2 for episode in again) <= 4
        policy.close()
    envs.close()


def test_a_server_that_is_gone_when_weights_are_due_costs_no_step(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("palaestra.models.http_client.EndpointConfig.__post_init__", _hurried)
    served = ServedModel(model(tokenizer, 5), tokenizer, name="tiny", folder="nowhere", rows=16, max_context=160)
    server = ModelServer(served, host="127.0.0.1", port=0, weight_updates=True)
    server.__enter__()
    chosen = recipe(tmp_path, "rollout.engine=http", f"rollout.engine_url={server.url}", "grpo.checkpoint_every=0")
    policy = make_policy(chosen, folder=tmp_path, model=model(tokenizer, 0), tokenizer=tokenizer)
    store = CheckpointStore(tmp_path / "checkpoints")
    learner = GRPOLearner(policy.model, chosen.grpo, seed=0)

    def close_after_one(step: int, row: dict[str, Any]) -> None:
        if step == 1:
            server.close()

    with (
        GroupCollector(chosen, policy, 0, 1) as collector,
        pytest.raises(EnvironmentFailure, match=r"endpoint: .* failed 2 times"),
    ):
        train_grpo(learner, collector, checkpoints=store, after_step=close_after_one)
    checkpoint = store.load_latest()
    assert checkpoint is not None
    assert (checkpoint.stage, checkpoint.step) == ("grpo", 1)
    assert all(
        torch.equal(checkpoint.state["model"][name], weights) for name, weights in learner.model.state_dict().items()
    )
    policy.close()


def _hurried(config: Any) -> None:
    object.__setattr__(config, "tries", 2)
    object.__setattr__(config, "first_pause_s", 0.01)


def test_an_agent_raises_what_became_of_its_server(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("palaestra.models.http_client.EndpointConfig.__post_init__", _hurried)
    served = ServedModel(model(tokenizer, 5), tokenizer, name="tiny", folder="nowhere", rows=8, max_context=160)
    with ModelServer(served, host="127.0.0.1", port=0, weight_updates=True) as server:
        chosen = recipe(tmp_path, "rollout.engine=http", f"rollout.engine_url={server.url}")
        policy = make_policy(chosen, folder=tmp_path, model=model(tokenizer, 0), tokenizer=tokenizer)
        policy.sampling = Sampling(max_turn_tokens=8, max_context_tokens=1000)
        policy.reset("say abc", {}, seed=1)
        first = policy.act("say abc", {})
        kept = policy.engine(1, 1000)
        assert kept.max_context == 160, "the server's, and no reason to make another engine"
    with pytest.raises(EnvironmentFailure, match="failed 2 times"):
        policy.act("heard 3", {})
    assert first
    assert policy.engine(1, 1000) is kept
    policy.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["rollout.engine=http"], "rollout.engine_url='': name the server"),
        (["rollout.engine_url=http://127.0.0.1:1"], "is used with rollout.engine='http' only"),
        (["rollout.engine=http", "rollout.engine_url=http://127.0.0.1:1", "processes=2"], "must be 1 with"),
        (["rollout.engine=grpc"], "rollout.engine='grpc'"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, changes: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe(tmp_path, *changes)


def test_a_server_is_looked_for_before_a_run_begins(
    server: ModelServer, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    http = ["rollout.engine=http", "rollout.engine_url=http://127.0.0.1:9"]
    with pytest.raises(ConfigError, match=r"no server answers at http://127\.0\.0\.1:9"):
        check_engine(recipe(tmp_path, *http))
    check_engine(recipe(tmp_path))
    http[1] = f"rollout.engine_url={server.url}"
    check_engine(recipe(tmp_path, *http))
    with pytest.raises(ConfigError, match="has no model 'huge'; name one of: tiny"):
        check_engine(recipe(tmp_path, *http, "rollout.engine_model=huge"))
    with pytest.raises(ConfigError, match=r"set model\.lora\.rank and stages="):
        recipe(tmp_path, *http, "rollout.weight_sync=lora")

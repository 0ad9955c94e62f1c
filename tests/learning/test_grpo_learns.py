"""Learning is tested by learning: SFT of a tiny model on answers of mixed quality, then GRPO: success must rise."""

import random
import sys
from pathlib import Path

import pytest
import torch

from palaestra.agents.evaluation import EvalOptions, evaluate_policy, summarise
from palaestra.agents.llm import LLMPolicy
from palaestra.agents.rollout import EpisodeSpec, collect
from palaestra.core.messages import user
from palaestra.core.seeding import derive_seed
from palaestra.core.trajectories import Group, Sampling, Turn
from palaestra.envs.registration import make_vector_env
from palaestra.learners.grpo import GRPOConfig, GRPOLearner, train_grpo
from palaestra.learners.logprobs import sequence_kl
from palaestra.learners.sft import SFTConfig, train_sft
from palaestra.models.adapters import LoRAConfig, add_adapter
from palaestra.models.chat import ChatFormat
from palaestra.models.loading import ModelConfig, build_model
from palaestra.models.tokenizers import train_tokenizer

sys.path.append(str(Path(__file__).parent))
from word_env import COLOURS, WORDS  # registers Words-v0

GROUPS, SIZE = 16, 8


def demonstration(rng: random.Random) -> list[Turn]:
    """One answer in the right form; the right word in three of ten cases, else any."""
    colour = rng.choice(COLOURS)
    word = WORDS[COLOURS.index(colour) % len(WORDS)] if rng.random() < 0.3 else rng.choice(WORDS)
    return [Turn(action=f"say\n{word}", observation="", messages=(user(f"{colour} {rng.choice('abcxyz')}"),))]


def sft_policy() -> LLMPolicy:
    """A policy that is right in about half of all cases."""
    rng = random.Random(0)
    turns = [demonstration(rng) for _ in range(2500)]
    tokenizer = train_tokenizer((text for [turn] in turns for text in (turn.messages[0]["content"], turn.action)), 320)
    ids = tokenizer.convert_tokens_to_ids([tokenizer.pad_token, tokenizer.eos_token])
    config = ModelConfig(hidden_size=64, intermediate_size=128, layers=2, heads=4, kv_heads=2, context=128)
    model = build_model(config, len(tokenizer), seed=0, pad_id=ids[0], eos_id=ids[1])
    segments = [segment for [segment] in ChatFormat(tokenizer).render_episodes(turns)]
    train_sft(model, segments, SFTConfig(batch_tokens=300, epochs=2, log_every=50), seed=0)
    return LLMPolicy(model.eval(), tokenizer)


@pytest.mark.parametrize("rank", [0, 8])
def test_grpo_raises_held_out_success_and_keeps_the_kl_in_its_band(rank: int) -> None:
    """Trains all weights, or (`rank` above 0) an adapter, whose reference is the policy without it."""
    torch.set_num_threads(1)
    policy = sft_policy()
    if rank:
        add_adapter(policy.model, LoRAConfig(rank=rank), seed=0)
    options = EvalOptions(n=200, max_turn_tokens=16, max_context_tokens=96)
    before = summarise(evaluate_policy(policy, "Words-v0", options))
    assert 0.3 <= before.success <= 0.65
    config = GRPOConfig(
        steps=25,
        groups_per_step=GROUPS,
        group_size=SIZE,
        learning_rate=1e-2 if rank else 1e-3,
        kl_target=3.0,
        loss_normaliser="constant",
    )
    learner = GRPOLearner(policy.model, config, seed=0)
    envs = make_vector_env("Words-v0", GROUPS * SIZE, workers=0, on_failure="info")

    def groups(step: int) -> list[Group]:
        policy.weights_changed()
        specs = []
        for group in range(GROUPS):
            seed = derive_seed("task", step, group) % 2**31
            task_id = envs.task_set.task(seed).task_id
            specs += [EpisodeSpec(task_id=task_id, seed=seed, replica=i, group=group) for i in range(SIZE)]
        sampling = Sampling(max_turn_tokens=16, max_context_tokens=96)
        episodes = collect(policy, envs, specs, sampling=sampling, seed_parts=(0, step))
        parts = [tuple(episodes[i : i + SIZE]) for i in range(0, len(episodes), SIZE)]
        return [Group(task_id=part[0].task_id, episodes=part) for part in parts]

    rows = []
    train_grpo(learner, groups, after_step=lambda step, row: rows.append(row))
    envs.close()
    policy.weights_changed()
    after = summarise(evaluate_policy(policy, "Words-v0", options))
    with learner.reference.model() as reference:
        kl = sequence_kl(reference, after.episodes)
    assert after.success >= before.success + 0.25
    assert 0.3 <= sum(kl) / len(kl) <= 5.0
    assert rows[-1]["success"] > rows[0]["success"]

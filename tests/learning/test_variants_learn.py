"""Each relative of GRPO learns: two choices in a row, one reward at the end, scored exactly where it never trained."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from palaestra.core.seeding import generator
from palaestra.core.trajectories import Episode, Group, SegmentBuilder, Trajectory, Turn
from palaestra.learners.grpo import GRPOConfig, GRPOLearner

sys.path.append(str(Path(__file__).parents[1] / "learners"))
from tiny_runs import VOCABULARY, episode, tiny_model

GROUPS, SIZE, STEPS = 8, 8, 30
TRAIN, HELD_OUT = range(6, 15), range(15, VOCABULARY)
"""Noise that a prompt begins with."""
EVEN = np.arange(VOCABULARY) % 2 == 0
VARIANTS: dict[str, dict[str, Any]] = {
    "dr_grpo": {"normalise_std": False, "loss_normaliser": "constant", "tokens_per_episode": 2.0},
    "rloo": {"advantage": "rloo", "normalise_std": False},
    "gspo": {"loss": "gspo", "loss_normaliser": "sequences"},
    "cispo": {"loss": "cispo", "clip_low": 1.0},
    "gigpo": {"advantage": "gigpo"},
}


def probabilities(model: Any, prefixes: list[list[int]]) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor(prefixes)).logits[:, -1].double().softmax(-1).numpy()


def seen(noise: int, first: int) -> list[int]:
    """The prompt, the first action, and the observation of whether it was even."""
    return [noise, 3, first, 4 if EVEN[first] else 5]


def score(model: Any, noises: range) -> float:
    """The exact probability of an even token, then an odd one, over the given prompts."""
    first = probabilities(model, [[noise, 3] for noise in noises])
    then = probabilities(model, [seen(noise, token) for noise in noises for token in range(VOCABULARY)])
    odd = then[:, ~EVEN].sum(axis=1).reshape(first.shape)
    return float((first * odd)[:, EVEN].sum(axis=1).mean())


def played(model: Any, step: int) -> list[Group]:
    rng = generator("two choices", step)
    noises = np.repeat(rng.choice(TRAIN, GROUPS), SIZE).tolist()
    first = probabilities(model, [[noise, 3] for noise in noises])
    firsts = [int(rng.choice(VOCABULARY, p=p)) for p in first]
    contexts = [seen(noise, token) for noise, token in zip(noises, firsts, strict=True)]
    then = probabilities(model, contexts)
    thens = [int(rng.choice(VOCABULARY, p=p)) for p in then]
    episodes = [record(contexts[i], thens[i], float(np.log(first[i, firsts[i]])), then[i]) for i in range(len(noises))]
    return [Group(task_id="t", episodes=tuple(episodes[i : i + SIZE])) for i in range(0, len(episodes), SIZE)]


def record(context: list[int], token: int, first_logprob: float, then: np.ndarray) -> Episode:
    reward = float(EVEN[context[2]] and not EVEN[token])
    builder = SegmentBuilder()
    builder.append_context(context[:2])
    builder.append_action(context[2:3], [first_logprob])
    builder.append_context(context[3:])
    builder.append_action([token], [float(np.log(then[token]))])
    turns = (
        Turn(action="", observation="", start=2, stop=3, anchor="first"),
        Turn(action="", observation="", start=4, stop=5, anchor=f"saw {context[3]}", reward=reward),
    )
    return episode((), reward, trajectories=(Trajectory(segments=(builder.build(),), turns=turns),))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_held_out_score_rises(variant: str) -> None:
    torch.set_num_threads(1)
    config = GRPOConfig(
        steps=STEPS,
        groups_per_step=GROUPS,
        group_size=SIZE,
        learning_rate=5e-3,
        warmup_steps=1,
        minibatches=2,  # so that ratios leave 1
        kl_beta=0.02,
        autocast="none",
        **VARIANTS[variant],
    )
    learner = GRPOLearner(tiny_model(), config, seed=0)
    before = score(learner.model, HELD_OUT)
    for _ in range(STEPS):
        learner.step(lambda step: played(learner.model, step))
    assert before < 0.35
    assert score(learner.model, HELD_OUT) > before + 0.5

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from test_grpo import gradient_of, groups_for, step_of
from tiny_runs import CONFIG, tiny_model

from palaestra.learners.config import load_recipe
from palaestra.learners.grpo import GRPOLearner
from palaestra.learners.pipeline import evaluation_options
from palaestra.learners.temperature import temperature_at


def test_values_by_hand() -> None:
    linear = [temperature_at(step, 10, 1.2, 0.8, share=0.5) for step in (1, 2, 3, 5, 6, 10)]
    assert linear == pytest.approx([1.2, 1.1, 1.0, 0.8, 0.8, 0.8])
    cosine = [temperature_at(step, 5, 0.0, 1.0, shape="cosine") for step in range(1, 6)]
    assert cosine == pytest.approx([0.0, 0.5 - math.sqrt(0.125), 0.5, 0.5 + math.sqrt(0.125), 1.0])
    assert [temperature_at(step, 10, 0.7, None) for step in (1, 10)] == [0.7, 0.7]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.14])
def test_a_share_of_no_more_than_a_step_is_a_jump(share: float) -> None:
    assert [temperature_at(step, 10, 1.2, 0.8, share=share) for step in (1, 2)] == [0.8, 0.8]


def test_each_step_trains_at_the_temperature_it_samples_at() -> None:
    """Step 1 of the schedule equals a run at 1.5, and step 2 on the same weights one at 0.5."""
    groups = groups_for(tiny_model())
    moving = dataclasses.replace(CONFIG, steps=2, temperature=1.5, temperature_final=0.5, learning_rate=1e-30)
    learner = GRPOLearner(tiny_model(), dataclasses.replace(moving, max_grad_norm=1e9, kl_target=None), seed=0)
    for temperature in (1.5, 0.5):
        row = learner.step(lambda _: groups)
        assert row["temperature"] == temperature
        fixed = dataclasses.replace(CONFIG, temperature=temperature, learning_rate=1e-30, kl_target=None)
        expected, expected_row = step_of(groups, fixed)
        torch.testing.assert_close(gradient_of(learner.model), expected, rtol=1e-4, atol=1e-7)
        assert row["kl_seq"] == pytest.approx(expected_row["kl_seq"])


def test_evaluation_stays_at_temperature_1(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["grpo.temperature=1.3", "grpo.temperature_final=0.7"])
    assert [recipe.grpo.temperature_at(step) for step in (1, recipe.grpo.steps)] == [1.3, 0.7]
    assert evaluation_options(recipe, "validation", 1.0, 8).sampling().temperature == 1.0

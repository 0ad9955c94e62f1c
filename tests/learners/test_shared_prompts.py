"""Rows that begin alike are scored as whole rows are, gradients included, for models of several families."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_logprobs import architecture
from tiny_runs import CONFIG, VOCABULARY, adapted_model, episode, parameters_of, tiny_model, with_logprobs

from palaestra.core.trajectories import Group, Segment
from palaestra.learners.batch import TokenBatch
from palaestra.learners.grpo import GRPOLearner
from palaestra.learners.logprobs import action_logprobs, logit_head, segment_logprobs
from palaestra.learners.shared_prompts import can_share, prompt_batches, shared_prompts
from palaestra.models.loading import recompute_activations

Shape = list[tuple[int, list[int]]]
"""Groups: length of the prompt, and lengths of what follows it."""
SHAPES = st.lists(
    st.tuples(st.integers(1, 20), st.lists(st.integers(1, 12), min_size=1, max_size=6)), min_size=1, max_size=5
)


def rows(shape: Shape, seed: int = 0) -> list[Segment]:
    rng = np.random.default_rng(seed)
    found: list[Segment] = []
    for prompt_length, rests in shape:
        prompt = rng.integers(0, VOCABULARY, prompt_length)
        for rest in rests:
            mask = np.concatenate([np.zeros(prompt_length, np.bool_), rng.random(rest) < 0.6])
            mask[prompt_length] = True
            ids = np.concatenate([prompt, rng.integers(0, VOCABULARY, rest)]).astype(np.int32)
            found.append(Segment(token_ids_T=ids, action_mask_T=mask, logprobs_T=np.zeros(len(ids), np.float32)))
    order = rng.permutation(len(found))
    return [found[i] for i in order]


def scored(model: Any, segments: list[Segment], share: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    batch = TokenBatch.from_segments(segments)
    prompts = shared_prompts(segments) if share else None
    assert (prompts is not None) == share
    logprobs = action_logprobs(model, batch.input_ids_BT, batch.action_mask_BT, prompts=prompts)
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logprobs.detach(), gradients


@pytest.mark.parametrize("name", ["llama", "qwen3", "cohere scales its logits", "granite divides its logits"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", [[(20, [5, 3, 9, 1])], [(20, [5, 3]), (7, [2, 8, 8]), (16, [1])]])
def test_log_probabilities_and_gradients_are_those_of_whole_rows(name: str, attention: str, shape: Shape) -> None:
    model = architecture(name)
    model.set_attn_implementation(attention)
    head = logit_head(model)
    assert head is not None
    assert can_share(model, head.decoder)
    segments = rows(shape)
    wanted, wanted_gradients = scored(model, segments, share=False)
    got, gradients = scored(model, segments, share=True)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == wanted_gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[key], rtol=1e-4, atol=1e-5)


def test_an_adapter_learns_the_same() -> None:
    model = adapted_model()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    segments = rows([(20, [5, 3, 9, 1])])
    wanted, wanted_gradients = scored(model, segments, share=False)
    got, gradients = scored(model, segments, share=True)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert all(".lora_" in key for key in gradients)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[key], rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.integers(0, 5), st.integers(1, 200))
def test_segments_are_scored_as_they_are_one_by_one(shape: Shape, seed: int, budget: int) -> None:
    model, segments = tiny_model().eval(), rows(shape, seed)
    shared = segment_logprobs(model, segments, batch_tokens=budget, autocast="none")
    for segment, row in zip(segments, shared, strict=True):
        (alone,) = segment_logprobs(model, [segment], autocast="none", share_prompts=False)
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-5)


def test_models_with_sliding_windows_or_recomputed_activations_are_left_alone() -> None:
    gemma = architecture("gemma2 caps its logits")
    head = logit_head(gemma)
    assert head is not None
    assert not can_share(gemma, head.decoder)
    again = tiny_model()
    again.train()
    assert can_share(again, again.get_decoder())
    recompute_activations(again)
    assert not can_share(again, again.get_decoder())
    segments = rows([(20, [5, 3, 9, 1])])
    for model in (gemma, again):
        wanted, got = scored(model, segments, share=False)[0], scored(model, segments, share=True)[0]
        torch.testing.assert_close(got, wanted)


def test_a_model_whose_cache_forgets_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(
        transformers.cache_utils.DynamicLayer,
        "update",
        lambda self, keys, values, *_, **__: (keys, values),
    )
    assert not can_share(model, model.get_decoder())


def test_rows_without_much_in_common_stay_whole() -> None:
    assert shared_prompts(rows([(20, [5]), (20, [5]), (20, [5])])) is None
    assert shared_prompts(rows([(2, [30, 30, 30])])) is None
    found = shared_prompts(rows([(20, [5, 5, 5])]))
    assert found is not None
    assert (tuple(found.ids_GP.shape), found.lengths_G.tolist(), found.longest_rest) == ((1, 19), [19], 6)


@given(SHAPES, st.integers(0, 5), st.integers(1, 300))
def test_batches_hold_every_row_once_and_keep_the_budget(shape: Shape, seed: int, budget: int) -> None:
    segments = rows(shape, seed)
    batches = prompt_batches(segments, budget, np.random.default_rng(seed))
    assert sorted(i for batch in batches for i in batch) == list(range(len(segments)))
    for batch in batches:
        heads = [segments[i].token_ids_T[: int(segments[i].action_mask_T[1:].argmax())].tobytes() for i in batch]
        longest = max(len(head) // 4 for head in heads)
        rest = max(len(segments[i]) - len(head) // 4 for i, head in zip(batch, heads, strict=True))
        whole = len(batch) * max(len(segments[i]) for i in batch)
        assert len(batch) == 1 or min(whole, len(set(heads)) * longest + len(batch) * rest) <= budget
    assert batches == prompt_batches(segments, budget, np.random.default_rng(seed))


def test_equal_prompts_meet_where_that_saves_much_and_rows_of_equal_length_elsewhere() -> None:
    long = rows([(60, [5, 6, 7, 8]), (60, [5, 6, 7, 8])])
    for batch in prompt_batches(long, 130, np.random.default_rng(0)):
        assert len(batch) == 4
        assert len({long[i].token_ids_T[:59].tobytes() for i in batch}) == 1
    short = rows([(6, [5, 60, 5, 60]), (6, [5, 60, 5, 60])])
    for batch in prompt_batches(short, 280, np.random.default_rng(0)):
        assert len(batch) == 4
        assert len({len(short[i]) for i in batch}) == 1


def groups_with_prompts(model: Any) -> list[Group]:
    """Three groups of four episodes with a prompt of their own."""
    found: list[Group] = []
    for number in range(3):
        segments = rows([(18 + number, [3, 6, 9, 4])], seed=number)
        scores = segment_logprobs(model, segments, autocast="none", share_prompts=False)
        episodes = (
            episode((with_logprobs(segment, row),), float(i % 2))
            for i, (segment, row) in enumerate(zip(segments, scores, strict=True))
        )
        found.append(Group(task_id=f"t{number}", episodes=tuple(episodes)))
    return found


@pytest.mark.parametrize("loss", ["clipped", "gspo"])
def test_a_step_of_grpo_changes_the_weights_alike(loss: Any) -> None:
    after: list[torch.Tensor] = []
    for share in (True, False):
        normaliser: Any = "sequences" if loss == "gspo" else "constant"
        config = dataclasses.replace(CONFIG, share_prompts=share, loss=loss, loss_normaliser=normaliser)
        learner = GRPOLearner(tiny_model(), config, seed=0)
        row = learner.step(lambda _: groups_with_prompts(tiny_model()))
        assert row["grad_norm"] > 0.01
        after.append(parameters_of(learner.model))
    assert not torch.equal(after[0], parameters_of(tiny_model()))
    torch.testing.assert_close(after[0], after[1], rtol=1e-4, atol=1e-5)

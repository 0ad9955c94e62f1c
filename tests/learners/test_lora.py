"""SFT and GRPO with an adapter: what moves, what is kept, what the reference is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import adapted_model, adapter_after_a_step, collector, random_segment, tiny_model

from palaestra.core.seeding import generator
from palaestra.learners.batch import TokenBatch
from palaestra.learners.checkpoint import CheckpointStore
from palaestra.learners.distributed import Ranks, launch
from palaestra.learners.grpo import GRPOConfig, GRPOLearner, train_grpo
from palaestra.learners.logprobs import action_logprobs, logit_head, segment_logprobs
from palaestra.learners.optim import Optimisers
from palaestra.learners.sft import SFTConfig, train_sft
from palaestra.models.adapters import LoRAConfig, add_adapter, has_adapter, trained_state
from palaestra.models.loading import recompute_activations

GRPO = GRPOConfig(
    steps=4, groups_per_step=4, group_size=4, autocast="none", schedule="fixed", checkpoint_every=1, learning_rate=1e-2
)


def base_bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if ".lora_" not in name}


def adapter_bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained_state(model).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def sft_segments() -> list[Any]:
    return [random_segment(generator("lora-sft", i)) for i in range(8)]


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_training_changes_the_adapter_alone(stage: str) -> None:
    model = adapted_model()
    base, adapter = base_bits(model), adapter_bits(model)
    if stage == "sft":
        train_sft(model, sft_segments(), SFTConfig(batch_tokens=60, autocast="none", warmup_steps=0), seed=0)
    else:
        learner = GRPOLearner(model, GRPO, seed=0)
        learner.step(collector(Ranks(), learner))
    assert same(base, base_bits(model))
    after = adapter_bits(model)
    assert all(not torch.equal(value, after[name]) for name, value in adapter.items() if "lora_B" in name)
    assert not model.training


def test_the_reference_is_the_base_model_and_no_copy_of_it() -> None:
    model, base = adapted_model(), tiny_model()
    learner = GRPOLearner(model, GRPO, seed=0)
    segments = sft_segments()
    before = segment_logprobs(base, segments, autocast="none")
    for _ in range(2):
        learner.step(collector(Ranks(), learner))
        with learner.reference.model() as reference:
            assert reference is model
            scored = segment_logprobs(reference, segments, autocast="none")
        for wanted_T, got_T in zip(before, scored, strict=True):
            np.testing.assert_array_equal(wanted_T, got_T)
    policy = segment_logprobs(model, segments, autocast="none")
    assert max(np.abs(a - b).max() for a, b in zip(before, policy, strict=True)) > 1e-3
    assert same(base.state_dict(), {n.replace(".base_layer.", "."): v for n, v in base_bits(model).items()})


def test_rows_of_metrics_are_those_of_a_copied_reference() -> None:
    """The same adapter, once against itself switched off and once against a second model."""
    rows = []
    for reference in (None, tiny_model()):
        learner = GRPOLearner(adapted_model(), GRPO, seed=0, reference=reference)
        steps = [learner.step(collector(Ranks(), learner)) for _ in range(3)]
        rows.append([(row["loss"], row["kl_seq"], row["grad_norm"]) for row in steps])
    assert rows[0] == rows[1]
    assert rows[0][-1][1] != 0


def test_muon_leaves_adapters_to_adamw() -> None:
    model = adapted_model()
    [adamw] = Optimisers(model, learning_rate=1e-3, muon_learning_rate=0.02)._optimisers
    assert isinstance(adamw, torch.optim.AdamW)
    assert {id(p) for group in adamw.param_groups for p in group["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }


# ---------------------------------------------------------------------------------------------- gradient checkpointing
def gradients(model: Any, autocast: Any = "none") -> tuple[torch.Tensor, torch.Tensor]:
    batch = TokenBatch.from_segments(sft_segments())
    model.train()
    logprobs = action_logprobs(model, batch.input_ids_BT, batch.action_mask_BT, autocast=autocast)
    logprobs.square().sum().backward()
    return logprobs.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
@pytest.mark.parametrize("lora", [True, False])
def test_recomputed_activations_change_no_gradient(lora: bool, autocast: Any) -> None:
    results, passes = [], []
    for recompute in (False, True):
        model = adapted_model() if lora else tiny_model()
        model.set_attn_implementation("eager")  # autocast would choose it, but not where activations are recomputed
        if recompute:
            recompute_activations(model)
        logit_head(model)
        count: list[int] = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        results.append(gradients(model, autocast))
        passes.append(len(count))
    assert passes == [1, 2]
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0, atol=0)


def test_recomputing_needs_less_memory() -> None:
    from live_bytes import LiveBytes

    peaks = []
    for recompute in (False, True):
        model = tiny_model(num_hidden_layers=8, max_position_embeddings=512, hidden_size=32, intermediate_size=128)
        add_adapter(model, LoRAConfig(rank=4), seed=0)
        if recompute:
            recompute_activations(model)
        model.train()
        batch = TokenBatch.from_segments([random_segment(generator("memory", i), 400) for i in range(4)])
        with LiveBytes() as live:
            action_logprobs(model, batch.input_ids_BT, batch.action_mask_BT).sum().backward()
        peaks.append(live.peak)
    assert peaks[1] < 0.4 * peaks[0]


def test_dropout_is_drawn_again_alike() -> None:
    results = []
    for recompute in (False, True):
        model = adapted_model(recompute=recompute, dropout=0.5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.1)
        torch.manual_seed(0)
        results.append(gradients(model)[1])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------ resume, ranks
def test_checkpoints_hold_the_adapter_alone_and_resume_bit_for_bit(tmp_path: Path) -> None:
    def trained(folder: Path, stop_after: int | None) -> Any:
        learner = GRPOLearner(adapted_model(recompute=True), GRPO, seed=0)

        def after_step(step: int, row: Any) -> None:
            if step == stop_after:
                raise KeyboardInterrupt

        store = CheckpointStore(folder)
        train_grpo(learner, collector(Ranks(), learner), checkpoints=store, resume=True, after_step=after_step)
        return learner.model

    whole = trained(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", 2)
    resumed = trained(tmp_path / "killed", None)
    assert same(adapter_bits(whole), adapter_bits(resumed))
    assert same(base_bits(whole), base_bits(resumed))
    state = torch.load(tmp_path / "killed" / "grpo-00000004" / "state.pt", weights_only=True)
    assert state["model"].keys() == trained_state(whole).keys()
    assert len(state["optimisers"]["optimisers"][0]["state"]) == len(trained_state(whole))


def test_sft_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = SFTConfig(batch_tokens=40, autocast="none", warmup_steps=0, epochs=2, checkpoint_every=1, log_every=1)

    def trained(folder: Path, stop_after: int | None) -> Any:
        model = adapted_model()

        def on_progress(done: int, total: int, row: Any) -> None:
            if done == stop_after:
                raise KeyboardInterrupt

        store = CheckpointStore(folder)
        train_sft(model, sft_segments(), config, seed=0, checkpoints=store, resume=True, on_progress=on_progress)
        return model

    whole = trained(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", 3)
    assert same(adapter_bits(whole), adapter_bits(trained(tmp_path / "killed", None)))


def test_two_processes_that_recompute_take_the_step_of_one_that_does_not() -> None:
    one, two = adapter_after_a_step(Ranks(), False), launch(adapter_after_a_step, 2, (True,))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    np.testing.assert_allclose(two["adapter"], one["adapter"], rtol=1e-3, atol=2e-5)


def test_a_copy_is_the_reference_where_there_is_no_adapter() -> None:
    model = tiny_model()
    learner = GRPOLearner(model, GRPO, seed=0)
    assert not has_adapter(model)
    with learner.reference.model() as reference:
        assert reference is not model
        assert not any(p.requires_grad for p in reference.parameters())
        assert same(dict(reference.state_dict()), copy.deepcopy(dict(tiny_model().state_dict())))

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import VOCABULARY, parameters_of, random_segment, tiny_model

from palaestra.core.errors import ConfigError
from palaestra.core.seeding import generator
from palaestra.core.trajectories import Segment
from palaestra.learners.batch import TokenBatch
from palaestra.learners.checkpoint import CheckpointStore
from palaestra.learners.distributed import Ranks
from palaestra.learners.logprobs import action_logprobs
from palaestra.learners.metrics import MetricsWriter, read_metrics
from palaestra.learners.sft import SFTConfig, train_sft


def demonstrations(n: int) -> list[Segment]:
    """The answer to a random token is the same token, three times; the rest is noise that cannot be learnt."""
    segments: list[Segment] = []
    for i in range(n):
        rng = generator("demonstrations", i)
        token = int(rng.integers(2, VOCABULARY))
        noise = rng.integers(0, VOCABULARY, int(rng.integers(1, 5))).tolist()
        ids = [*noise, token, token, token, token, *noise]
        mask = [False] * (len(noise) + 1) + [True] * 3 + [False] * len(noise)
        segments.append(
            Segment(
                token_ids_T=np.array(ids, np.int32),
                action_mask_T=np.array(mask),
                logprobs_T=np.full(len(ids), np.nan, np.float32),
            )
        )
    return segments


CONFIG = SFTConfig(batch_tokens=120, warmup_steps=5, learning_rate=1e-2, log_every=10, epochs=3)


@pytest.mark.parametrize("muon_learning_rate", [0.0, 0.02])
def test_it_learns_what_the_agent_did(tmp_path: Path, muon_learning_rate: float) -> None:
    model = tiny_model()
    config = SFTConfig(**{**_fields(CONFIG), "muon_learning_rate": muon_learning_rate})
    progress: list[tuple[int, int]] = []
    with MetricsWriter(tmp_path) as metrics:
        result = train_sft(
            model,
            demonstrations(400),
            config,
            seed=0,
            metrics=metrics,
            on_progress=lambda done, total, _: progress.append((done, total)),
        )
    rows = read_metrics(tmp_path)
    assert rows[0]["loss"] > 2.0
    assert rows[-1]["loss"] == result.loss < 0.5
    assert not result.stopped
    assert progress[-1] == (result.steps, result.steps) == (len(progress), len(progress))
    assert {"stage", "step", "seconds", "loss", "lr", "grad_norm", "tokens"} <= rows[0].keys()
    assert rows[-1]["step"] == result.steps
    assert sum(row["tokens"] for row in rows) == 3 * 3 * 400


def test_micro_batches_change_the_passes_and_not_the_weights() -> None:
    results, passes = [], []
    for micro in (0, 40):
        model = tiny_model()
        lengths: list[int] = []
        model.model.register_forward_hook(lambda _, __, output, seen=lengths: seen.append(output[0].shape[0]))
        config = SFTConfig(**{**_fields(CONFIG), "micro_batch_tokens": micro, "epochs": 1, "autocast": "none"})
        result = train_sft(model, demonstrations(40), config, seed=0)
        results.append((parameters_of(model), result.loss))
        passes.append(len(lengths))
    assert passes[1] > 2 * passes[0]
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-4)
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("context_weight", [0.0, 0.1])
def test_context_tokens_are_learnt_only_if_they_have_a_weight(context_weight: float) -> None:
    """Changing what only the mask hides (the tokens after the last action) changes no weight of the model then."""
    config = SFTConfig(**{**_fields(CONFIG), "context_weight": context_weight})
    spoilt = [
        Segment(
            token_ids_T=np.where(np.arange(len(s)) > np.flatnonzero(s.action_mask_T)[-1], 1, s.token_ids_T).astype(
                np.int32
            ),
            action_mask_T=s.action_mask_T,
            logprobs_T=s.logprobs_T,
        )
        for s in demonstrations(60)
    ]
    results: list[torch.Tensor] = []
    for segments in (demonstrations(60), spoilt):
        model = tiny_model()
        train_sft(model, segments, config, seed=0)
        results.append(parameters_of(model))
    assert torch.equal(results[0], results[1]) == (context_weight == 0.0)


@pytest.mark.parametrize("context_weight", [0.0, 0.3])
def test_one_step_is_the_mean_over_action_tokens(context_weight: float) -> None:
    """With one batch, plain SGD by hand gives the direction that AdamW's first moment holds."""
    segments = [random_segment(generator("sft", i)) for i in range(5)]
    model, batch = tiny_model(), TokenBatch.from_segments(segments)
    loss = -action_logprobs(model, batch.input_ids_BT, batch.action_mask_BT).mean()
    context = torch.tensor(0.0)
    for segment in segments:  # token by token, as the definition says
        ids = torch.from_numpy(segment.token_ids_T).long()
        logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        for t in range(1, len(ids)):
            if not segment.action_mask_T[t]:
                context = context - logprobs[t - 1, ids[t]]
    (loss + context_weight * context / batch.action_mask_BT.sum()).backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
    rows: list[dict[str, float]] = []
    config = SFTConfig(
        batch_tokens=10_000, autocast="none", muon_learning_rate=0.0, log_every=1, context_weight=context_weight
    )
    train_sft(tiny_model(), segments, config, seed=0, on_progress=lambda _, __, row: rows.append(dict(row)))
    assert len(rows) == 1
    assert rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert rows[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_a_stopped_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    segments = demonstrations(100)
    whole = tiny_model()
    train_sft(whole, segments, CONFIG, seed=3)

    store, steps = CheckpointStore(tmp_path / "checkpoints"), 0

    def stop_after_seven() -> bool:
        nonlocal steps
        steps += 1
        return steps == 7

    with MetricsWriter(tmp_path) as metrics:
        first = train_sft(
            tiny_model(),
            segments,
            CONFIG,
            seed=3,
            ranks=Ranks(0, 1, stop_after_seven),
            metrics=metrics,
            checkpoints=store,
        )
    assert (first.steps, first.stopped) == (7, True)
    resumed = tiny_model(seed=9)
    with MetricsWriter(tmp_path, resume=True) as metrics:
        second = train_sft(resumed, segments, CONFIG, seed=3, metrics=metrics, checkpoints=store, resume=True)
    assert not second.stopped
    torch.testing.assert_close(parameters_of(resumed), parameters_of(whole), rtol=0, atol=0)
    steps_logged = [row["step"] for row in read_metrics(tmp_path)]
    assert steps_logged == sorted(set(steps_logged))
    assert steps_logged[-1] == second.steps


def test_segments_without_actions_are_left_out() -> None:
    silent = Segment(
        token_ids_T=np.ones(4, np.int32), action_mask_T=np.zeros(4, np.bool_), logprobs_T=np.full(4, np.nan, np.float32)
    )
    result = train_sft(tiny_model(), [silent], CONFIG, seed=0)
    assert (result.steps, math.isnan(result.loss)) == (0, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, r"^sft\.epochs=0: must be in \[1, inf\)$"),
        ({"learning_rate": 0.0}, r"^sft\.learning_rate=0\.0: must be in \(0, inf\)$"),
        ({"learning_rate": math.nan}, r"^sft\.learning_rate=nan: must be in \(0, inf\)$"),
        ({"min_lr_share": 1.5}, r"^sft\.min_lr_share=1\.5: must be in \[0, 1\]$"),
        ({"betas": (0.9, 1.0)}, r"^sft\.betas=\(0\.9, 1\.0\): must be in \[0, 1\)$"),
        ({"autocast": "bf16"}, r"^sft\.autocast='bf16'; did you mean 'bfloat16'\?$"),
    ],
)
def test_bad_values_are_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SFTConfig(**changes)  # type: ignore[arg-type]


def _fields(config: SFTConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}

"""Peak memory of one LoRA GRPO step over a vocabulary of 151,936 entries, beside TRL's `GRPOTrainer` on the same batch.

    python benchmarks/memory.py [--json FILE] [--rows 16] [--length 512] [--hidden 256] [--layers 4] [--only WORD ...]

Each contender gets a process of its own, the same saved model (a small random Qwen3 with the full vocabulary), the same
adapter, sequences and rewards, and makes one whole update in float32: reference scores with the adapter off, gradient,
AdamW. Sampling is replaced by the given sequences on both sides. The figure is what the step needs beside the weights:
the greatest resident memory during the step, less that before it (on CUDA, the same of the allocator).

Both are shown with micro-batches of 1, 8 and all sequences, and with gradient checkpointing switched off, TRL also with
the bfloat16 autocast that is its default. `trl, 8 rows` is otherwise as TRL comes; gradient checkpointing and a head in
chunks are among its defaults. The target compares the one of each library that needs least. A step that loses its
gradient would be cheap: both have the same gradient norm, or the figures are refused.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

VOCABULARY = 151_936
GROUP, BETA, RANK, ALPHA, LEARNING_RATE = 8, 0.04, 16, 32, 1e-4
TARGET = 0.6
MIB = 2**20
SAME_NORM = {"float32": 1e-3, "bfloat16": 0.05}
"""Greatest relative difference of gradient norms."""


@dataclass(frozen=True)
class Contender:
    """One configuration of one library."""

    library: str
    rows: int
    """Sequences of a micro-batch."""
    checkpointing: bool = True
    arithmetic: str = "float32"

    @property
    def name(self) -> str:
        """What the table calls it."""
        plain = "" if self.checkpointing else ", no checkpointing"
        return f"{self.library}, {self.rows} rows{plain}{'' if self.arithmetic == 'float32' else ', bfloat16'}"


@dataclass(frozen=True)
class Batch:
    """What every contender trains on."""

    folder: str
    """Of the model."""
    rows: int
    length: int

    def sequences(self) -> np.ndarray:
        """Token ids, one row per sequence."""
        return np.random.default_rng(0).integers(0, VOCABULARY, (self.rows, self.length))

    @property
    def prompt(self) -> int:
        """Tokens of each sequence that the policy did not sample."""
        return self.length // 8

    def rewards(self) -> list[float]:
        """One per sequence; half of each group succeeds."""
        return [float(number % 2) for number in range(self.rows)]


def contenders(rows: int) -> list[Contender]:
    sizes = sorted({1, min(8, rows), rows})
    pairs = [Contender(library, size) for size in sizes for library in ("palaestra", "trl")]
    plain = [Contender(library, 1, checkpointing=False) for library in ("palaestra", "trl")]
    return pairs + plain + [Contender(library, 1, arithmetic="bfloat16") for library in ("palaestra", "trl")]


# ------------------------------------------------------------------------------------------- in a process of its own
class Watch:
    """Memory that this process takes from now on, at the most."""

    def __init__(self) -> None:
        gc.collect()
        self._started = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            self._before = _status("VmRSS")

    def figures(self) -> dict[str, float]:
        """Since this began."""
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")
        return {"step_mib": (peak - self._before) / MIB, "seconds": time.monotonic() - self._started}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def same_start(model: Any) -> None:
    """Gives the adapter the weights that all contenders begin with, and makes every weight resident."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) / parameter.shape[1] ** 0.5)
            float(parameter.sum())


def palaestra_step(contender: Contender, batch: Batch) -> dict[str, float]:
    from transformers import AutoModelForCausalLM

    from palaestra.core.trajectories import Episode, Group, Segment, Trajectory
    from palaestra.learners.grpo import GRPOConfig, GRPOLearner
    from palaestra.learners.logprobs import segment_logprobs
    from palaestra.models.adapters import LoRAConfig, add_adapter
    from palaestra.models.loading import recompute_activations, resolve_device

    model = AutoModelForCausalLM.from_pretrained(batch.folder, dtype="float32").to(resolve_device("auto")).eval()
    add_adapter(model, LoRAConfig(rank=RANK, alpha=ALPHA), seed=0)
    if contender.checkpointing:
        recompute_activations(model)
    same_start(model)
    config = GRPOConfig(
        steps=10, groups_per_step=batch.rows // GROUP, group_size=GROUP,
        micro_batch_tokens=contender.rows * batch.length, learning_rate=LEARNING_RATE, warmup_steps=0,
        kl_beta=BETA, normalise_std=False,
        autocast="none" if contender.arithmetic == "float32" else "bfloat16",
    )  # fmt: skip
    learner = GRPOLearner(model, config, seed=0)
    mask_T = np.arange(batch.length) >= batch.prompt

    def segment(ids_T: np.ndarray, logprobs_T: np.ndarray) -> Segment:
        recorded_T = np.where(mask_T, logprobs_T, np.nan).astype(np.float32)
        return Segment(token_ids_T=ids_T.astype(np.int32), action_mask_T=mask_T, logprobs_T=recorded_T)

    rows = batch.sequences()
    bare = [segment(ids_T, np.zeros(batch.length)) for ids_T in rows]
    sampled = segment_logprobs(model, bare, batch_tokens=batch.length, autocast=config.autocast)
    episodes = [
        Episode(
            task_id="t", family="f", level=1, seed=0, reward=reward, success=reward > 0, stop_reason="submitted",
            trajectories=(Trajectory(segments=(segment(ids_T, logprobs_T),), turns=()),),
        )
        for ids_T, logprobs_T, reward in zip(rows, sampled, batch.rewards(), strict=True)
    ]  # fmt: skip
    groups = [Group(task_id="t", episodes=tuple(episodes[i : i + GROUP])) for i in range(0, batch.rows, GROUP)]
    watch = Watch()
    row = learner.step(lambda step: groups)
    return {**watch.figures(), "grad_norm": row["grad_norm"]}


def trl_step(contender: Contender, batch: Batch) -> dict[str, float]:
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    measured: dict[str, float] = {}

    class AroundTheStep(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.watch = Watch()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            measured.update(self.watch.figures())

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        rows = batch.sequences().tolist()
        return {
            "prompt_ids": [ids[: batch.prompt] for ids in rows],
            "completion_ids": [ids[batch.prompt :] for ids in rows],
            "logprobs": None,
        }

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<pad>",
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(batch.folder, dtype="float32"),
            reward_funcs=lambda completions, **_: batch.rewards(),
            args=GRPOConfig(
                output_dir=folder, max_steps=1, logging_steps=1, report_to="none", save_strategy="no",
                disable_tqdm=True,
                per_device_train_batch_size=contender.rows, gradient_accumulation_steps=batch.rows // contender.rows,
                num_generations=GROUP, max_completion_length=batch.length - batch.prompt, beta=BETA,
                learning_rate=LEARNING_RATE, scale_rewards="none", gradient_checkpointing=contender.checkpointing,
                bf16=contender.arithmetic == "bfloat16", use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=Dataset.from_dict({"prompt": ["a"] * batch.rows}),
            processing_class=tokenizer,
            rollout_func=rollout,
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[AroundTheStep()],
        )  # fmt: skip
        same_start(trainer.model)
        trainer.train()
    norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    return {**measured, "grad_norm": float(norms[0])}


def measure(contender: Contender, batch: Batch) -> dict[str, float]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return (palaestra_step if contender.library == "palaestra" else trl_step)(contender, batch)


# ---------------------------------------------------------------------------------------------------------- comparison
def save_model(folder: Path, hidden: int, layers: int) -> None:
    """A small random model of Qwen3's shape; its head has every entry of the real one."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, head_dim=max(8, hidden // 8), max_position_embeddings=4096,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    logging.disable_progress_bar()
    Qwen3ForCausalLM(config).save_pretrained(folder)


def in_a_process(contender: Contender, batch: Batch) -> dict[str, Any]:
    """The figures of a contender, or `{"failed": reason}`."""
    settings = json.dumps({"contender": vars(contender), "batch": vars(batch)})
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "131072",  # what is freed leaves the process: resident is what is in use
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    result = subprocess.run(
        [sys.executable, __file__, "--measure", settings], env=environment, capture_output=True, text=True, check=False
    )
    lines = result.stdout.splitlines()
    if result.returncode or not lines:
        return {"failed": (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1]}
    return json.loads(lines[-1])


def compared(measured: Mapping[str, dict[str, Any]], entries: list[Contender]) -> dict[str, Any]:
    """The targets.

    Raises:
        SystemExit: The libraries did not compute the same update.
    """
    found = {entry: measured[entry.name] for entry in entries if "step_mib" in measured.get(entry.name, {})}
    norms = [row["grad_norm"] for entry, row in found.items() if entry.arithmetic == "float32"]
    for entry, row in found.items():
        if norms and not math.isclose(row["grad_norm"], norms[0], rel_tol=SAME_NORM[entry.arithmetic]):
            sys.exit(f"error: {entry.name} has gradient norm {row['grad_norm']:.4g}, another {norms[0]:.4g}")

    def least(library: str, **fixed: Any) -> float | None:
        values = [
            row["step_mib"]
            for entry, row in found.items()
            if entry.library == library and all(getattr(entry, name) == value for name, value in fixed.items())
        ]
        return min(values, default=None)

    targets = {"step memory, least of TRL's: ratio": ratio(least("palaestra"), least("trl"))}
    for entry in entries:
        if entry.library == "trl":
            ours = Contender("palaestra", entry.rows, entry.checkpointing, entry.arithmetic)
            value = ratio(measured.get(ours.name, {}).get("step_mib"), measured[entry.name].get("step_mib"))
            targets[f"step memory, {entry.name.removeprefix('trl, ')}: ratio"] = {**value, "target": "-", "met": None}
    return targets


def ratio(ours: float | None, theirs: float | None) -> dict[str, Any]:
    value = ours / theirs if ours is not None and theirs is not None else None
    return {"target": f"<= {TARGET}", "value": value, "met": value is not None and value <= TARGET}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rows", type=int, default=16, help=f"sequences, a multiple of {GROUP} (default: 16)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence (default: 512)")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size, a multiple of 64 (default: 256)")
    parser.add_argument("--layers", type=int, default=4, help="layers (default: 4)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="contenders whose name has one of these words in it")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows % GROUP or options.rows < GROUP:
        parser.error(f"--rows must be a multiple of {GROUP}")
    return options


def main() -> None:
    options = parsed()
    if options.measure:
        settings = json.loads(options.measure)
        print(json.dumps(measure(Contender(**settings["contender"]), Batch(**settings["batch"]))))
        return
    entries = [e for e in contenders(options.rows) if not options.only or any(word in e.name for word in options.only)]
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), options.hidden, options.layers)
        batch = Batch(folder, options.rows, options.length)
        print(f"{'':40s} {'step MiB':>9s} {'seconds':>8s} {'gradient norm':>14s}")
        for entry in entries:
            measured[entry.name] = row = in_a_process(entry, batch)
            if "failed" in row:
                print(f"{entry.name:40s} failed: {row['failed']}", flush=True)
            else:
                print(
                    f"{entry.name:40s} {row['step_mib']:9.1f} {row['seconds']:8.1f} {row['grad_norm']:14.6f}",
                    flush=True,
                )
    targets = compared(measured, entries)
    for name, entry in targets.items():
        value = "-" if entry["value"] is None else f"{entry['value']:.3f}"
        print(f"{name:60s} {entry['target']:>8s} {value:>7s}")
    if options.json:
        settings = {name: getattr(options, name) for name in ("rows", "length", "hidden", "layers")}
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        report = {"settings": {**settings, "vocabulary": VOCABULARY, "device": device}, "figures": measured}
        options.json.write_text(json.dumps({**report, "targets": targets}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

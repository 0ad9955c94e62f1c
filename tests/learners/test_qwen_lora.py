"""The packaged recipe for large models, with every shape of the real thing but the sizes inside the layers.

The model is a small random Qwen3 with the full vocabulary of 151,936 entries, bfloat16, and Qwen's kind of template.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_model_folder import saved_model

from palaestra.core.errors import ConfigError
from palaestra.learners.config import load_recipe
from palaestra.learners.metrics import read_metrics
from palaestra.learners.pipeline import run
from palaestra.models.adapters import has_adapter
from palaestra.models.loading import load_model, save_model

VOCABULARY = 151_936
PYTHONPATH = os.environ.get("PYTHONPATH", "").split(os.pathsep)
SMALL = [
    "env.id=coin_env:Coin-v0",
    "demos.n=6",
    "env.max_turns=2",
    "rollout.max_turn_tokens=16",
    "evaluation.n=2",
    "evaluation.every=0",
    "grpo.steps=3",
    "grpo.groups_per_step=2",
    "grpo.group_size=4",
    "grpo.schedule=fixed",
    "grpo.checkpoint_every=1",
    "model.lora.rank=4",
    "model.lora.save_merged=true",
    "threads=1",
    "report=false",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "model"
    saved_model("qwen3", folder, vocabulary=VOCABULARY, hidden_size=64, dtype="bfloat16")
    model, tokenizer = load_model(folder, dtype="auto")
    with torch.no_grad():  # it prefers tokens that its tokenizer has, so that answers differ as texts
        model.get_input_embeddings().weight[: len(tokenizer)] *= 3.0  # pyright: ignore[reportOperatorIssue]
    return save_model(model, tokenizer, folder)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(load_recipe("qwen_lora", [f"model={model}", f"run={folder}", *SMALL]))
    return folder


def test_the_recipe_itself_names_a_model_of_the_hub_and_needs_no_other_key() -> None:
    recipe = load_recipe("qwen_lora")
    assert recipe.model.path == "Qwen/Qwen3-0.6B"
    assert (recipe.model.dtype, recipe.model.gradient_checkpointing, recipe.model.lora.rank) == ("bfloat16", True, 32)
    assert recipe.sft.muon_learning_rate == 0
    assert recipe.rollout.max_context_tokens <= recipe.grpo.micro_batch_tokens


def test_a_run_leaves_an_ordinary_sft_model_and_a_small_adapter(whole: Path) -> None:
    sft, tokenizer = load_model(whole / "sft", dtype="auto")
    assert not has_adapter(sft)
    assert sft.config.vocab_size == VOCABULARY > len(tokenizer)
    assert sft.dtype == torch.bfloat16
    policy, _ = load_model(whole / "policy", dtype="auto")
    assert has_adapter(policy)
    merged, _ = load_model(whole / "policy-merged", dtype="auto")
    assert not has_adapter(merged)
    sizes = {name: sum(p.stat().st_size for p in (whole / name).glob("*.safetensors")) for name in ("sft", "policy")}
    assert sizes["policy"] < 0.01 * sizes["sft"]
    learnt = load_file(whole / "policy" / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in learnt.items() if "lora_B" in name)
    state = torch.load(whole / "checkpoints" / "grpo-00000003" / "state.pt", weights_only=True)
    assert all(".lora_" in name for name in state["model"])
    rows = [row for row in read_metrics(whole) if row["stage"] == "grpo"]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert any(row["grad_norm"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["policy", "policy-merged"])
def test_what_a_run_leaves_can_be_evaluated(whole: Path, name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "palaestra", "eval", "CodeSandbox-v0", "--model", str(whole / name)]
    result = subprocess.run(
        [*command, "-n", "1", "--max-turn-tokens", "8", "--json", tmp_path / "figures.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "figures.json").read_text())["n"] == 1


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(model: Path, whole: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    overrides = [f"model={model}", f"run={killed}", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "palaestra", "train", "qwen_lora", *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *PYTHONPATH])},
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (killed / "checkpoints" / "grpo-00000001").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "policy").exists()
    run(load_recipe("qwen_lora", overrides), resume=True)

    def weights(folder: Path, name: str) -> dict[str, Any]:
        return load_file(folder / name)

    for name in ("sft/model.safetensors", "policy/adapter_model.safetensors", "policy-merged/model.safetensors"):
        first, second = weights(whole, name), weights(killed, name)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items()), name
    rows = [
        [(row["step"], row["loss"], row["kl_seq"]) for row in read_metrics(folder) if row["stage"] == "grpo"]
        for folder in (whole, killed)
    ]
    assert rows[0] == rows[1]


def test_mistakes_in_the_recipe_are_one_line() -> None:
    for recipe, override, message in (
        ("qwen_lora", "model.lora.rnak=4", r"^unknown key 'model\.lora\.rnak'; did you mean 'rank'"),
        ("qwen_lora", "model.lora=4", r"^model\.lora=4: expected a table"),
        ("qwen_lora", "model.lora.rank=-4", r"^model\.lora\.rank=-4: must be at least 0"),
        ("qwen_lora", "model.lora.target_modules=3", r"^model\.lora\.target_modules"),
        ("qwen_lora", "model.lora.rank=0", r"^model\.dtype='bfloat16': small updates .* set model\.lora\.rank=16"),
        ("quickstart", "model.lora.rank=4", r"^model\.lora\.rank=4: a model made from scratch has nothing to adapt"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            load_recipe(recipe, [override])
        assert "\n" not in str(caught.value)

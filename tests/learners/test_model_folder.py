"""The quickstart's own path on saved models of real shapes: their chat templates, tool calls, tokenizers."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from palaestra.agents.store import load_episodes
from palaestra.learners.config import load_recipe
from palaestra.learners.pipeline import run
from palaestra.models.loading import ModelConfig, build_model, load_model, save_model

TEMPLATES = Path(__file__).parents[1] / "models" / "templates"
SHAPES = {
    "qwen3": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", "<|endoftext|>"),
    "llama": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
        "<|end_of_text|>",
    ),
}
TEXT = ['{"name": "run", "arguments": {"code": "def f(x):\\n    return x"}}', "You have 10 turns. Take x, then sum it."]


def saved_model(architecture: str, folder: Path, vocabulary: int = 0, **changes: Any) -> Path:
    """A random model whose tokenizer has a few hundred tokens; `vocabulary` entries may be embedded."""
    specials, end, pad = SHAPES[architecture]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, show_progress=False, initial_alphabet=alphabet
    )
    inner.train_from_iterator(TEXT * 10, trainer)
    inner.add_tokens([AddedToken(text, special=False) for text in ("<tool_call>", "</tool_call>")])
    name = "qwen3_style.jinja" if architecture == "qwen3" else "llama3_style.jinja"
    template = (TEMPLATES / name).read_text()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, pad_token=pad, chat_template=template)
    sizes = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 48, "context": 4096}
    config = ModelConfig(architecture=architecture, **{**sizes, **changes})  # pyright: ignore[reportArgumentType]
    ids = tokenizer.convert_tokens_to_ids([pad, end])
    model = build_model(config, vocabulary or len(tokenizer), 0, pad_id=ids[0], eos_id=ids[1])
    return save_model(model, tokenizer, folder)


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_a_saved_model_runs_the_whole_recipe_through_its_own_template(architecture: str, tmp_path: Path) -> None:
    folder = saved_model(architecture, tmp_path / "model")
    overrides = [
        f"model={folder}",
        f"run={tmp_path / 'run'}",
        "processes=1",
        "demos.n=12",
        "env.max_turns=2",
        "rollout.max_turn_tokens=24",
        "evaluation.n=2",
        "grpo.steps=1",
        "grpo.groups_per_step=2",
        "grpo.group_size=2",
        "sft.batch_tokens=6000",
        "grpo.temperature=1.0",
    ]
    summary = run(load_recipe("quickstart", overrides))
    assert summary["heldout_n"] == 2
    model, tokenizer = load_model(tmp_path / "run" / "policy")
    assert model.config.model_type == architecture
    episode = next(iter(load_episodes(tmp_path / "run" / "episodes" / "policy_heldout.jsonl")))
    segment = episode.trajectories[0].segments[0]
    text = tokenizer.decode(segment.token_ids_T.tolist(), skip_special_tokens=False)
    assert "edit" in text.split("Take x")[0]  # the tools are taught before the task
    assert SHAPES[architecture][0][1] in text or SHAPES[architecture][0][2] in text
    assert segment.action_mask_T.any()


def test_demonstrations_are_tool_calls_for_a_model_with_a_template(tmp_path: Path) -> None:
    from palaestra.agents.demonstrations import generate_demos
    from palaestra.learners.demonstration_data import tokenised, with_tool_calls
    from palaestra.models.chat import ChatFormat

    _, tokenizer = load_model(saved_model("qwen3", tmp_path / "model"))
    demos = list(generate_demos("CodeSandbox-v0", 6, 0, mix={"careful": 1.0}))
    from palaestra.envs.registration import make_env

    with make_env("CodeSandbox-v0") as env:
        tools = env.unwrapped.tools
    segments = tokenised(with_tool_calls(demos, tools), ChatFormat(tokenizer), tools, 4096)
    assert len(segments) == 6
    for segment in segments:
        written = tokenizer.decode(segment.token_ids_T[segment.action_mask_T].tolist())
        assert written.startswith('<tool_call>\n{"name": "run", "arguments": {"code": "def f(x):')
        assert '"name": "submit"' in written

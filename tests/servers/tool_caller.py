"""A tiny Qwen3 with a chat template that calls tools: it has learned one conversation by heart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from palaestra.core.messages import tool
from palaestra.core.trajectories import Turn
from palaestra.envs.actions import format_tool_call
from palaestra.envs.registration import make_env
from palaestra.learners.sft import SFTConfig, train_sft
from palaestra.models.chat import ChatFormat
from palaestra.models.loading import ModelConfig, build_model, save_model

TEMPLATE = Path(__file__).parents[1] / "models" / "templates" / "qwen3_style.jinja"
PROGRAM = "def f(x):\n    return 2 * x"
ACTIONS = (format_tool_call("run", {"code": PROGRAM}), format_tool_call("submit", {"code": PROGRAM}))


def write_tasks(path: Path, n: int) -> Path:
    """Tasks with one and the same answer."""
    rows = [
        {"prompt": f"Double x ({i}).", "entry_point": "f", "tests": [{"args": [2], "expected": 4}]} for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_tool_caller(folder: Path, tasks: Path) -> Path:
    """Trains on what the tasks' environment says to their answer, and saves an ordinary model folder."""
    torch.set_num_threads(1)
    episodes, tools = _conversations(tasks)
    tokenizer = _tokenizer(episodes, tools)
    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    config = ModelConfig(
        architecture="qwen3", hidden_size=64, layers=2, heads=4, kv_heads=2, intermediate_size=96, context=1024
    )
    model = build_model(config, len(tokenizer), 0, pad_id=ids[0], eos_id=ids[1])
    rendered = ChatFormat(tokenizer).render_episodes(episodes, tools)
    segments = [segment for episode in rendered for segment in episode] * (240 // len(rendered))
    train_sft(model, segments, SFTConfig(batch_tokens=600, epochs=2, log_every=1000, warmup_steps=5), seed=0)
    return save_model(model.eval(), tokenizer, folder)


def _conversations(tasks: Path) -> tuple[list[list[Turn]], list[dict[str, Any]]]:
    episodes: list[list[Turn]] = []
    tools: list[dict[str, Any]] = []
    with make_env("CodeSandbox-v0", tasks=str(tasks), max_turns=3) as env:
        for task in env.unwrapped.task_set.fixed:
            _, info = env.reset(seed=0, options={"task_id": task.task_id})
            tools = info["tools"]
            observation = env.step(ACTIONS[0])[0]
            episodes.append(
                [
                    Turn(action=ACTIONS[0], observation=observation, messages=tuple(info["messages"])),
                    Turn(action=ACTIONS[1], observation="", messages=(tool(observation),)),
                ]
            )
    return episodes, tools


def _tokenizer(episodes: list[list[Turn]], tools: list[dict[str, Any]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE across words that has seen nothing but these conversations: they are short in its tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    texts = [json.dumps(tool) for tool in tools] * 20
    texts += [text for turns in episodes for turn in turns for text in (turn.action, turn.messages[-1]["content"])] * 20
    texts += [message["content"] for turns in episodes for message in turns[0].messages] * 20
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    markers = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
    backend.add_tokens([AddedToken(marker, special=False) for marker in markers])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE.read_text(),
    )

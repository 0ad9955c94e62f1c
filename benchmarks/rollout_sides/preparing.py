"""The model that both sides load: a small Qwen3 with TRL's own Qwen3 chat template, taught to write valid calls."""

from __future__ import annotations

import importlib.resources
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from palaestra.core.messages import tool, user
from palaestra.core.trajectories import Turn
from palaestra.envs.registration import make_env
from palaestra.learners.sft import SFTConfig, train_sft
from palaestra.models.chat import ChatFormat
from palaestra.models.loading import ModelConfig, build_model, save_model

from . import game
from .orders import EQUAL

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>",
           "</tool_response>", "<think>", "</think>")  # fmt: skip
TEMPLATE = importlib.resources.files("trl") / "chat_templates" / "qwen3.jinja"
VOCABULARY = 512


def prepare(folder: Path, *, hidden: int, layers: int, episodes: int = 1500) -> dict[str, Any]:
    """Makes tokenizer and model, trains them on scripted games, and saves them; gives what a reader wants to know."""
    tools = make_env(game.ID, prompt_style="compact").unwrapped.tools
    rng = random.Random(0)
    # The short ones are soon learnt; the long ones teach positions and calls that only the longest measurements reach.
    shapes = [EQUAL[n % len(EQUAL)] if n % 5 < 2 else (rng.randint(1, 4), 1) for n in range(episodes)]
    demonstrations = [_demonstration(rng, *shape) for shape in shapes]
    texts = [text for episode in demonstrations[:500] for text in _texts(episode)]
    tokenizer = _tokenizer([*texts, *[json.dumps(each) for each in tools] * 100, *[TEMPLATE.read_text()] * 100])
    chat = ChatFormat(tokenizer)
    segments = [segment for episode in chat.render_episodes(demonstrations, tools) for segment in episode]
    config = ModelConfig(
        architecture="qwen3", hidden_size=hidden, layers=layers, heads=hidden // 32, kv_heads=hidden // 64,
        intermediate_size=3 * hidden, context=2048,
    )  # fmt: skip
    pad, eos = (tokenizer.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|im_end|>"))
    model = build_model(config, len(tokenizer), 0, pad_id=int(pad), eos_id=int(eos))
    result = train_sft(model, segments, SFTConfig(epochs=1), seed=0)
    save_model(model, tokenizer, folder)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "prompt_tokens": len(chat.start(demonstrations[0][0].messages, tools)),
        "action_tokens": len(chat.encode([game.call_text(game.draw_secret(rng)) + chat.end_text])[0]),
        "sft_loss": round(result.loss, 3),
        "sft_steps": result.steps,
        "torch_threads": torch.get_num_threads(),
    }


def _demonstration(rng: random.Random, turns: int, codes: int) -> list[Turn]:
    secret = game.draw_secret(rng)
    found: list[Turn] = []
    messages = [user(game.prompt_of(secret, codes))]
    for _ in range(turns):
        code = game.guess_of([secret[:4] + game.draw_secret(rng)[4:] for _ in range(codes)])
        observation = game.answer(secret, code)
        found.append(Turn(messages=tuple(messages), action=game.call_text(code), observation=observation))
        messages = [tool(observation)]
    return found


def _texts(turns: Sequence[Turn]) -> list[str]:
    return [text for turn in turns for text in (turn.action, *(message["content"] for message in turn.messages))]


def _tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one token per digit, as Qwen's; it has seen what the template says about tools."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        clean_up_tokenization_spaces=False, chat_template=TEMPLATE.read_text(),
    )  # fmt: skip

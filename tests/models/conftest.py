"""Tiny tokenizers and models of several architectures, made here; nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers import logging as transformers_logging

from palaestra.models.loading import ModelConfig, build_model
from palaestra.models.tokenizers import train_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
CORPUS = [
    "Take x, drop 2 items, then find the max.",
    "run\ndef f(x):\n    x = [a - b for a, b in zip(x, x[1:])]\n    return max(x)",
    "f([1,2,3])\ngot 5\nwant 0",
    "edit\nx = x[::2]\nx = x[1::2]",
    '<tool_call>\n{"name": "run", "arguments": {"code": "print(1)"}}\n</tool_call>',
] * 20

torch.set_num_threads(1)
transformers_logging.set_verbosity_error()


def byte_level_bpe(specials: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=specials,
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    return tokenizer


@pytest.fixture(scope="session")
def compact_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS, 400)


@pytest.fixture(scope="session")
def qwen_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_level_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 400)
    tokenizer.add_tokens([AddedToken(t, special=False) for t in ("<tool_call>", "</tool_call>", "<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=(TEMPLATES / "qwen3_style.jinja").read_text(),
    )


@pytest.fixture(scope="session")
def llama_tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(specials, 400),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|end_of_text|>",
        chat_template=(TEMPLATES / "llama3_style.jinja").read_text(),
    )


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., PreTrainedModel]:
    """Makes a model whose next-token distributions are not uniform."""

    def make(architecture: str = "llama", vocab_size: int = 400, seed: int = 0, **sizes: int) -> PreTrainedModel:
        config = ModelConfig(
            architecture=architecture,  # pyright: ignore[reportArgumentType]
            **{"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 48, "context": 256}
            | sizes,
        )
        model = build_model(config, vocab_size, seed, pad_id=0, eos_id=2).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0 if parameter.ndim > 1 else 1.0)  # more, and round-off exceeds 1e-5
        return model

    return make

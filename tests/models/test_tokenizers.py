import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from palaestra.core.errors import ModelError
from palaestra.models.tokenizers import COMPACT_TEMPLATE, train_tokenizer


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_every_text_survives_encoding_and_decoding(text: str) -> None:
    tokenizer = _TOKENIZER
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


_TOKENIZER = train_tokenizer(["x = [v for v in x if v > 3]"] * 30, 300)


def test_a_line_of_code_costs_few_tokens_and_role_lines_one_each() -> None:
    line = "    x = [a - b for a, b in zip(x, x[1:])]"
    tokenizer = train_tokenizer([f"run\n{line}\n    return x[0], x[12]"] * 30, 400)
    assert len(tokenizer.encode(line)) < 12
    assert len(tokenizer.encode("assistant\n")) == 2


def test_the_vocabulary_is_never_larger_than_asked() -> None:
    assert len(_TOKENIZER) <= 300
    with pytest.raises(ModelError, match="vocab_size=100: must be at least 259"):
        train_tokenizer(["a"], 100)


def test_training_is_deterministic() -> None:
    texts = ["run\nx = x[::2]", "Take x, then sum it."] * 10
    assert train_tokenizer(texts, 300).get_vocab() == train_tokenizer(texts, 300).get_vocab()


def test_a_saved_tokenizer_is_an_ordinary_one(tmp_path: object) -> None:
    _TOKENIZER.save_pretrained(str(tmp_path))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    assert loaded.chat_template == COMPACT_TEMPLATE
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x = 1"}]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nx = 1<|im_end|>\n<|im_start|>assistant\n")
    assert loaded.encode(text) == _TOKENIZER.encode(text)

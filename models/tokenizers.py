"""A byte-level BPE tokenizer and a compact chat template for models that are trained from scratch.

The result is an ordinary `transformers` tokenizer with an ordinary Jinja chat template, so that a saved folder loads
with `AutoTokenizer`. The template is plain ChatML: it ignores `tools`, because a tiny model learns them from examples.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD_TOKEN, START_TOKEN, END_TOKEN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

COMPACT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

# Numbers (with a leading comma, as in lists), line starts and commas are split off; between them BPE may merge across
# spaces, so that a line of code such as "x = [v for v in x if v > 3]" costs a few tokens and few sampling decisions.
_PIECES = r",?-?\p{N}+|\n *|,|[^\p{N}\n,]+"
_MARKERS = re.compile(r"<\|im_(?:start|end)\|>|<\|endoftext\|>")
_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int = 640) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on message and action texts.

    Args:
        texts: What models will read and write; a few thousand episodes are enough.
        vocab_size: Number of tokens, with the 256 bytes and 3 chat markers among them.

    Returns:
        A tokenizer whose end token is `<|im_end|>`, whose padding token is `<|endoftext|>`, and which encodes every
        text without loss.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [PAD_TOKEN, START_TOKEN, END_TOKEN]
    if vocab_size < _BYTES + len(specials):
        raise ModelError(f"vocab_size={vocab_size}: must be at least {_BYTES + len(specials)} (bytes and chat markers)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_training_pieces(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        chat_template=COMPACT_TEMPLATE,
    )


def _training_pieces(texts: Iterable[str]) -> Iterator[str]:
    """Texts as they stand between chat markers, with the role lines that the template writes around them."""
    for text in texts:
        yield from _MARKERS.split(text)
        yield "tool\n"
        yield "assistant\n"
    yield "user\n"
    yield "system\n"

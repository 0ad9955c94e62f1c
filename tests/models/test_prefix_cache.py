"""Prompts that rows share: whatever happens to the rows, logits are those of the model's own forward."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from palaestra.models import attention
from palaestra.models.fused_decoder import FusedDecoder
from palaestra.models.prefix_cache import SHORTEST, PrefixCache

ROWS, VOCABULARY, CONTEXT = 9, 60, 320
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}


def sharp(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough for attention to choose."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


MODELS = {
    "llama": sharp(LlamaForCausalLM(LlamaConfig(**SIZES))),
    "qwen3, one query per key": sharp(Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "num_key_value_heads": 4}, head_dim=8))),
}


class Play:
    """A decoder and what each of its rows should hold."""

    def __init__(self, model: torch.nn.Module, seed: int) -> None:
        self.model, self.rng = model, np.random.default_rng(seed)
        self.decoder = FusedDecoder(model, ROWS, CONTEXT)  # type: ignore[arg-type]
        self.texts: list[list[int]] = [[] for _ in range(ROWS)]

    def tokens(self, count: int) -> list[int]:
        return self.rng.integers(0, VOCABULARY, count).tolist()

    def check(self, rows: list[int], logits_BV: torch.Tensor) -> None:
        for row, logits_V in zip(rows, logits_BV, strict=True):
            if not self.texts[row]:
                continue
            with torch.no_grad():
                wanted_V = self.model(input_ids=torch.tensor([self.texts[row]]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits_V, wanted_V, atol=2e-4, rtol=0)

    def begin(self) -> None:
        """Some rows begin anew with one prompt."""
        rows = self.rng.permutation(ROWS)[: int(self.rng.integers(1, 6))]
        prompt = self.tokens(int(self.rng.integers(SHORTEST - 10, SHORTEST + 40)))
        self.check([], self.decoder.prefill(rows[:1], np.array([0]), [np.array(prompt)])[:0])
        if len(rows) > 1:
            self.decoder.share_prompt(int(rows[0]), rows[1:], len(prompt))
        for row in rows:
            self.texts[row] = list(prompt)

    def extend(self) -> None:
        """Some rows are fed chunks of different lengths, in any order; empty ones begin with theirs."""
        rows = [int(row) for row in self.rng.permutation(ROWS)[: int(self.rng.integers(1, ROWS + 1))]]
        if self.rng.random() < 0.5:
            rows = sorted(rows)
        starts = np.array([len(self.texts[row]) for row in rows])
        chunks = [self.tokens(int(self.rng.integers(1, 7))) for _ in rows]
        logits = self.decoder.prefill(np.array(rows), starts, [np.array(chunk) for chunk in chunks])
        for row, chunk in zip(rows, chunks, strict=True):
            self.texts[row] += chunk
        self.check(rows, logits)

    def decode(self) -> None:
        """The first rows are fed a token each; empty ones one that nobody looks at."""
        count = int(self.rng.integers(1, ROWS + 1))
        tokens = self.tokens(count)
        logits = self.decoder.decode(np.array(tokens), np.array([len(text) for text in self.texts[:count]]))
        for row in range(count):
            if self.texts[row]:
                self.texts[row].append(tokens[row])
        self.check(list(range(count)), logits)

    def verify(self) -> None:
        """The first rows are fed chunks, and the logits of their last tokens are looked at."""
        count = int(self.rng.integers(1, ROWS + 1))
        starts = np.array([len(text) for text in self.texts[:count]])
        chunks = [self.tokens(int(self.rng.integers(1, 6)) if text else 1) for text in self.texts[:count]]
        tails = np.array([int(self.rng.integers(1, len(chunk) + 1)) for chunk in chunks])
        logits = self.decoder.verify(np.arange(count), starts, [np.array(chunk) for chunk in chunks], tails)
        first = 0
        for row, (chunk, tail) in enumerate(zip(chunks, tails.tolist(), strict=True)):
            for left, token in zip(range(len(chunk), 0, -1), chunk if self.texts[row] else (), strict=False):
                self.texts[row].append(token)
                if left <= tail:
                    self.check([row], logits[first : first + 1])
                    first += 1
            first += not self.texts[row]
        assert first == len(logits)

    def free(self) -> None:
        """A row is given up: it stands at position 0 from now on."""
        self.texts[int(self.rng.integers(ROWS))] = []

    def compact(self) -> None:
        """A taken row moves to a free one."""
        taken = [row for row in range(ROWS) if self.texts[row]]
        free = [row for row in range(ROWS) if not self.texts[row]]
        if taken and free:
            source, target = taken[-1], free[0]
            self.decoder.copy_rows(np.array([source]), np.array([target]), len(self.texts[source]))
            self.texts[target], self.texts[source] = self.texts[source], []

    def new_weights(self) -> None:
        """Everything that was held is void."""
        self.decoder.refresh()
        self.texts = [[] for _ in range(ROWS)]


MOVES = [
    Play.begin,
    Play.begin,
    Play.extend,
    Play.verify,
    Play.decode,
    Play.decode,
    Play.free,
    Play.compact,
    Play.new_weights,
]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), moves=st.lists(st.sampled_from(MOVES), min_size=4, max_size=14))
def test_rows_that_share_prompts_give_the_models_own_logits(name: str, seed: int, moves: list) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if seed % 2:
            patch.setattr(attention, "_CPU_SCORES", 2000)  # padded chunks are attended to in blocks of rows
        play = Play(MODELS[name], seed)
        play.begin()
        for move in moves:
            if max(map(len, play.texts)) < CONTEXT - 8:
                move(play)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_share_and_rows_that_do_not_are_decoded_together(dtype: torch.dtype) -> None:
    play = Play(MODELS["llama"], 3)
    decoder = FusedDecoder(MODELS["llama"].to(dtype), 6, CONTEXT)  # type: ignore[arg-type]
    try:
        prompt, alone = play.tokens(50), play.tokens(9)
        decoder.prefill(np.array([4, 1]), np.array([0, 0]), [np.array(prompt), np.array(alone)])
        decoder.share_prompt(4, np.array([0, 3]), 50)
        logits = decoder.decode(np.full(5, 7), np.array([50, 9, 0, 50, 50]))
        assert logits.dtype == dtype
        apart = FusedDecoder(MODELS["llama"], 6, CONTEXT)  # type: ignore[arg-type]
        apart.prefill(np.array([0, 1]), np.array([0, 0]), [np.array(prompt), np.array(alone)])
        wanted = apart.decode(np.full(2, 7), np.array([50, 9]))
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        for row, of in ((0, 0), (3, 0), (4, 0), (1, 1)):
            torch.testing.assert_close(logits[row], wanted[of], atol=tolerance, rtol=0)
    finally:
        MODELS["llama"].float()


def test_prefixes_that_nobody_has_any_more_are_used_again() -> None:
    cache = PrefixCache(4, 1, torch.zeros(0))
    for _ in range(20):
        cache.leave(np.arange(4))
        for rows in ([0, 1], [2, 3]):
            cache.add(np.array(rows), [torch.zeros(1, 40, 2)], [torch.zeros(1, 40, 2)])
    assert len(cache.keys_PKLD[0]) <= 4
    plan = cache.plan(np.array([3, 0, 1]))
    assert plan is not None
    assert not plan.in_order
    assert cache.offsets(np.arange(4)).tolist() == [40] * 4

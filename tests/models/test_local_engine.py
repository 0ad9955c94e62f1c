from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from palaestra.core.errors import ConfigError
from palaestra.core.seeding import generator
from palaestra.models import local_engine
from palaestra.models.cached_decoder import CachedDecoder
from palaestra.models.drafts import LONGEST, Drafts
from palaestra.models.engine import GenerationRequest
from palaestra.models.fused_decoder import FusedDecoder
from palaestra.models.loading import ModelConfig, build_model
from palaestra.models.local_engine import LocalEngine

END = frozenset({2})
Make = Callable[..., PreTrainedModel]


def request(key: Any, token_ids: list[int], **changes: Any) -> GenerationRequest:
    options = {"generator": generator("engine", str(key)), "max_tokens": 12, "end_ids": END} | changes
    return GenerationRequest(key=key, token_ids=token_ids, **options)


def training_logprobs(model: PreTrainedModel, stream: list[int], temperature: float = 1.0) -> np.ndarray:
    """Log-probability of every token of a stream given the ones before it, from one plain forward."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([stream])).logits[0, :-1] / (temperature or 1.0)
    return logits.log_softmax(-1)[torch.arange(len(stream) - 1), torch.tensor(stream[1:])].numpy()


def play(engine: LocalEngine, episodes: int, turns: int, temperature: float = 1.0, seed: int = 0) -> dict[int, Any]:
    """Multi-turn conversations of ragged lengths, in groups of two with one prompt; their streams and log-probs."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(3, 400, random.integers(2, 9)).tolist() for _ in range(episodes // 2 + 1)]
    rest = {key: int(random.integers(1, turns + 1)) for key in range(episodes)}
    generators = {key: generator(seed, key) for key in range(episodes)}
    streams: dict[int, list[int]] = {key: list(prompts[key // 2]) for key in range(episodes)}
    logprobs: dict[int, list[float]] = {key: [float("nan")] * len(streams[key]) for key in range(episodes)}
    options = {"temperature": temperature}
    for key in range(episodes):
        engine.submit(request(key, prompts[key // 2], generator=generators[key], **options))
    while rest:
        for completion in sorted(engine.poll(), key=lambda completion: completion.key):
            key = completion.key
            streams[key] += completion.token_ids
            logprobs[key] += completion.logprobs
            rest[key] -= 1
            if not rest[key]:
                engine.release(key)
                del rest[key]
                continue
            reply = np.random.default_rng(key).integers(3, 400, 1 + key % 7).tolist()
            streams[key] += reply
            logprobs[key] += [float("nan")] * len(reply)
            engine.submit(request(key, reply, generator=generators[key], **options))
    return {key: (streams[key], np.array(logprobs[key], dtype=np.float32)) for key in range(episodes)}


@pytest.fixture(params=["llama", "qwen3", "gpt2"])
def model(request: pytest.FixtureRequest, tiny_model: Make) -> Iterator[PreTrainedModel]:
    if request.param != "gpt2":
        yield tiny_model(request.param)
        return
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=2)
    ).eval()
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.mul_(6.0 if parameter.ndim > 1 else 1.0)
    yield gpt2


# ------------------------------------------------------------------------------------------ the recorded log-probs
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_training_forwards(model: PreTrainedModel, temperature: float) -> None:
    engine = LocalEngine(model, 9, 256)
    assert isinstance(engine.decoder, CachedDecoder if model.config.model_type == "gpt2" else FusedDecoder)
    episodes = play(engine, 17, 4, temperature)
    for stream, logprobs in episodes.values():
        sampled = ~np.isnan(logprobs)
        assert sampled.any()
        wanted = training_logprobs(model, stream, temperature)[sampled[1:]]
        np.testing.assert_allclose(logprobs[sampled], wanted, atol=1e-5, rtol=0)


def test_greedy_decoding_takes_the_most_likely_token(model: PreTrainedModel) -> None:
    for stream, logprobs in play(LocalEngine(model, 5, 256), 5, 3, temperature=0.0).values():
        with torch.no_grad():
            best = model(input_ids=torch.tensor([stream])).logits[0, :-1].argmax(-1).numpy()
        sampled = ~np.isnan(logprobs)
        assert (np.array(stream)[sampled] == best[sampled[1:]]).all()
        np.testing.assert_allclose(logprobs[sampled], training_logprobs(model, stream)[sampled[1:]], atol=1e-5, rtol=0)


def test_sampled_tokens_follow_the_model(tiny_model: Make) -> None:
    model = tiny_model()
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    engine = LocalEngine(model, 500, 8)
    counts = torch.zeros(400)
    for batch in range(8):
        requests = [request((batch, i), [5, 6, 7], max_tokens=1) for i in range(500)]
        for completion in engine.generate(requests):
            counts[completion.token_ids[0]] += 1
            engine.release(completion.key)
    likely = wanted > 0.005
    assert likely.sum() >= 3
    error = (wanted * (1 - wanted) / 4000).sqrt()
    assert ((counts / 4000 - wanted).abs() < 4 * error)[likely].all()


# ---------------------------------------------------------------------------------------------------- determinism
def test_equal_runs_are_equal_to_the_last_bit(tiny_model: Make) -> None:
    model = tiny_model()
    engine = LocalEngine(model, 9, 256)
    first = play(engine, 17, 4)
    engine.update_weights(1)  # as every collection begins
    second = play(engine, 17, 4)
    third = play(LocalEngine(tiny_model(), 9, 256), 17, 4)
    for key, (stream, logprobs) in first.items():
        for other in (second, third):
            assert other[key][0] == stream
            np.testing.assert_array_equal(other[key][1], logprobs)


def test_what_an_episode_samples_does_not_depend_on_its_neighbours(tiny_model: Make) -> None:
    engine = LocalEngine(tiny_model(), 9, 256)
    together = engine.generate([request(key, [5, 6, 7 + key % 3]) for key in range(9)])
    for completion in together:
        engine.release(completion.key)
    for key in range(9):
        alone = engine.generate([request(key, [5, 6, 7 + key % 3])])[0]
        engine.release(key)
        assert alone.token_ids == together[key].token_ids


# ------------------------------------------------------------------------------------------------------- the cache
def test_each_token_is_prefilled_once_and_a_shared_prompt_once_for_all(tiny_model: Make) -> None:
    engine = LocalEngine(tiny_model(), 8, 64)
    prompt = [5, 6, 7, 8, 9]
    engine.generate([request(key, prompt) for key in range(8)])
    assert engine.stats.prefilled_tokens == len(prompt)
    engine.generate([request(key, [11, 12]) for key in range(8)])
    assert engine.stats.prefilled_tokens == len(prompt) + 8 * (1 + 2)  # each turn's last token was not fed yet


def test_new_weights_drop_the_cache_and_conversations_go_on(tiny_model: Make) -> None:
    model, other = tiny_model(seed=1), tiny_model(seed=2)
    engine = LocalEngine(model, 4, 128)
    streams = {key: [5, 6, 7 + key] for key in range(4)}
    for completion in engine.generate([request(key, list(stream)) for key, stream in streams.items()]):
        streams[completion.key] += completion.token_ids
    model.load_state_dict(other.state_dict())
    engine.update_weights(3)
    assert engine.version == 3
    for completion in engine.generate([request(key, [11, 12]) for key in streams]):
        stream = [*streams[completion.key], 11, 12]
        wanted = training_logprobs(other, stream + completion.token_ids)[len(stream) - 1 :]
        np.testing.assert_allclose(completion.logprobs, wanted, atol=1e-5, rtol=0)


def test_weights_may_change_in_the_middle_of_turns(tiny_model: Make) -> None:
    model, other = tiny_model(seed=1), tiny_model(seed=2)
    engine = LocalEngine(model, 4, 128, wait_share=0.25)
    for key in range(4):
        engine.submit(request(key, [5, 6, 7 + key], max_tokens=10 + 20 * key, end_ids=frozenset()))
    assert [completion.key for completion in engine.poll()] == [0]
    model.load_state_dict(other.state_dict())
    engine.update_weights(1)
    for _ in range(3):
        for completion in engine.poll():
            stream = [5, 6, 7 + int(str(completion.key)), *completion.token_ids]
            np.testing.assert_allclose(
                completion.logprobs[10:], training_logprobs(other, stream)[12:], atol=1e-5, rtol=0
            )


# ------------------------------------------------------------------------------------------------ rows and requests
def test_more_conversations_than_rows_queue(tiny_model: Make) -> None:
    engine = LocalEngine(tiny_model(), 3, 64)
    for key in range(10):
        engine.submit(request(key, [5, 6, 7 + key]))
    engine.release(9)
    done: list[Any] = []
    while completions := engine.poll():
        for completion in completions:
            done.append(completion.key)
            engine.release(completion.key)
    assert sorted(done) == list(range(9))


def test_a_turn_ends_at_an_end_token_or_a_limit(tiny_model: Make) -> None:
    engine = LocalEngine(tiny_model(), 3, 16)
    everything = frozenset(range(400))
    ended, short, full = engine.generate(
        [
            request("ended", [5, 6], end_ids=everything),
            request("short", [5, 6], max_tokens=3, end_ids=frozenset()),
            request("full", [5, 6], max_tokens=99, end_ids=frozenset()),
        ]
    )
    assert (ended.finished, len(ended.token_ids)) == ("end", 1)
    assert (short.finished, len(short.token_ids)) == ("length", 3)
    assert (full.finished, len(full.token_ids)) == ("length", 14)
    assert [key.key for key in (ended, short, full)] == ["ended", "short", "full"]


def test_wrong_requests_are_refused(tiny_model: Make) -> None:
    model = tiny_model()
    engine = LocalEngine(model, 2, 16)
    with pytest.raises(ConfigError, match="leave no room in max_context=16"):
        engine.submit(request("long", list(range(16))))
    with pytest.raises(ConfigError, match="the first prompt is empty"):
        engine.submit(request("empty", []))
    engine.submit(request("a", [5]))
    with pytest.raises(ConfigError, match="still running"):
        engine.submit(request("a", [5]))
    with pytest.raises(ConfigError, match="this engine has 2 rows"):
        engine.generate([request(i, [5]) for i in range(3)])
    with pytest.raises(ConfigError, match="the model has 256 positions"):
        LocalEngine(model, 2, 257)
    with pytest.raises(ConfigError, match="rows=0"):
        LocalEngine(model, 0, 16)
    with pytest.raises(ConfigError, match="wait_share=0"):
        LocalEngine(model, 1, 16, wait_share=0)


def test_nothing_to_do_is_an_empty_poll_and_closing_twice_is_fine(tiny_model: Make) -> None:
    engine = LocalEngine(tiny_model(), 2, 16)
    assert engine.poll() == []
    engine.release("never seen")
    engine.submit(request("a", [5]))
    engine.close()
    engine.close()
    assert engine.poll() == []


def test_waiting_rows_are_answered_together(tiny_model: Make) -> None:
    """Chunks are prefilled when a useful share of the rows waits, not one by one."""
    engine = LocalEngine(tiny_model(), 16, 256, wait_share=0.5)
    play(engine, 16, 4)
    assert engine.stats.prefills <= 12


# -------------------------------------------------------------------------------------------------------------- drafts
@pytest.fixture(scope="module", params=[3.0, 8.0])
def repetitive_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A model that is sure of most tokens, and comes back to the same ones; less so for the smaller factor."""
    config = ModelConfig(
        architecture="qwen3", hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48, context=512
    )
    model = build_model(config, 40, 1, pad_id=0, eos_id=2).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(request.param * 8)
    return model


class OnGPU(FusedDecoder):
    """Fed as it is on a GPU, where a pass is dear and a token is not."""

    pays_per_token = False


@pytest.mark.parametrize("kind", [FusedDecoder, OnGPU])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_guessed_tokens_are_those_that_one_pass_per_token_samples(
    repetitive_model: PreTrainedModel, temperature: float, kind: type[FusedDecoder]
) -> None:
    with_drafts = LocalEngine(repetitive_model, 7, 512, decoder=kind(repetitive_model, 7, 512))
    without = LocalEngine(repetitive_model, 7, 512, drafts=False)
    found = long_play(with_drafts, temperature)
    wanted = long_play(without, temperature)
    for key, (stream, logprobs) in wanted.items():
        assert found[key][0] == stream
        np.testing.assert_allclose(found[key][1], logprobs, atol=1e-4)
    assert with_drafts.stats.guessed_tokens > 0.2 * with_drafts.stats.sampled_tokens
    assert with_drafts.stats.sampled_tokens == without.stats.sampled_tokens
    assert with_drafts.stats.decode_steps < 0.85 * without.stats.decode_steps
    assert without.stats.guessed_tokens == 0


def long_play(engine: LocalEngine, temperature: float) -> dict[int, Any]:
    """`play` with few tokens to say, turns of up to forty tokens, and one token that ends them."""
    streams: dict[int, list[int]] = {}
    logprobs: dict[int, list[float]] = {}
    generators = {key: generator("long", key) for key in range(12)}
    for key in range(12):
        streams[key], logprobs[key] = [], []
        prompt = np.random.default_rng(key // 4).integers(3, 40, 40 + key // 4).tolist()
        options = {"generator": generators[key], "temperature": temperature, "max_tokens": 5 + 3 * key}
        engine.submit(request(key, prompt, **options))
    left = dict.fromkeys(range(12), 4)
    while left:
        for completion in engine.poll():
            key = int(completion.key)  # type: ignore[call-overload]
            assert len(completion.token_ids) == len(completion.logprobs) <= 5 + 3 * key
            assert (completion.finished == "end") == (completion.token_ids[-1] in END)
            assert not set(completion.token_ids[:-1]) & END
            streams[key] += completion.token_ids
            logprobs[key] += completion.logprobs
            left[key] -= 1
            if left[key]:
                options = {"generator": generators[key], "temperature": temperature, "max_tokens": 5 + 3 * key}
                engine.submit(request(key, [3 + key, 4, 5], **options))
            else:
                del left[key]
                engine.release(key)
    return {key: (streams[key], np.array(logprobs[key])) for key in streams}


def test_a_guess_is_what_always_came_after_the_same_tokens() -> None:
    drafts = Drafts()
    assert drafts.guess([1, 2, 3], 9) == []
    drafts.learn([1, 2, 3, 4, 5, 6, 7])
    assert drafts.guess([1, 2, 3], 9) == []  # seen once
    drafts.learn([1, 2, 3, 4, 5, 6, 7])
    assert drafts.guess([1, 2, 3], 9) == [4, 5, 6, 7]
    assert drafts.guess([1, 2, 3], 2) == [4, 5]
    assert drafts.guess([2, 3], 9) == []
    drafts.learn([2, 3, 4, 9])
    assert drafts.guess([1, 2, 3], 9) == [4]  # 5 and 9 came after 2, 3, 4
    drafts.learn([2, 3, 4, 5])
    assert drafts.guess([1, 2, 3], 9) == [4]
    drafts.learn([20, *range(20, 23), *([20, 21, 22] * 9)])
    assert len(drafts.guess([20, 21, 22], 99)) == LONGEST
    drafts.clear()
    assert drafts.guess([1, 2, 3], 9) == []


def test_guesses_leave_room_for_the_logits_of_a_large_vocabulary(
    repetitive_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Measured(FusedDecoder):
        def verify(self, *call: Any) -> torch.Tensor:
            logits = super().verify(*call)
            sizes.append(logits.numel() - len(call[0]) * logits.shape[1])
            return logits

    for limit, most_guesses in ((40 * 7 * 5, 7 * 4), (39, 0)):
        monkeypatch.setattr(local_engine, "MOST_LOGITS", limit)
        sizes.clear()
        engine = LocalEngine(repetitive_model, 7, 512, decoder=Measured(repetitive_model, 7, 512))
        long_play(engine, 0.0)
        assert max(sizes) <= 40 * most_guesses
        assert (engine.stats.guessed_tokens > 0) == (most_guesses > 0)


def test_only_decoders_that_verify_get_guesses(repetitive_model: PreTrainedModel) -> None:
    engine = LocalEngine(repetitive_model, 7, 512, decoder=CachedDecoder(repetitive_model, 7, 512))
    long_play(engine, 0.0)
    assert engine.stats.guessed_tokens == 0

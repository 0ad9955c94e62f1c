"""The engine over HTTP against our own server: the tokens and log-probabilities of the engine in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeded_engine import SeededEngine
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from palaestra.core.errors import ConfigError, EnvironmentFailure
from palaestra.core.seeding import generator
from palaestra.models.engine import Completion, GenerationRequest
from palaestra.models.http_engine import HttpEngine, HttpEngineConfig
from palaestra.models.loading import save_model
from palaestra.models.local_engine import LocalEngine
from palaestra.models.served_model import ServedModel
from palaestra.models.server import ModelServer

KEY = "a secret"
CONTEXT = 200
MakeModel = Callable[..., PreTrainedModel]
Conversation = list[tuple[list[int], list[float]]]


@pytest.fixture(scope="module")
def server(tiny_model: MakeModel, compact_tokenizer: PreTrainedTokenizerFast) -> Iterator[ModelServer]:
    model = tiny_model(vocab_size=len(compact_tokenizer))
    served = ServedModel(model, compact_tokenizer, name="tiny", folder="nowhere", rows=16, max_context=CONTEXT)
    with ModelServer(served, host="127.0.0.1", port=0, api_key=KEY, weight_updates=True) as server:
        yield server


def configured(server: Any, tmp_path: Path, **changes: Any) -> HttpEngineConfig:
    values = {"url": server.url, "folder": tmp_path / "weights", "api_key": KEY, "tries": 4, "first_pause_s": 0.01}
    return HttpEngineConfig(**(values | changes))


@pytest.fixture
def engine(server: ModelServer, tmp_path: Path) -> Iterator[HttpEngine]:
    engine = HttpEngine(configured(server, tmp_path), lambda folder: None, rows=5, max_context=1000)
    yield engine
    engine.close()


def play(engine: Any, episodes: int, turns: int, temperature: float = 1.0) -> list[Conversation]:
    """Conversations of several turns, each of which goes on as soon as its answer is there."""
    vocabulary, played = 380, [[] for _ in range(episodes)]
    randoms = [generator("episode", i) for i in range(episodes)]
    contexts = [generator("context", i) for i in range(episodes)]

    def ask(i: int) -> None:
        words = contexts[i].integers(3, vocabulary, 4 + i % 3 if played[i] else 9).tolist()
        engine.submit(
            GenerationRequest(
                key=i,
                token_ids=words,
                generator=randoms[i],
                temperature=temperature,
                max_tokens=7 + i % 4,
                end_ids=frozenset({2, *range(5, 40)}),
            )
        )

    for i in range(episodes):
        ask(i)
    while not all(len(turns_of) == turns for turns_of in played):
        for completion in engine.poll():
            assert isinstance(completion.key, int)
            assert completion.finished == ("end" if completion.token_ids[-1] in {2, *range(5, 40)} else "length")
            played[completion.key].append((completion.token_ids, completion.logprobs))
            if len(played[completion.key]) < turns:
                ask(completion.key)
            else:
                engine.release(completion.key)
    return played


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_equal_seeds_give_the_local_engines_tokens_and_logprobs(
    server: ModelServer, engine: HttpEngine, temperature: float
) -> None:
    local = SeededEngine(server.served._model, 6, CONTEXT)
    wanted, given = play(local, 11, 3, temperature), play(engine, 11, 3, temperature)
    assert [[ids for ids, _ in turns] for turns in given] == [[ids for ids, _ in turns] for turns in wanted]
    gap = max(
        float(np.abs(np.array(mine) - np.array(theirs)).max())
        for turns, others in zip(given, wanted, strict=True)
        for (_, mine), (_, theirs) in zip(turns, others, strict=True)
    )
    assert gap < 1e-5
    sampled = sum(len(ids) for turns in wanted for ids, _ in turns)
    assert engine.stats.sampled_tokens == sampled == local.stats.sampled_tokens
    read = engine.stats.prefilled_tokens
    assert read <= local.stats.prefilled_tokens + 33, "the server's prefix cache: each token is read once"
    assert len({ids for turns in given for ids, _ in turns for ids in ids}) > 10


def test_the_servers_context_bounds_the_engines(engine: HttpEngine) -> None:
    assert engine.max_context == CONTEXT
    rng = generator("x")
    with pytest.raises(ConfigError, match="leave no room in max_context=200"):
        engine.submit(
            GenerationRequest(key=1, token_ids=[7] * CONTEXT, generator=rng, max_tokens=1, end_ids=frozenset())
        )
    request = GenerationRequest(key=1, token_ids=[7] * (CONTEXT - 3), generator=rng, max_tokens=50, end_ids=frozenset())
    assert len(engine.generate([request])[0].token_ids) == 3


def greedy(engine: HttpEngine, key: object = "greedy") -> list[int]:
    request = GenerationRequest(
        key=key, token_ids=[9, 8, 7, 6], generator=generator("g"), temperature=0.0, max_tokens=8, end_ids=frozenset()
    )
    completion = engine.generate([request])[0]
    engine.release(key)
    assert completion.failure is None, completion.failure
    return completion.token_ids


def local_greedy(model: PreTrainedModel) -> list[int]:
    request = GenerationRequest(
        key=0, token_ids=[9, 8, 7, 6], generator=generator("g"), temperature=0.0, max_tokens=8, end_ids=frozenset()
    )
    return LocalEngine(model, 1, 64).generate([request])[0].token_ids


@pytest.fixture
def own_server(tiny_model: MakeModel, compact_tokenizer: PreTrainedTokenizerFast) -> Iterator[ModelServer]:
    """A server whose weights a test changes."""
    model = tiny_model(vocab_size=len(compact_tokenizer))
    served = ServedModel(model, compact_tokenizer, name="tiny", folder="nowhere", rows=16, max_context=CONTEXT)
    with ModelServer(served, host="127.0.0.1", port=0, api_key=KEY, weight_updates=True) as server:
        yield server


def test_a_weight_update_by_folder_is_seen(
    own_server: ModelServer, tmp_path: Path, tiny_model: MakeModel, compact_tokenizer: PreTrainedTokenizerFast
) -> None:
    policy = tiny_model(vocab_size=len(compact_tokenizer), seed=1)
    engine = HttpEngine(
        configured(own_server, tmp_path), lambda folder: save_model(policy, compact_tokenizer, folder), 3, CONTEXT
    )
    before = greedy(engine)
    assert before != local_greedy(policy)
    engine.update_weights(0)
    assert greedy(engine) == local_greedy(policy), "the first version too: what the server began with is unknown"
    other = tiny_model(vocab_size=len(compact_tokenizer), seed=2)
    policy.load_state_dict(other.state_dict())
    engine.update_weights(0)
    assert greedy(engine) != local_greedy(policy), "the same version is not sent again"
    engine.update_weights(1)
    assert greedy(engine) == local_greedy(policy)
    assert len(list((tmp_path / "weights").iterdir())) == 1, "one version is kept"
    engine.close()
    assert not list((tmp_path / "weights").iterdir())


def test_other_weights_than_ours_fail_the_turn_and_are_replaced(
    own_server: ModelServer, tmp_path: Path, tiny_model: MakeModel, compact_tokenizer: PreTrainedTokenizerFast
) -> None:
    """What a server that was started anew would do: it answers, with the weights that it began with."""
    policy = tiny_model(vocab_size=len(compact_tokenizer), seed=1)
    engine = HttpEngine(
        configured(own_server, tmp_path), lambda folder: save_model(policy, compact_tokenizer, folder), 3, CONTEXT
    )
    engine.update_weights(3)
    own_server.served.batcher.label = "default"
    request = GenerationRequest(key=1, token_ids=[5], generator=generator(), max_tokens=4, end_ids=frozenset())
    failed = engine.generate([request])[0]
    assert failed.finished == "failed"
    assert failed.token_ids == []
    assert failed.failure is not None
    assert (failed.failure["kind"], failed.failure["retryable"]) == ("stale_weights", True)
    engine.release(1)
    assert greedy(engine) == local_greedy(policy), "the weights were sent again"
    engine.close()


def save_lora(folder: Path, model: PreTrainedModel, seed: int) -> None:
    """An adapter in peft's format."""
    import json

    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "down_proj")):
            out, inner = module.weight.shape  # pyright: ignore
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(3, inner, generator=random)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, 3, generator=random)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 6}))


def test_a_weight_update_by_adapter_is_seen(
    own_server: ModelServer, tmp_path: Path, tiny_model: MakeModel, compact_tokenizer: PreTrainedTokenizerFast
) -> None:
    base = tiny_model(vocab_size=len(compact_tokenizer))
    seeds = iter([1, 2])
    engine = HttpEngine(
        configured(own_server, tmp_path, weight_sync="lora"),
        lambda folder: save_lora(folder, base, next(seeds)),
        3,
        CONTEXT,
    )
    plain = local_greedy(base)
    outputs = []
    for version in (0, 1):
        engine.update_weights(version)
        outputs.append(greedy(engine))
    assert plain not in outputs
    assert outputs[0] != outputs[1]
    names = [card["id"] for card in own_server.served.models()["data"]]
    assert len(names) == 2
    assert "-v1-" in names[1], "the older adapter is gone"
    base_engine = HttpEngine(configured(own_server, tmp_path / "other"), lambda folder: None, 3, CONTEXT)
    assert greedy(base_engine) == plain, "the model itself is served beside its adapter"
    assert greedy(engine) == outputs[1]

    own_server.served.unload_adapter(names[1])  # as in a server that was started anew
    request = GenerationRequest(key=1, token_ids=[5], generator=generator(), max_tokens=4, end_ids=frozenset())
    failed = engine.generate([request])[0]
    assert failed.failure is not None
    assert failed.failure["kind"] == "stale_weights"
    engine.close()
    base_engine.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"api_key": "wrong"}, "status 401: Unauthorized; set the variable VLLM_API_KEY to the server's key"),
        ({"model": "huge"}, "has no model 'huge'; name one of: tiny"),
        ({"url": "http://127.0.0.1:9"}, "no server answers at http://127.0.0.1:9"),
        ({"url": "localhost:8000"}, "write http://HOST:PORT"),
    ],
)
def test_what_is_wrong_with_the_server_is_said_at_once(
    server: ModelServer, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        HttpEngine(configured(server, tmp_path, **changes), lambda folder: None, 1, 10)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sync", "said"), [("folder", "VLLM_SERVER_DEV_MODE=1"), ("lora", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True")]
)
def test_a_server_that_takes_no_weights_is_told_apart(
    server: ModelServer, tmp_path: Path, sync: Any, said: str
) -> None:
    with ModelServer(server.served, host="127.0.0.1", port=0, api_key=KEY) as plain:
        plain.served = _Kept()  # pyright: ignore[reportAttributeAccessIssue]
        engine = HttpEngine(
            configured(plain, tmp_path, weight_sync=sync), lambda folder: folder.mkdir(parents=True), 1, 10
        )
        with pytest.raises(ConfigError, match=said):
            engine.update_weights(0)
        engine.close()


class _Kept:
    def close(self) -> None:
        """The model is another server's."""


def test_wrong_weights_are_refused_in_one_line(own_server: ModelServer, tmp_path: Path) -> None:
    for sync in ("folder", "lora"):
        engine = HttpEngine(
            configured(own_server, tmp_path, weight_sync=sync), lambda folder: folder.mkdir(parents=True), 1, 10
        )
        with pytest.raises(
            ConfigError, match=r"refuses the (weights|adapter): status 400: .*(model folder|no adapter)"
        ):
            engine.update_weights(0)
        engine.close()
    assert not own_server.served.batcher.is_paused


# -- faults, with a server that misbehaves ------------------------------------------------------------------------


def completion(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    ids = [body["prompt"][-1], 2]
    choice = {"index": 0, "text": "", "finish_reason": "stop", "token_ids": ids}
    return {
        "model": body["model"],
        "choices": [{**choice, "logprobs": {"token_logprobs": [-0.5, -0.25]}, **changes}],
        "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": 2},
    }


@pytest.fixture
def fake(chat_server: Any) -> Any:
    chat_server.answers["/v1/completions"] = completion
    return chat_server


def asked(key: int) -> GenerationRequest:
    return GenerationRequest(
        key=key, token_ids=[key + 10], generator=generator("asked", key), max_tokens=4, end_ids=frozenset({2})
    )


def faulty(fake: Any, tmp_path: Path, rows: int = 3, **changes: Any) -> HttpEngine:
    return HttpEngine(configured(fake, tmp_path, **changes), lambda folder: None, rows, 64)


@pytest.mark.parametrize(
    "faults", [[503], [429, 500], ["drop"], ["garbage", "drop"], [(200, {"no": 1})], [(200, b"{}")]]
)
def test_what_passes_is_tried_again(fake: Any, tmp_path: Path, faults: list[Any]) -> None:
    engine = faulty(fake, tmp_path)
    fake.faults = list(faults)
    assert engine.generate([asked(1)]) == [Completion(key=1, token_ids=[11, 2], logprobs=[-0.5, -0.25], finished="end")]
    assert engine.stats.retries == len(faults)
    assert len({str(body) for body in fake.requests}) == 1, "the same request, seed included"
    engine.close()


def test_a_request_as_vllm_takes_it(fake: Any, tmp_path: Path) -> None:
    engine = faulty(fake, tmp_path)
    request = asked(1)
    engine.generate([request])
    engine.generate([replace(request, token_ids=[30, 31], temperature=0.5)])
    first, second = fake.requests
    assert first["prompt"] == [11]
    assert second["prompt"] == [11, 11, 2, 30, 31], "the whole context, as it was sampled"
    seed = second.pop("seed")
    assert 0 <= seed < 2**63
    assert seed != first["seed"]
    assert second == {
        "model": "tiny",
        "prompt": [11, 11, 2, 30, 31],
        "max_tokens": 4,
        "temperature": 0.5,
        "stop_token_ids": [2],
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    assert fake.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(configured(fake, tmp_path))
    engine.close()


def test_a_server_that_keeps_failing_fails_the_turn_alone(fake: Any, tmp_path: Path) -> None:
    fake.answers["/v1/completions"] = lambda body: completion(body) if body["prompt"] == [11] else (503, {})
    engine = faulty(fake, tmp_path)
    good, bad = engine.generate([asked(1), asked(2)])
    assert good.finished == "end"
    assert (bad.finished, bad.token_ids) == ("failed", [])
    assert bad.failure is not None
    assert (bad.failure["kind"], bad.failure["retryable"]) == ("endpoint", True)
    assert "failed 4 times, last with status 503" in bad.failure["message"]
    engine.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token_ids": None}, "no token ids with log-probabilities"),
        ({"logprobs": None}, "no token ids with log-probabilities"),
    ],
)
def test_a_server_without_token_ids_cannot_be_trained_on(
    fake: Any, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    fake.answers["/v1/completions"] = lambda body: completion(body, **changes)
    engine = faulty(fake, tmp_path)
    with pytest.raises(ConfigError, match=said):
        engine.generate([asked(1)])
    assert len(fake.requests) == 1
    engine.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"finish_reason": "abort", "token_ids": [1]},
        {"token_ids": [1, 2, 3]},
        {"token_ids": [], "logprobs": {"token_logprobs": []}},
        {"logprobs": {"token_logprobs": [None, -1.0]}},
        {"logprobs": {"token_logprobs": [float("nan"), -1.0]}},
        {"token_ids": [1] * 5, "logprobs": {"token_logprobs": [-1.0] * 5}},
    ],
)
def test_a_broken_answer_is_never_an_action(fake: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    fake.answers["/v1/completions"] = lambda body: completion(body, **changes)
    engine = faulty(fake, tmp_path, tries=2)
    assert engine.generate([asked(1)])[0].finished == "failed"
    engine.close()


def test_a_refusal_is_raised_by_poll(fake: Any, tmp_path: Path) -> None:
    engine = faulty(fake, tmp_path)
    fake.faults = [(400, {"error": {"message": "temperature is too hot"}})]
    engine.submit(asked(1))
    with pytest.raises(ConfigError, match="refuses the request: status 400: temperature is too hot"):
        engine.poll()
    engine.close()


def test_no_more_requests_than_rows_are_under_way(fake: Any, tmp_path: Path) -> None:
    engine, fake.delay_s = faulty(fake, tmp_path, rows=3), 0.05
    completions = engine.generate([asked(key) for key in range(10)])
    assert [completion.key for completion in completions] == list(range(10))
    assert fake.most_at_once == 3
    engine.close()


def test_what_was_released_is_not_answered(fake: Any, tmp_path: Path) -> None:
    engine, fake.delay_s = faulty(fake, tmp_path, rows=1), 0.05
    for key in range(4):
        engine.submit(asked(key))
    for key in (0, 2, 3):
        engine.release(key)
    assert [completion.key for completion in engine.poll()] == [1]
    assert engine.poll() == []
    assert len(fake.requests) <= 3, "what waits in the queue is not even sent"
    engine.close()
    engine.close()
    assert threading.active_count() < 40


def test_a_lost_server_ends_a_weight_update(tmp_path: Path, fake: Any) -> None:
    engine = faulty(fake, tmp_path, tries=2)
    fake.answers["/pause?mode=wait"] = lambda body: (503, {})
    with pytest.raises(EnvironmentFailure, match="failed 2 times"):
        engine.update_weights(1)
    engine.close()

"""Our model server over real HTTP: its answers, what it refuses, what it caches, pauses and clients that go away."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from palaestra.core.errors import ConfigError
from palaestra.core.messages import user
from palaestra.models.chat import ChatFormat
from palaestra.models.loading import save_model
from palaestra.models.served_model import ServedModel
from palaestra.models.server import ModelServer

CONTEXT = 96
RELOAD_FROM_NOWHERE = {"method": "reload_weights", "kwargs": {"weights_path": "/no/where"}}


@pytest.fixture(scope="module")
def server(
    tiny_model: Callable[..., PreTrainedModel], qwen_tokenizer: PreTrainedTokenizerFast
) -> Iterator[ModelServer]:
    model = tiny_model("qwen3", vocab_size=len(qwen_tokenizer))
    served = ServedModel(model, qwen_tokenizer, name="tiny", folder="nowhere", rows=4, max_context=CONTEXT)
    with ModelServer(served, host="127.0.0.1", port=0, weight_updates=True) as server:
        yield server


def call(server: ModelServer, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """The status of a request, and its answer's JSON data (or text)."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url.removesuffix("/v1") + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, raw = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, raw = error.code, error.read()
    try:
        return status, json.loads(raw) if raw else None
    except ValueError:
        return status, raw.decode()


def complete(server: ModelServer, **fields: Any) -> Any:
    body = {"prompt": [7, 8, 9], "max_tokens": 6, "ignore_eos": True, "return_token_ids": True, "logprobs": 0, **fields}
    status, data = call(server, "/v1/completions", body)
    assert status == 200, data
    return data


def test_health_and_models(server: ModelServer) -> None:
    assert call(server, "/health") == (200, None)
    status, data = call(server, "/v1/models")
    assert status == 200
    assert [(card["id"], card["max_model_len"]) for card in data["data"]] == [("tiny", CONTEXT)]


def test_a_completion_by_token_ids(server: ModelServer) -> None:
    data = complete(server, seed=5)
    choice = data["choices"][0]
    assert data["model"] == "tiny"
    assert choice["prompt_token_ids"] == [7, 8, 9]
    assert len(choice["token_ids"]) == len(choice["logprobs"]["token_logprobs"]) == 6
    assert choice["finish_reason"] == "length"
    assert choice["weight_versions"] == [{"version": "default", "start": 0, "end": 6}]
    assert data["usage"]["prompt_tokens"] == 3
    assert data["usage"]["completion_tokens"] == 6
    stream = torch.tensor([[7, 8, 9, *choice["token_ids"]]])
    with torch.no_grad():
        wanted = server.served._model(input_ids=stream).logits[0, 2:-1].log_softmax(-1)
    gap = wanted.gather(1, stream[0, 3:, None])[:, 0] - torch.tensor(choice["logprobs"]["token_logprobs"])
    assert float(gap.abs().max()) < 1e-5
    again = complete(server, seed=5)["choices"][0]
    assert again["token_ids"] == choice["token_ids"], "equal seeds, equal answers"
    texts = {complete(server)["choices"][0]["text"] for _ in range(4)}
    assert len(texts) > 1, "no seed, another answer each time"


def test_fields_decide_what_is_sent_back(server: ModelServer) -> None:
    ids = complete(server, seed=5)["choices"][0]["token_ids"]
    stopped = complete(server, seed=5, stop_token_ids=[ids[2]])["choices"][0]
    cut = ids.index(ids[2]) + 1
    assert (stopped["token_ids"], stopped["finish_reason"]) == (ids[:cut], "stop")
    bare = call(server, "/v1/completions", {"prompt": "Take x", "model": "tiny", "max_tokens": 2})[1]["choices"][0]
    assert bare["logprobs"] is None
    assert "token_ids" not in bare
    assert isinstance(bare["text"], str)
    greedy = [complete(server, temperature=0, seed=seed)["choices"][0]["token_ids"] for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    long = complete(server, prompt=[7] * (CONTEXT - 2), max_tokens=50)["choices"][0]
    assert len(long["token_ids"]) == 2


def test_a_prompt_that_goes_on_reads_only_what_is_new(server: ModelServer) -> None:
    stats = server.served.batcher._engine.stats
    first = complete(server, seed=1)
    read = stats.prefilled_tokens
    longer = [7, 8, 9, *first["choices"][0]["token_ids"], 11, 12]
    second = complete(server, prompt=longer, seed=2)
    assert stats.prefilled_tokens - read == 3, "the last sampled token, and two new ones"
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == len(longer) - 3
    assert call(server, "/reset_prefix_cache", {}) == (200, {"success": True})
    read = stats.prefilled_tokens
    anew = complete(server, prompt=longer, seed=2)
    assert stats.prefilled_tokens - read == len(longer)
    assert anew["choices"][0]["token_ids"] == second["choices"][0]["token_ids"]


def test_more_requests_than_rows_are_all_answered_and_share_batches(server: ModelServer) -> None:
    stats = server.served.batcher._engine.stats
    alone = [complete(server, prompt=[7, i], seed=i, max_tokens=40)["choices"][0]["token_ids"] for i in range(12)]
    before = stats.decode_steps
    with ThreadPoolExecutor(12) as threads:
        together = list(
            threads.map(
                lambda i: complete(server, prompt=[7, i], seed=i, max_tokens=40)["choices"][0]["token_ids"], range(12)
            )
        )
    assert together == alone, "an answer does not depend on who else asks"
    assert stats.decode_steps - before < 12 * 40 / 2, "requests are decoded together"


def test_a_short_request_does_not_wait_for_a_long_one(server: ModelServer) -> None:
    ended: list[str] = []

    def ask(name: str, tokens: int) -> None:
        complete(server, prompt=[5, 6], max_tokens=tokens)
        ended.append(name)

    slow = threading.Thread(target=ask, args=("long", CONTEXT - 2))
    server.served.batcher.pause("keep")
    slow.start()
    quick = threading.Thread(target=ask, args=("short", 1))
    time.sleep(0.1)
    quick.start()
    time.sleep(0.1)
    assert not ended
    server.served.batcher.resume()
    slow.join()
    quick.join()
    assert ended == ["short", "long"]


def test_a_chat(server: ModelServer, qwen_tokenizer: PreTrainedTokenizerFast) -> None:
    body = {"messages": [{"role": "user", "content": "Go."}], "max_tokens": 5, "seed": 3, "temperature": 0.5}
    status, data = call(server, "/v1/chat/completions", body)
    assert status == 200, data
    message = data["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert "tool_calls" not in message
    chat = ChatFormat(qwen_tokenizer)
    prompt = chat.start([user("Go.")])
    assert data["usage"]["prompt_tokens"] == len(prompt)
    ids = complete(server, prompt=prompt, max_tokens=5, seed=3, temperature=0.5)["choices"][0]["token_ids"]
    assert message["content"] == chat.decode(ids), "the same model, by another call"
    parts = [{"type": "text", "text": "G"}, {"type": "text", "text": "o."}]
    same = call(server, "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": parts}]})[1]
    assert same["choices"][0]["message"] == message


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (
            "/v1/completions",
            {"prompt": [1], "model": "huge"},
            404,
            "`huge` does not exist; this server has tiny",
        ),
        ("/v1/completions", {"prompt": [1] * CONTEXT}, 400, f"maximum context length is {CONTEXT} tokens"),
        ("/v1/completions", {"prompt": [10**6]}, 400, "token ids below"),
        ("/v1/completions", {"prompt": []}, 400, "prompt: must be one text"),
        ("/v1/completions", {"prompt": [[1], [2]]}, 400, "prompt: must be one text"),
        ("/v1/completions", {"prompt": [1.5]}, 400, "prompt: must be one text"),
        ("/v1/completions", {"prompt": ""}, 400, "token ids below"),
        ("/v1/completions", {"prompt": [1], "stream": True}, 400, "stream=true is not supported"),
        ("/v1/completions", {"prompt": [1], "top_p": 0.9}, 400, "top_p=0.9 is not supported"),
        ("/v1/completions", {"prompt": [1], "logprobs": 5}, 400, "logprobs=5: only the sampled"),
        ("/v1/completions", {"prompt": [1], "temperature": -1}, 400, "temperature=-1.0: must be at least 0"),
        ("/v1/completions", {"prompt": [1], "temperature": "hot"}, 400, 'temperature="hot": must be a number'),
        ("/v1/completions", {"prompt": [1], "max_tokens": 0}, 400, "max_tokens=0: must be at least 1"),
        ("/v1/completions", {"prompt": [1], "seed": "x"}, 400, 'seed="x": must be a whole number'),
        ("/v1/completions", {"prompt": [1], "stop_token_ids": [-1]}, 400, "stop_token_ids: must be a list"),
        ("/v1/completions", {"prompt": [1], "stop_token_ids": [10**6]}, 400, "token ids below"),
        ("/v1/completions", b"not JSON", 400, "the body is not JSON"),
        ("/v1/completions", b"[1]", 400, "must be a JSON object"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages: must be a list"),
        ("/v1/chat/completions", {"messages": [{"role": "boss", "content": "Go."}]}, 400, "needs a role"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, 400, "content must be text"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Go."}], "tools": [{"name": "run"}]},
            400,
            "tools: must be a list",
        ),
        ("/v1/nothing", {}, 404, "Not Found: POST /v1/nothing"),
        ("/collective_rpc", {"method": "exec"}, 400, "knows 'reload_weights' only"),
        (
            "/collective_rpc",
            {"method": "reload_weights", "kwargs": {"weights_path": "/no/where"}},
            400,
            "no model folder",
        ),
        ("/v1/load_lora_adapter", {"lora_name": "a"}, 400, "'lora_name' and 'lora_path'"),
        ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "/no/where"}, 404, "holds no adapter"),
        ("/v1/unload_lora_adapter", {"lora_name": "a"}, 404, "cannot be found"),
        ("/pause?mode=maybe", {}, 400, "mode=maybe: must be one of"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(
    server: ModelServer, path: str, body: Any, status: int, said: str
) -> None:
    given, data = call(server, path, body)
    assert given == status
    assert said in data["error"]["message"]
    assert "\n" not in data["error"]["message"]
    assert data["error"]["code"] == status
    assert complete(server)["choices"], "the server goes on"


def test_a_key_is_asked_for_everywhere_but_at_health(
    server: ModelServer,
) -> None:
    with ModelServer(server.served, host="127.0.0.1", port=0, api_key="k", weight_updates=True) as locked:
        locked.served = _Kept()  # pyright: ignore[reportAttributeAccessIssue]
        assert call(locked, "/health")[0] == 200
        for path in ("/v1/models", "/is_paused", "/v1/completions"):
            assert call(locked, path)[0] == 401
            assert call(locked, path, Authorization="Bearer wrong")[0] == 401
        assert call(locked, "/pause", {"big": "x" * 100_000})[0] == 401
        assert not server.served.batcher.is_paused
        assert call(locked, "/v1/models", Authorization="Bearer k")[0] == 200


class _Kept:
    def close(self) -> None:
        """The model is another server's."""


def test_pauses(server: ModelServer) -> None:
    assert call(server, "/pause?mode=wait", {}) == (200, {"status": "paused"})
    assert call(server, "/is_paused") == (200, {"is_paused": True})
    status, data = call(server, "/v1/completions", {"prompt": [1]})
    assert (status, data["error"]["type"]) == (503, "ServiceUnavailableError")
    assert call(server, "/resume", {})[0] == 200
    assert complete(server)["choices"]

    with ThreadPoolExecutor(1) as thread:
        server.served.batcher.pause("keep")
        late = thread.submit(complete, server, seed=1)
        time.sleep(0.2)
        assert not late.done()
        assert call(server, "/pause", {})[0] == 200, "abort"
        assert late.result()["choices"][0]["finish_reason"] == "abort"
    call(server, "/resume", {})
    assert complete(server, seed=1)["choices"][0]["finish_reason"] == "length"


def test_weights_of_another_shape_are_refused(
    server: ModelServer,
    tmp_path: Path,
    tiny_model: Callable[..., PreTrainedModel],
    qwen_tokenizer: PreTrainedTokenizerFast,
) -> None:
    other = tiny_model("qwen3", vocab_size=len(qwen_tokenizer), layers=1)
    save_model(other, qwen_tokenizer, tmp_path / "other")
    before = complete(server, seed=1)["choices"][0]["token_ids"]
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "other")}}
    status, data = call(server, "/collective_rpc", body)
    assert (status, "of another shape" in data["error"]["message"]) == (400, True)
    assert complete(server, seed=1)["choices"][0]["token_ids"] == before


def test_a_client_that_goes_away_takes_its_request_with_it(server: ModelServer) -> None:
    batcher = server.served.batcher
    batcher.pause("keep")
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))
    connection.request("POST", "/v1/completions", json.dumps({"prompt": [1, 2], "max_tokens": 90}))
    wait_for(lambda: len(batcher._waiting) == 1)
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    wait_for(lambda: not batcher._waiting)
    batcher.resume()
    assert complete(server)["choices"]


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_taken_port_is_said(server: ModelServer) -> None:
    port = int(server.url.split(":")[2].split("/")[0])
    with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1:{port}: .*--port=0 takes a free port"):
        ModelServer(server.served, host="127.0.0.1", port=port)

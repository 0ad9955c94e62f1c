"""The client of an OpenAI-compatible server, against a real one that misbehaves."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from palaestra.core.errors import ConfigError, EnvironmentFailure
from palaestra.core.messages import assistant, system, tool, user
from palaestra.models.chat_endpoint import ChatEndpoint, ContextLimitReached, EndpointConfig, Reply

CONVERSATION = [system("Be brief."), user("Go."), assistant("run"), tool("ok")]


def endpoint(server: Any, **changes: Any) -> ChatEndpoint:
    config = {"base_url": server.url, "model": "tiny", "first_pause_s": 0.01, "tries": 4, "timeout_s": 20.0}
    return ChatEndpoint(EndpointConfig(**(config | changes)))


def complete(server: Any, **changes: Any) -> Reply:
    return endpoint(server, **changes).complete(CONVERSATION, temperature=0.5, max_tokens=7, seed=2**40 + 5)


def test_a_request_and_its_reply(chat_server: Any) -> None:
    reply = complete(chat_server, api_key="secret", base_url=chat_server.url + "/")
    assert reply == Reply(text="reply 4", prompt_tokens=5, completion_tokens=2, tries=1)
    assert chat_server.requests == [
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Go."},
                {"role": "assistant", "content": "run"},
                {"role": "user", "content": "ok"},
            ],
            "temperature": 0.5,
            "max_tokens": 7,
            "seed": (2**40 + 5) % 2**31,
        }
    ]
    assert chat_server.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in repr(EndpointConfig(base_url=chat_server.url, model="tiny", api_key="secret"))
    complete(chat_server)
    assert "Authorization" not in chat_server.headers[1]


@pytest.mark.parametrize("faults", [[500], [429, 503, 502], ["drop"], ["garbage", "drop"], [(200, {"no": 1})]])
def test_what_passes_is_tried_again(chat_server: Any, faults: list[Any]) -> None:
    chat_server.faults = list(faults)
    assert complete(chat_server).tries == len(faults) + 1
    assert len({str(request) for request in chat_server.requests}) == 1, "the same request, seed included"


def test_pauses_grow_and_a_server_may_ask_for_longer_ones(chat_server: Any) -> None:
    chat_server.faults = [500, 500]
    started = time.monotonic()
    complete(chat_server, first_pause_s=0.1)
    assert 0.15 <= time.monotonic() - started < 3
    chat_server.faults = [(429, {"message": "slow down"}, {"Retry-After": "0.4"})]
    started = time.monotonic()
    complete(chat_server)
    assert time.monotonic() - started >= 0.4
    chat_server.faults = [(429, {}, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})]
    assert complete(chat_server).tries == 2


def test_a_server_that_keeps_failing_fails_the_episode(chat_server: Any) -> None:
    chat_server.faults = [503] * 4
    with pytest.raises(EnvironmentFailure, match="failed 4 times, last with status 503: fault 503") as caught:
        complete(chat_server)
    assert caught.value.retryable
    assert len(chat_server.requests) == 4


def test_a_slow_answer_is_given_up(chat_server: Any) -> None:
    chat_server.delay_s = 1.0
    with pytest.raises(EnvironmentFailure, match="timed out"):
        complete(chat_server, timeout_s=0.1, tries=2)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"error": {"message": "wrong key"}}, "status 401: wrong key"),
        (404, {"message": "no model tiny"}, "status 404: no model tiny"),
        (422, {"detail": "seed is not taken"}, "seed is not taken"),
        (400, b"plain text", "status 400: plain text"),
    ],
)
def test_a_refusal_is_an_error_at_once(chat_server: Any, status: int, body: Any, said: str) -> None:
    chat_server.faults = [(status, body)]
    with pytest.raises(ConfigError, match="refuses requests for model 'tiny'") as caught:
        complete(chat_server)
    assert said in str(caught.value)
    assert len(chat_server.requests) == 1


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
        "the request exceeds the available context size, context window is full",
    ],
)
def test_a_full_context_is_no_refusal(chat_server: Any, message: str) -> None:
    chat_server.faults = [(400, {"error": {"message": message, "code": "context_length_exceeded"}})]
    with pytest.raises(ContextLimitReached):
        complete(chat_server)


def test_an_empty_reply_is_an_empty_text(chat_server: Any) -> None:
    chat_server.faults = [(200, {"choices": [{"message": {"content": None}}]})]
    assert complete(chat_server) == Reply(text="", prompt_tokens=0, completion_tokens=0, tries=1)


def test_nobody_there_is_said_before_anything_starts(chat_server: Any) -> None:
    endpoint(chat_server).check()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ConfigError, match=f"no server answers at {url}"):
            ChatEndpoint(EndpointConfig(base_url=url, model="tiny")).check()


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://", "http://x:port/v1"])
def test_a_bad_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="write http://HOST:PORT/v1"):
        EndpointConfig(base_url=url, model="tiny")

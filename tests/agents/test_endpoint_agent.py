"""Episodes of a model behind a server: what it reads, what is recorded, how many run at once, and what fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palaestra.agents.endpoint_agent import evaluate_endpoint
from palaestra.agents.evaluation import EvalOptions
from palaestra.agents.evaluation_journal import Journal, attempt_key
from palaestra.core.errors import ConfigError
from palaestra.core.records import episode_from_record, episode_to_record
from palaestra.models.chat_endpoint import EndpointConfig

RIGHT = "def f(x):\n    return 2 * x"


def answer(body: dict[str, Any]) -> str:
    """Runs a program first; every second seed then hands in a wrong one."""
    if len(body["messages"]) < 4:
        return f"run\n{RIGHT}"
    return "submit" if body["seed"] % 2 else "submit\ndef f(x):\n    return x"


@pytest.fixture
def options(tmp_path: Path) -> EvalOptions:
    rows = [
        {"prompt": f"Double x ({i}).", "entry_point": "f", "tests": [{"args": [2], "expected": 4}]} for i in range(6)
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalOptions(
        n=6,
        samples=3,
        temperature=0.7,
        max_turn_tokens=99,
        num_envs=4,
        env_kwargs={"tasks": str(tmp_path / "tasks.jsonl"), "max_turns": 3},
    )


def config(server: Any, **changes: Any) -> EndpointConfig:
    return EndpointConfig(base_url=server.url, model="tiny", first_pause_s=0.01, **{"tries": 3, **changes})


def test_episodes_of_a_server_are_measured(chat_server: Any, options: EvalOptions) -> None:
    chat_server.answer, chat_server.delay_s = answer, 0.05
    chat_server.faults = [None] * 5 + [500]
    ticks: list[tuple[int, int]] = []
    result = evaluate_endpoint(
        config(chat_server), "CodeSandbox-v0", options, lambda *counts: ticks.append(counts), ks=(1, 3)
    )
    assert [attempt_key(episode) for episode in result.episodes] == [(i, j) for i in range(6) for j in range(3)]
    assert (result.n, result.tasks, result.failures, result.mean_turns) == (18, 6, 0, 2.0)
    assert ticks == [(i, 18) for i in range(1, 19)]
    assert 0 < result.success < 1
    assert result.pass_hat_k[3].value < result.pass_at_k[1].value < result.pass_at_k[3].value
    assert 2 <= chat_server.most_at_once <= 4, "the limit holds, and episodes do run side by side"
    assert result.usage["requests"] == 36
    assert result.usage["retries"] == 1
    assert result.usage["completion_tokens"] == sum(len(answer(body).split()) for body in without_retry(chat_server))
    first = chat_server.requests[0]
    assert (first["temperature"], first["max_tokens"], first["model"]) == (0.7, 99, "tiny")
    assert "run" in first["messages"][0]["content"], "the prompt teaches the tools"
    episode = result.episodes[0]
    turns = episode.trajectories[0].turns
    assert turns[0].action == f"run\n{RIGHT}"
    assert episode.trajectories[0].agent == "tiny"
    assert episode.trajectories[0].sampling == options.sampling()
    assert episode_from_record(episode_to_record(episode)).info == episode.info
    again = evaluate_endpoint(config(chat_server), "CodeSandbox-v0", options)
    assert [e.success for e in again.episodes] == [e.success for e in result.episodes], "equal seeds go out again"


def without_retry(server: Any) -> list[dict[str, Any]]:
    return [body for i, body in enumerate(server.requests) if i != 5]


def test_an_episode_whose_server_keeps_failing_is_masked(chat_server: Any, options: EvalOptions) -> None:
    chat_server.answer = answer

    def fail_on_one_task(body: dict[str, Any]) -> str:
        if "(2)" in str(body["messages"]):
            chat_server.faults.insert(0, 503)
        return answer(body)

    chat_server.answer = fail_on_one_task
    one_by_one = EvalOptions(n=3, num_envs=1, env_kwargs=options.env_kwargs)
    result = evaluate_endpoint(config(chat_server, tries=1), "CodeSandbox-v0", one_by_one)
    assert (result.n, result.failures) == (2, 1)
    failed = result.episodes[2]
    assert failed.success is None
    assert failed.failure is not None
    assert (failed.failure["kind"], failed.failure["retryable"]) == ("endpoint", True)
    assert len(failed.trajectories[0].turns) == 1, "what happened before is kept"


def test_a_full_context_ends_an_episode_unsolved(chat_server: Any, options: EvalOptions) -> None:
    chat_server.answer = answer
    chat_server.faults = [None, (400, {"error": {"message": "maximum context length is 9 tokens"}})]
    result = evaluate_endpoint(
        config(chat_server), "CodeSandbox-v0", EvalOptions(n=1, num_envs=1, env_kwargs=options.env_kwargs)
    )
    episode = result.episodes[0]
    assert (episode.success, episode.reward, episode.stop_reason) == (False, 0.0, "context_limit")
    assert (episode.terminated, episode.truncated, episode.failed) == (False, True, False)
    assert len(episode.trajectories[0].turns) == 1


def test_a_refusal_stops_the_evaluation_and_what_was_done_is_kept(chat_server: Any, options: EvalOptions) -> None:
    chat_server.answer = answer
    chat_server.faults = [None] * 8 + [(404, {"error": {"message": "no such model"}})] * 50
    journal = Journal()
    with pytest.raises(ConfigError, match="no such model"):
        evaluate_endpoint(config(chat_server), "CodeSandbox-v0", options, journal=journal)
    kept = dict(journal.done)
    assert len(kept) <= 4
    chat_server.faults = []
    result = evaluate_endpoint(config(chat_server), "CodeSandbox-v0", options, journal=journal)
    assert result.n == 18
    assert all(journal.done[key] is episode for key, episode in kept.items())

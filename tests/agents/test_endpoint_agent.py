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


# -- calls in the server's own form -----------------------------------------------------------------------------------


def called(*calls: tuple[str, Any], content: str | None = None) -> dict[str, Any]:
    """A message with tool calls; arguments that are text stay as they are."""
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {
                "id": f"id-{i}",
                "type": "function",
                "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
            }
            for i, (name, given) in enumerate(calls)
        ],
    }


def one_task(options: EvalOptions, **env: Any) -> EvalOptions:
    return EvalOptions(n=1, num_envs=1, env_kwargs={**options.env_kwargs, **env})


def scripted(server: Any, *messages: Any) -> None:
    turns = iter(messages)
    server.answer = lambda body: next(turns)


def test_native_calls_become_actions_and_are_answered_by_their_ids(chat_server: Any, options: EvalOptions) -> None:
    scripted(
        chat_server,
        called(("run", {"code": RIGHT}), ("edit", {"old": "2 * x", "new": "x * 2"}), content="Let me see."),
        called(("submit", {})),
    )
    result = evaluate_endpoint(config(chat_server), "CodeSandbox-v0", one_task(options), tool_calls="native")
    assert result.success == 1.0
    assert result.parse_error_rate == 0.0
    turns = result.episodes[0].trajectories[0].turns
    program = json.dumps({"name": "run", "arguments": {"code": RIGHT}})
    assert turns[0].action.startswith(f"Let me see.\n<tool_call>\n{program}\n</tool_call>\n<tool_call>\n")
    first, second = chat_server.requests
    assert [tool["function"]["name"] for tool in first["tools"]] == ["run", "edit", "submit"]
    assert second["tools"] == first["tools"]
    assert second["messages"][:-3] == first["messages"]
    said, *answered = second["messages"][-3:]
    assert said == called(("run", {"code": RIGHT}), ("edit", {"old": "2 * x", "new": "x * 2"}), content="Let me see.")
    assert answered == [
        {"role": "tool", "tool_call_id": "id-0", "content": "(answered together with the last call)"},
        {"role": "tool", "tool_call_id": "id-1", "content": turns[0].observation},
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"code": ', "arguments must be a JSON object"),
        ("[1, 2]", "arguments must be a JSON object"),
        ("print(1)", "arguments must be a JSON object"),
        ({"program": "x"}, "run has no argument 'program'; it takes code"),
        ({"code": 5}, "code must be a string"),
    ],
)
def test_malformed_native_calls_are_observations(
    chat_server: Any, options: EvalOptions, arguments: Any, said: str
) -> None:
    scripted(chat_server, called(("run", arguments)), called(("submit", {"code": RIGHT})))
    result = evaluate_endpoint(config(chat_server), "CodeSandbox-v0", one_task(options), tool_calls="native")
    assert result.failures == 0
    turns = result.episodes[0].trajectories[0].turns
    assert said in turns[0].observation
    assert turns[0].parse_error is not None
    answered = chat_server.requests[1]["messages"][-1]
    assert answered["content"] == turns[0].observation
    for message in chat_server.requests[1]["messages"]:
        for call in message.get("tool_calls") or ():
            json.loads(call["function"]["arguments"])  # servers that read it again would fail
    assert answered["role"] == ("user" if isinstance(arguments, str) else "tool")


def test_native_answers_without_calls_are_text(chat_server: Any, options: EvalOptions) -> None:
    nameless = {"role": "assistant", "content": None, "tool_calls": [{"id": None, "function": {"arguments": None}}]}
    scripted(chat_server, f"run\n{RIGHT}", nameless, called(("submit", "")))
    result = evaluate_endpoint(config(chat_server), "CodeSandbox-v0", one_task(options), tool_calls="native")
    turns = result.episodes[0].trajectories[0].turns
    assert [turn.parse_error is None for turn in turns] == [True, False, True]
    assert turns[0].action == f"run\n{RIGHT}"
    assert "no tool ''" in turns[1].observation
    assert result.success == 1.0
    assert [message["role"] for message in chat_server.requests[1]["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_auto_falls_back_to_text_where_tools_are_refused(chat_server: Any, options: EvalOptions) -> None:
    refusal = {"error": {"message": '"auto" tool choice requires --enable-auto-tool-choice to be set'}}
    chat_server.faults = [(400, refusal)]
    chat_server.answer = answer
    one = EvalOptions(n=3, num_envs=1, env_kwargs=options.env_kwargs)
    result = evaluate_endpoint(config(chat_server), "CodeSandbox-v0", one, tool_calls="auto")
    assert (result.n, result.failures) == (3, 0)
    assert "tools" in chat_server.requests[0]
    assert not any("tools" in body for body in chat_server.requests[1:]), "it is asked once"
    chat_server.faults = [(400, refusal)]
    with pytest.raises(ConfigError, match="--enable-auto-tool-choice to be set; --tool-calls=text works"):
        evaluate_endpoint(config(chat_server), "CodeSandbox-v0", one, tool_calls="native")


def test_a_wrong_form_of_calls_is_refused(chat_server: Any, options: EvalOptions) -> None:
    with pytest.raises(ConfigError, match="--tool-calls=natvie; did you mean 'native'"):
        evaluate_endpoint(config(chat_server), "CodeSandbox-v0", options, tool_calls="natvie")
    with pytest.raises(ConfigError, match="parser='plain': use parser='auto' or --tool-calls=text"):
        evaluate_endpoint(config(chat_server), "CodeSandbox-v0", one_task(options, parser="plain"), tool_calls="native")

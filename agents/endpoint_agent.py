"""A language model behind an HTTP endpoint as an agent, and its evaluation with many episodes side by side.

The model reads and writes text: the environment's own prompt teaches the tools, and whatever the model writes is its
action. Calls in the server's own form are taken where they are asked for (`native_calls`). Such episodes carry no
tokens and are not trained on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..core.messages import user
from ..core.seeding import derive_seed
from ..core.trajectories import Episode
from ..envs.registration import make_env
from ..models.chat_endpoint import ChatEndpoint, ContextLimitReached, EndpointConfig, NoToolCalls, Reply
from .evaluation import EvalOptions, EvalResult, Progress, evaluation_attempts, summarise
from .evaluation_journal import Attempt, Journal
from .native_calls import CallStyle, action_text, answers, spoken
from .single_episode import ContextLimit, run_episode


class EndpointAgent:
    """An agent that asks a server for each action; counts what it costs.

    Args:
        endpoint: The server's model.
        temperature: 0 is greedy.
        max_turn_tokens: Greatest length of one action.
        style: The form of tool calls; None means text.
    """

    def __init__(
        self, endpoint: ChatEndpoint, temperature: float, max_turn_tokens: int, style: CallStyle | None = None
    ) -> None:
        self._endpoint, self._temperature, self._max_turn_tokens = endpoint, temperature, max_turn_tokens
        self._style = style or CallStyle()
        self._messages: list[dict[str, Any]] = []
        self._tools: Sequence[Mapping[str, Any]] = ()
        self._seed = 0
        self.usage = {"requests": 0, "retries": 0, "prompt_tokens": 0, "completion_tokens": 0}

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Begins a conversation."""
        self._messages, self._seed = [], seed
        self._tools = info.get("tools") or ()

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Gives the model's next message.

        Raises:
            ContextLimit: The conversation no longer fits into the model's context.
            EnvironmentFailure: The server could not be reached or kept failing.
            ConfigError: The server refuses the request.
        """
        last = self._messages[-1] if self._messages else {}
        self._messages += answers(last, info.get("messages") or [user(observation)])
        try:
            reply = self._ask()
        except ContextLimitReached as error:
            raise ContextLimit from error
        self._messages.append(spoken(reply.text, reply.tool_calls))
        self.usage["requests"] += 1
        self.usage["retries"] += reply.tries - 1
        self.usage["prompt_tokens"] += reply.prompt_tokens
        self.usage["completion_tokens"] += reply.completion_tokens
        return action_text(reply.text, reply.tool_calls)

    def _ask(self) -> Reply:
        try:
            return self._complete(self._tools if self._style.is_native else ())
        except NoToolCalls:
            if not self._style.may_fall_back or any("tool_calls" in message for message in self._messages):
                raise
            self._style.is_native = False
            return self._complete(())

    def _complete(self, tools: Sequence[Mapping[str, Any]]) -> Reply:
        return self._endpoint.complete(
            self._messages,
            temperature=self._temperature,
            max_tokens=self._max_turn_tokens,
            seed=derive_seed(self._seed, "turn", len(self._messages)),
            tools=tools,
        )


def evaluate_endpoint(
    config: EndpointConfig,
    env_id: str,
    options: EvalOptions,
    on_progress: Progress | None = None,
    *,
    ks: Sequence[int] = (),
    journal: Journal | None = None,
    tool_calls: str = "text",
) -> EvalResult:
    """Evaluates a model behind an endpoint; at most `options.num_envs` requests are under way at any time.

    `tool_calls` is one of `native_calls.CALL_MODES`.

    Raises:
        ConfigError: There is no server, or it refuses the requests; what has ended until then is in the journal.
    """
    attempts = evaluation_attempts(env_id, options)
    journal = journal or Journal()
    todo = journal.missing(attempts)
    style = CallStyle(tool_calls)
    if todo:
        ChatEndpoint(config).check()
    episodes = _side_by_side(config, env_id, options, todo, style)
    for done, episode in enumerate(episodes, len(attempts) - len(todo) + 1):
        journal.add(episode)
        if on_progress:
            on_progress(done, len(attempts))
    return summarise(journal.episodes(attempts), ks)


def _side_by_side(
    config: EndpointConfig, env_id: str, options: EvalOptions, todo: Sequence[Attempt], style: CallStyle
) -> Iterator[Episode]:
    """Gives episodes as they end. Threads are daemons: a stopped command does not wait for its servers' answers."""
    waiting: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
    for attempt in todo:
        waiting.put(attempt)
    ended: queue.SimpleQueue[Episode | BaseException] = queue.SimpleQueue()
    stopping = threading.Event()

    def work() -> None:
        try:
            with make_env(env_id, on_failure="raise", **options.environment()) as env:
                style.check(env.unwrapped.options.parser)
                while not stopping.is_set():
                    ended.put(_episode(config, env, options, waiting.get_nowait(), style))
        except queue.Empty:
            pass
        except BaseException as error:  # handed to the thread that can act on it
            ended.put(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(options.num_envs, len(todo)))]
    for thread in threads:
        thread.start()
    try:
        for _ in todo:
            outcome = ended.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
        for thread in threads:
            thread.join()
    finally:
        stopping.set()


def _episode(config: EndpointConfig, env: Any, options: EvalOptions, attempt: Attempt, style: CallStyle) -> Episode:
    agent = EndpointAgent(ChatEndpoint(config), options.temperature, options.max_turn_tokens, style)
    return run_episode(
        env,
        lambda _: agent,
        attempt.task_id,
        attempt.seed % 2**31,
        name=config.model,
        info={"group": attempt.group, "replica": attempt.replica, "usage": agent.usage},
        sampling=options.sampling(),
    )

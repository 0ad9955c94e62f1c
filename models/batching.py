"""Continuous batching: requests of many threads go into one engine and are answered as each of them ends.

One thread owns the engine and looks for new requests after every token. Conversations that ended stay in their cache
rows until the room is needed; a prompt that goes on where one of them ended reads only what is new. Requests for other
weights than those in use wait until the engine is empty, in the order in which they came.

It knows nothing of HTTP, texts or where weights come from.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from ..core.errors import ConfigError
from .engine import Completion, GenerationRequest
from .local_engine import LocalEngine

T = TypeVar("T")
PauseMode = Literal["abort", "wait", "keep"]


class Paused(Exception):
    """New requests are not taken at present."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What a request gets."""

    token_ids: list[int]
    logprobs: list[float]
    finished: Literal["end", "length", "abort"]
    cached_tokens: int
    """Tokens of the prompt that did not have to be read."""
    label: str
    """Of the weights that sampled it."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A request on its way through the batcher; `answer` is what the asking thread waits for."""

    weights: str
    """The name of the weights that are to sample it."""
    prompt: list[int]
    max_tokens: int
    temperature: float
    end_ids: frozenset[int]
    generator: np.random.Generator
    answer: Future[Sampled] = field(default_factory=Future)
    cached_tokens: int = 0
    is_cancelled: bool = False


class Batcher:
    """Owns an engine; all methods may be called from any thread.

    Args:
        engine: What samples.
        activate: Makes the weights of this name the model's own; called in the batcher's thread while nothing runs.
        weights: The name of the weights that are in use at first.
    """

    def __init__(self, engine: LocalEngine, activate: Callable[[str], None], weights: str) -> None:
        self._engine, self._activate, self._current = engine, activate, weights
        self._label = "default"
        self._condition = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._working: dict[int, Job] = {}
        self._resting: OrderedDict[int, bytes] = OrderedDict()
        """Ended conversations by their keys in the engine, the one used last at the end; their tokens."""
        self._orders: deque[tuple[Callable[[], Any], Future[Any], bool]] = deque()
        self._paused: PauseMode | None = None
        self._is_closed = False
        self._keys = itertools.count()
        self._thread = threading.Thread(target=self._run, daemon=True, name="batcher")
        self._thread.start()

    # -- for the threads that ask ---------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Takes a request.

        Raises:
            Paused: The batcher is paused, and does not keep what comes meanwhile.
        """
        with self._condition:
            if self._is_closed or self._paused in ("abort", "wait"):
                raise Paused
            self._waiting.append(job)
            self._condition.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for this request any more."""
        with self._condition:
            job.is_cancelled = True
            self._condition.notify()

    def pause(self, mode: PauseMode) -> None:
        """Stops sampling: `abort` ends what runs, `wait` lets it end, `keep` freezes it. Returns when that is done."""
        with self._condition:
            self._paused = mode
        if mode == "abort":
            self._order(self._abort_all, when_empty=False).result()
        else:
            self._order(lambda: None, when_empty=mode == "wait").result()

    def resume(self) -> None:
        """Goes on after a pause."""
        with self._condition:
            self._paused = None
            self._condition.notify()

    @property
    def is_paused(self) -> bool:
        """Whether sampling is stopped."""
        return self._paused is not None

    @property
    def label(self) -> str:
        """What the weights are called in answers."""
        return self._label

    @label.setter
    def label(self, label: str) -> None:
        self._label = label

    def change_weights(self, change: Callable[[], T]) -> T:
        """Runs a function that changes weights, between two tokens, and drops everything that was read before."""

        def changed() -> T:
            try:
                return change()
            finally:
                self._forget()
                self._engine.update_weights(self._engine.version + 1)

        return self._order(changed, when_empty=False).result()

    def reset_cache(self) -> None:
        """Forgets all conversations that have ended."""
        self._order(self._forget, when_empty=False).result()

    def close(self) -> None:
        """Ends the thread; requests that run are aborted. May be called twice."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        self._thread.join()
        self._engine.close()

    def _order(self, act: Callable[[], T], *, when_empty: bool) -> Future[T]:
        future: Future[T] = Future()
        with self._condition:
            self._orders.append((act, future, when_empty))
            self._condition.notify()
        return future

    # -- the batcher's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(self._has_work)
                if self._is_closed:
                    break
                self._drop_cancelled()
            self._follow_orders()
            if self._paused in ("abort", "keep"):
                continue
            try:
                self._admit()
                for completion in self._engine.step():
                    self._finish(completion)
            except Exception as error:  # of the model or the device: those who wait are told
                self._fail_all(error)
        self._abort_all()

    def _has_work(self) -> bool:
        if self._is_closed or any(not when_empty or not self._working for _, _, when_empty in self._orders):
            return True
        if any(job.is_cancelled for job in (*self._waiting, *self._working.values())):
            return True
        if self._paused is None:
            return bool(self._waiting or self._working)
        return self._paused == "wait" and bool(self._working)

    def _drop_cancelled(self) -> None:
        self._waiting = deque(job for job in self._waiting if not job.is_cancelled)
        for key in [key for key, job in self._working.items() if job.is_cancelled]:
            del self._working[key]
            self._engine.release(key)

    def _follow_orders(self) -> None:
        for _ in range(len(self._orders)):
            act, future, when_empty = self._orders.popleft()
            if when_empty and self._working:
                self._orders.append((act, future, when_empty))
                continue
            try:
                future.set_result(act())
            except Exception as error:
                future.set_exception(error)

    def _admit(self) -> None:
        """Starts requests, oldest first, until one needs room or other weights that are not free yet."""
        while self._waiting and self._paused is None:
            job = self._waiting[0]
            if job.weights != self._current:
                if self._working:
                    return
                self._use(job.weights)
            if not self._resting and len(self._working) >= self._engine.rows:
                return
            self._waiting.popleft()
            self._start(job)

    def _use(self, weights: str) -> None:
        self._activate(weights)
        self._current = weights
        self._forget()
        self._engine.update_weights(self._engine.version + 1)

    def _start(self, job: Job) -> None:
        key = self._conversation_before(job.prompt)
        known = 0
        if key is not None:
            known = len(self._resting.pop(key)) // _TOKEN.itemsize
            job.cached_tokens = known - 1  # the last token was sampled, but never read
        else:
            if len(self._resting) + len(self._working) >= self._engine.rows:
                self._engine.release(self._resting.popitem(last=False)[0])
            key = next(self._keys)
        request = GenerationRequest(
            key=key,
            token_ids=job.prompt[known:],
            generator=job.generator,
            temperature=job.temperature,
            max_tokens=job.max_tokens,
            end_ids=job.end_ids,
        )
        try:
            self._engine.submit(request)
            self._working[key] = job
        except ConfigError as error:  # a prompt that is too long; nobody else's concern
            self._engine.release(key)
            job.answer.set_exception(error)

    def _conversation_before(self, prompt: list[int]) -> int | None:
        """The longest conversation that this prompt goes on from."""
        tokens = _as_bytes(prompt)
        found = [
            (len(known), key)
            for key, known in self._resting.items()
            if len(known) < len(tokens) and tokens.startswith(known)
        ]
        return max(found)[1] if found else None

    def _finish(self, completion: Completion) -> None:
        key = completion.key
        assert isinstance(key, int)
        job = self._working.pop(key)
        self._resting[key] = _as_bytes([*job.prompt, *completion.token_ids])
        job.answer.set_result(
            Sampled(
                token_ids=completion.token_ids,
                logprobs=completion.logprobs,
                finished="end" if completion.finished == "end" else "length",
                cached_tokens=job.cached_tokens,
                label=self._label,
            )
        )

    def _forget(self) -> None:
        for key in self._resting:
            self._engine.release(key)
        self._resting.clear()

    def _abort_all(self) -> None:
        for key, job in self._working.items():
            self._engine.release(key)
            job.answer.set_result(_aborted(self._label))
        self._working.clear()
        with self._condition:
            for job in self._waiting:
                job.answer.set_result(_aborted(self._label))
            self._waiting.clear()
            for _, future, _ in self._orders:
                future.cancel()
            self._orders.clear()

    def _fail_all(self, error: Exception) -> None:
        for key, job in self._working.items():
            self._engine.release(key)
            job.answer.set_exception(error)
        self._working.clear()


_TOKEN = np.dtype(np.int32)


def _as_bytes(token_ids: list[int]) -> bytes:
    return np.array(token_ids, dtype=_TOKEN).tobytes()


def _aborted(label: str) -> Sampled:
    return Sampled(token_ids=[], logprobs=[], finished="abort", cached_tokens=0, label=label)

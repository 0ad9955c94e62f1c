"""An engine on a vLLM server: token ids in, token ids and their log-probabilities out, weights by way of a folder.

Of vLLM 0.33 (and of `palaestra serve`, which speaks the same) it uses

- `POST /v1/completions`: `prompt` as token ids, `return_token_ids`, `logprobs`, `seed`, `stop_token_ids`, `ignore_eos`;
- `GET /v1/models`: the names of models, and `max_model_len`;
- weights as a LoRA adapter: `POST /v1/unload_lora_adapter`, `/v1/load_lora_adapter`
  (vLLM needs `--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`);
- weights as a model folder: `POST /pause?mode=wait`, `/collective_rpc` with `reload_weights`, `/reset_prefix_cache`,
  `/update_weight_version`, `/resume` (vLLM needs `VLLM_SERVER_DEV_MODE=1`).

Servers know no conversations: each turn sends its whole context, and their prefix cache finds what it has read. At
temperatures other than 1, vLLM gives log-probabilities of the tempered distribution only with `--logprobs-mode
processed_logprobs`. A turn that the server cannot give after all retries is a failed completion, never an empty one; so
is one that other weights than ours have sampled, after which the weights are sent again.

Not here: making weights smaller for the way, and vLLM's transfer from GPU to GPU (`/update_weights`).
"""

from __future__ import annotations

import json
import math
import queue
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.errors import ConfigError, EnvironmentFailure
from .engine import Completion, EngineStats, GenerationRequest
from .http_client import EndpointConfig, HttpClient, Refused
from .weight_sync import AdapterSync, FolderSync, WeightSync

WEIGHT_SYNCS = ("folder", "lora")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpEngineConfig:
    """Which server samples, and how it gets its weights."""

    url: str
    """The server, such as `http://127.0.0.1:8000`; a `/v1` at the end is fine."""
    folder: Path
    """Where weights are written; the server has to see the same path."""
    model: str = ""
    """The server's name for the model; empty where it serves only one."""
    weight_sync: Literal["folder", "lora"] = "folder"
    """`folder`: the whole model. `lora`: the adapter of a LoRA model."""
    api_key: str = field(default="", repr=False)
    timeout_s: float = 600.0
    tries: int = 8
    first_pause_s: float = 0.5

    def __post_init__(self) -> None:
        if self.weight_sync not in WEIGHT_SYNCS:
            raise ConfigError(f"weight_sync={self.weight_sync!r}: must be 'folder' or 'lora'")

    @property
    def root(self) -> str:
        """The server's address without `/v1`."""
        return self.url.rstrip("/").removesuffix("/v1")

    def client(self, model: str = "") -> HttpClient:
        """A client for paths that begin at the root.

        Raises:
            ConfigError: The address is none.
        """
        endpoint = EndpointConfig(
            base_url=f"{self.root}/v1",
            model=model or self.model or "any",
            api_key=self.api_key,
            timeout_s=self.timeout_s,
            tries=self.tries,
            first_pause_s=self.first_pause_s,
        )
        return HttpClient(endpoint, self.root)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What a server says about the model that it is to use."""

    name: str
    max_context: int | None
    """None where it does not say."""


def find_model(config: HttpEngineConfig) -> ServedModel:
    """Asks the server for its model.

    Raises:
        ConfigError: One line: there is no server, it refuses the key, or it has no such model.
    """
    try:
        data = config.client().get("/v1/models")
        cards = {str(card["id"]): card for card in data["data"] if not card.get("parent")}
    except Refused as error:
        raise refusal(config.root, error) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{config.root}/v1/models answers, but lists no models: is it a model server?") from error
    name = config.model or (next(iter(cards)) if len(cards) == 1 else "")
    if name not in cards:
        asked = f"has no model {name!r}" if name else "serves several models"
        raise ConfigError(f"{config.root} {asked}; name one of: {', '.join(cards)}")
    length = cards[name].get("max_model_len")
    return ServedModel(name=name, max_context=int(length) if length else None)


def refusal(root: str, error: Refused) -> ConfigError:
    """What a server's refusal means for the one who started the run."""
    hint = "; set the variable VLLM_API_KEY to the server's key" if error.status in (401, 403) else ""
    return ConfigError(f"{root} refuses the request: {error}{hint}")


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """A request on its way."""

    key: Hashable
    body: dict[str, Any]
    end_ids: frozenset[int]
    label: str | None
    """Of the weights that are to sample it, where the server labels them."""
    sent: int
    """How often weights had been sent when it was made."""


class HttpEngine:
    """An `Engine` whose turns a server samples, at most `rows` at a time.

    Equal seeds give equal turns on a server that samples each request by its own `seed`.

    Args:
        config: The server.
        save_weights: Writes the weights as they are now into a folder, in the form that `weight_sync` needs.
        rows: Greatest number of requests at the same time; further ones queue.
        max_context: Greatest number of tokens of one conversation; the server may have less.

    Raises:
        ConfigError: There is no server, it refuses the key, or it has no such model.
    """

    def __init__(
        self, config: HttpEngineConfig, save_weights: Callable[[Path], object], rows: int, max_context: int
    ) -> None:
        served = find_model(config)
        self.stats = EngineStats()
        self.version: int | None = None
        """None until weights were sent: what the server was started with is not known."""
        self.rows = rows
        self.max_context = min(max_context, served.max_context or max_context)
        self._root, self._client = config.root, config.client(served.name)
        self._sync: WeightSync = (
            AdapterSync(self._client, config.folder, save_weights, served.name)
            if config.weight_sync == "lora"
            else FolderSync(self._client, config.folder, save_weights, served.name)
        )
        self._sent = 0
        """How often weights were sent."""
        self._stale = threading.Event()
        """Set when the server has sampled with other weights than those that were sent last."""
        self._streams: dict[Hashable, list[int]] = {}
        """All tokens of each conversation."""
        self._running: dict[Hashable, _Ticket] = {}
        self._waiting: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[tuple[_Ticket, _Answer | BaseException]] = queue.SimpleQueue()
        self._threads = 0

    # -- requests -------------------------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> None:
        """See `Engine.submit`.

        Raises:
            ConfigError: The conversation leaves no room for a token, or has a request running.
        """
        stream = self._streams.get(request.key, [])
        length = len(stream) + len(request.token_ids)
        if not length:
            raise ConfigError(f"request {request.key!r}: the first prompt is empty")
        if request.max_tokens < 1 or length >= self.max_context:
            raise ConfigError(
                f"request {request.key!r}: {length} tokens and max_tokens={request.max_tokens} leave no room in "
                f"max_context={self.max_context}"
            )
        if request.key in self._running:
            raise ConfigError(f"request {request.key!r}: its last request is still running")
        stream += request.token_ids
        self._streams[request.key] = stream
        failure = self._renew_weights()
        body = self._body(request, stream)
        self._running[request.key] = ticket = _Ticket(request.key, body, request.end_ids, self._sync.label, self._sent)
        if failure is not None:
            self._ended.put((ticket, failure))
            return
        if self._threads < min(self.rows, len(self._running)):
            self._threads += 1
            threading.Thread(target=self._work, daemon=True, name=f"engine-{self._threads}").start()
        self._waiting.put(ticket)

    def _body(self, request: GenerationRequest, stream: Sequence[int]) -> dict[str, Any]:
        return {
            "model": self._sync.model,
            "prompt": [int(token) for token in stream],
            "max_tokens": min(request.max_tokens, self.max_context - len(stream)),
            "temperature": request.temperature,
            "seed": turn_seed(request.generator),
            "stop_token_ids": sorted(request.end_ids),
            "ignore_eos": True,  # else the model's own list of end tokens counts as well
            "logprobs": 0,  # the sampled token's alone
            "return_token_ids": True,
            "top_p": 1.0,  # the model's generation_config.json may say otherwise
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }

    def poll(self) -> list[Completion]:
        """See `Engine.poll`: waits for one answer, and takes all that are there then.

        Raises:
            ConfigError: The server refuses requests.
        """
        done: list[Completion] = []
        while self._running and not done:
            outcomes = [self._ended.get()]
            while not self._ended.empty():
                outcomes.append(self._ended.get())
            for ticket, answer in outcomes:
                if self._running.get(ticket.key) is not ticket:
                    continue  # the conversation was released meanwhile
                del self._running[ticket.key]
                if isinstance(answer, BaseException) and not isinstance(answer, EnvironmentFailure):
                    raise answer
                done.append(self._completion(ticket, answer))
        return done

    def _completion(self, ticket: _Ticket, answer: _Answer | EnvironmentFailure) -> Completion:
        if isinstance(answer, EnvironmentFailure):
            failure = {"kind": answer.kind, "message": answer.message, "retryable": answer.retryable}
            return Completion(key=ticket.key, token_ids=[], logprobs=[], finished="failed", failure=failure)
        self._streams[ticket.key] += answer.token_ids
        self.stats.sampled_tokens += len(answer.token_ids)
        self.stats.prefilled_tokens += answer.read_tokens
        self.stats.prefills += 1
        self.stats.retries += answer.tries - 1
        ended = answer.token_ids[-1] in ticket.end_ids
        return Completion(
            key=ticket.key,
            token_ids=answer.token_ids,
            logprobs=answer.logprobs,
            finished="end" if ended else "length",
        )

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Engine.generate`."""
        for request in requests:
            self.submit(request)
        done: dict[Hashable, Completion] = {}
        while len(done) < len(requests):
            done |= {completion.key: completion for completion in self.poll()}
        return [done[request.key] for request in requests]

    def release(self, key: Hashable) -> None:
        """See `Engine.release`; an answer that is on its way is dropped."""
        self._streams.pop(key, None)
        self._running.pop(key, None)

    # -- threads --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (ticket := self._waiting.get()) is not None:
            if self._running.get(ticket.key) is not ticket:
                continue
            try:
                self._ended.put((ticket, self._ask(ticket)))
            except BaseException as error:  # handed to the thread that can act on it
                self._ended.put((ticket, error))

    def _ask(self, ticket: _Ticket) -> _Answer:
        try:
            answer, tries = self._client.post("/v1/completions", ticket.body, lambda raw: _read(raw, ticket.body))
        except Refused as error:
            if error.status == 404 and self._sync.is_versioned:
                raise self._stale_weights(ticket, str(error)) from error  # a server that was started anew has none
            raise refusal(self._root, error) from error
        if ticket.label is not None and any(label != ticket.label for label in answer.labels):
            raise self._stale_weights(ticket, ", ".join(answer.labels))
        answer.tries = tries
        return answer

    def _stale_weights(self, ticket: _Ticket, found: str) -> EnvironmentFailure:
        if ticket.sent == self._sent:  # else they were sent again meanwhile
            self._stale.set()
        return EnvironmentFailure("stale_weights", f"{self._root} sampled with other weights than ours: {found}")

    # -- weights --------------------------------------------------------------------------------------------------

    def update_weights(self, version: int) -> None:
        """See `Engine.update_weights`; does nothing when the server has this version.

        Raises:
            ConfigError: The server does not take weights; the line says how to start it.
            EnvironmentFailure: The server could not be reached or kept failing.
        """
        if version != self.version or self._stale.is_set():
            self._send_weights(version)

    def _renew_weights(self) -> EnvironmentFailure | None:
        """Sends the weights again where the server has lost them; gives what prevented it."""
        if self._stale.is_set():
            try:
                self._send_weights(self.version or 0)  # the same ones: they change in `update_weights` alone
            except EnvironmentFailure as error:
                return error
        return None

    def _send_weights(self, version: int) -> None:
        self._sync.send(version)
        self.version = version
        self._sent += 1
        self._stale.clear()

    def close(self) -> None:
        """See `Engine.close`; may be called twice. Answers that are on their way are not waited for."""
        self._streams.clear()
        self._running.clear()
        for _ in range(self._threads):
            self._waiting.put(None)
        self._threads = 0
        self._sync.close()


def turn_seed(generator: np.random.Generator) -> int:
    """Draws the seed of one turn from its episode's own randomness."""
    return int(generator.integers(2**63))


@dataclass(slots=True)
class _Answer:
    token_ids: list[int]
    logprobs: list[float]
    labels: list[str]
    """Of the weights that sampled it; empty where the server does not say."""
    read_tokens: int
    """Tokens of the prompt that the server had not cached."""
    tries: int = 1


def _read(raw: bytes, body: Mapping[str, Any]) -> _Answer:
    """Reads a completion; whatever else a server sends is a ValueError.

    Raises:
        ConfigError: The server gives completions, but not what training needs.
    """
    data = json.loads(raw)
    try:
        choice, usage = data["choices"][0], data.get("usage") or {}
        token_ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        reason, spans = choice["finish_reason"], choice.get("weight_versions") or ()
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        read_tokens = int(usage.get("prompt_tokens") or 0) - int(cached)
        labels = [str(span["version"]) for span in spans]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"an answer that is no completion: {json.dumps(data)[:200]}") from error
    if token_ids is None or logprobs is None:
        raise ConfigError(
            "the server gives no token ids with log-probabilities; use a current vLLM, or palaestra serve"
        )
    if reason not in ("stop", "length"):
        raise ValueError(f"a completion that ended by {reason!r}")
    whole = len(token_ids) == len(logprobs) and 1 <= len(token_ids) <= body["max_tokens"]
    if not whole or not all(isinstance(value, float | int) and math.isfinite(value) for value in logprobs):
        raise ValueError(f"{len(token_ids)} tokens with {len(logprobs)} log-probabilities")
    return _Answer([int(token) for token in token_ids], [float(x) for x in logprobs], labels, read_tokens)

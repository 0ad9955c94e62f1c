"""A model behind the server's requests: prompts to tokens, tokens to answers, and weights that change while it runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.errors import ModelError
from ..core.seeding import generator
from .batching import Batcher, Job, Sampled
from .chat import ChatFormat
from .completion_requests import (
    DEFAULT_MAX_TOKENS,
    RequestError,
    SamplingFields,
    chat_answer,
    completion_answer,
    messages_of,
    prompt_of,
    sampling_fields,
    tools_of,
)
from .loading import load_model
from .local_engine import LocalEngine
from .lora_folder import Adapter, AdapterSlot, read_adapter

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Wait = Callable[[Job], Sampled]
    """Waits for a job's answer, as long as somebody wants it."""


class ServedModel:
    """One model, under its name, and the LoRA adapters that were loaded for it, each under a name of its own.

    Args:
        model: The model; its weights are changed in place.
        tokenizer: Its tokenizer, with a chat template.
        name: What requests call it.
        folder: Where it was loaded from.
        rows: Greatest number of requests that are sampled at the same time; further ones queue.
        max_context: Greatest number of tokens of a prompt and its answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        folder: str,
        rows: int,
        max_context: int,
    ) -> None:
        self.name, self.folder = name, folder
        self._model, self._chat = model.eval(), ChatFormat(tokenizer)
        self._adapters: dict[str, tuple[Adapter, str]] = {}
        """By name: the adapter, and its folder."""
        self._slot = AdapterSlot(model)
        self._active = name
        self._lock = threading.Lock()
        """Held while a chat template is rendered, and while the list of adapters changes."""
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self.max_context = max_context
        self.batcher = Batcher(LocalEngine(model, rows, max_context), self._activate, name)

    def close(self) -> None:
        """Ends all work."""
        self.batcher.close()

    # -- requests -------------------------------------------------------------------------------------------------

    def models(self) -> dict[str, Any]:
        """The answer to `/v1/models`."""
        base = {"id": self.name, "object": "model", "root": self.folder, "max_model_len": self.max_context}
        with self._lock:
            adapters = [
                {"id": name, "object": "model", "root": folder, "parent": self.name}
                for name, (_, folder) in self._adapters.items()
            ]
        return {"object": "list", "data": [base, *adapters]}

    def complete(self, body: Mapping[str, Any], wait: Wait) -> dict[str, Any]:
        """The answer to `/v1/completions`."""
        fields = sampling_fields(body)
        prompt = prompt_of(body)
        ids = self._chat.encode([prompt])[0] if isinstance(prompt, str) else prompt
        sampled = wait(self._job(fields, ids, fields.max_tokens or DEFAULT_MAX_TOKENS))
        return completion_answer(fields.model or self.name, fields, ids, sampled, self._chat.decode(sampled.token_ids))

    def chat(self, body: Mapping[str, Any], wait: Wait) -> dict[str, Any]:
        """The answer to `/v1/chat/completions`."""
        fields, messages, tools = sampling_fields(body), messages_of(body), tools_of(body)
        try:
            with self._lock:
                ids = self._chat.start(messages, tools)
        except ModelError as error:
            raise RequestError(400, str(error)) from error
        sampled = wait(self._job(fields, ids, fields.max_tokens or self.max_context))
        text = self._chat.decode(sampled.token_ids)
        return chat_answer(fields.model or self.name, ids, sampled, text, with_tools=bool(tools))

    def _job(self, fields: SamplingFields, ids: list[int], max_tokens: int) -> Job:
        weights = fields.model or self.name
        if weights != self.name and weights not in self._adapters:
            raise RequestError(404, f"The model `{weights}` does not exist; this server has {self._names()}.", _MISSING)
        if not ids or max(ids) >= self._vocabulary or max(fields.stop_token_ids, default=0) >= self._vocabulary:
            raise RequestError(400, f"prompt: must hold token ids below {self._vocabulary}")
        if len(ids) >= self.max_context:
            raise RequestError(
                400,
                f"This model's maximum context length is {self.max_context} tokens. However, your prompt contains "
                f"{len(ids)} tokens.",
            )
        ends = fields.stop_token_ids | (frozenset() if fields.ignore_eos else self._chat.end_ids)
        return Job(
            weights=weights,
            prompt=ids,
            max_tokens=min(max_tokens, self.max_context - len(ids)),
            temperature=fields.temperature,
            end_ids=ends,
            generator=sampling_generator(fields.seed),
        )

    def _names(self) -> str:
        return ", ".join([self.name, *self._adapters])

    # -- weights --------------------------------------------------------------------------------------------------

    def load_adapter(self, name: str, folder: str, *, in_place: bool) -> str:
        """Loads a LoRA adapter under a name."""
        if not name or not folder:
            raise RequestError(400, "Both 'lora_name' and 'lora_path' must be provided.", _WRONG)
        with self._lock:
            if name == self.name or (name in self._adapters and not in_place):
                raise RequestError(
                    400,
                    f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                    "'load_inplace' to True.",
                    _WRONG,
                )
            try:
                adapter = read_adapter(folder, self._model)
            except ModelError as error:
                raise RequestError(404 if not os.path.isdir(folder) else 400, f"adapter: {error}", _WRONG) from error
            self._adapters[name] = (adapter, folder)
        if self._active == name:
            self.batcher.change_weights(lambda: self._activate(name))
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload_adapter(self, name: str) -> str:
        """Forgets an adapter."""
        with self._lock:
            if name not in self._adapters:
                raise RequestError(404, f"The lora adapter '{name}' cannot be found.", _MISSING)
            del self._adapters[name]
        return f"Success: LoRA adapter '{name}' removed successfully."

    def reload(self, folder: str | None) -> None:
        """Takes over the weights of a model folder; None means the one that was loaded at first."""
        path = folder or self.folder
        try:
            if folder is not None and not Path(folder).is_dir():
                raise ModelError(f"no model folder {folder}")
            dtype = str(self._model.dtype).removeprefix("torch.")
            loaded, _ = load_model(path, dtype=dtype, device="cpu")
            shapes = {name: tensor.shape for name, tensor in self._model.state_dict().items()}
            if {name: tensor.shape for name, tensor in loaded.state_dict().items()} != shapes:
                raise ModelError(f"{path} holds a model of another shape than the one that is served")
        except ModelError as error:
            raise RequestError(400, str(error)) from error
        self.batcher.change_weights(lambda: self._take_over(loaded))

    def _take_over(self, loaded: PreTrainedModel) -> None:
        self._slot.put(None)
        with torch.no_grad():
            for name, tensor in self._model.state_dict().items():
                tensor.copy_(loaded.state_dict()[name])
        self._activate(self._active)

    def _activate(self, name: str) -> None:
        """Called in the batcher's thread while nothing is sampled."""
        adapter = self._adapters.get(name)
        self._slot.put(adapter[0] if adapter else None)
        self._active = name


def sampling_generator(seed: int | None) -> np.random.Generator:
    """The randomness of one request: equal seeds give equal answers, None gives another one each time."""
    return np.random.default_rng() if seed is None else generator("request", seed)


_MISSING, _WRONG = "NotFoundError", "InvalidUserInput"

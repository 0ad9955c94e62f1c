"""A language model as a policy: model, tokenizer, chat format, and the engine that samples from it.

Collecting many episodes is `rollout.collect`; here is also the agent for one environment at a time (play, examples).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import EnvironmentFailure
from ..core.messages import Message, user
from ..core.seeding import generator
from ..core.trajectories import Sampling
from ..models.chat import Action, ChatFormat, Conversation
from ..models.engine import Engine, GenerationRequest
from ..models.loading import load_model
from ..models.local_engine import LocalEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MakeEngine = Callable[[int, int], Engine]
"""Makes an engine for so many rows of so many tokens that samples with a policy's weights."""


class LLMPolicy:
    """Any transformers causal language model with a chat template, acting in text environments.

    It is an `Agent`: `reset(observation, info, seed)`, then `act(observation, info)` for each action.

    Args:
        model: The model; trained in place elsewhere. Call `weights_changed` after its weights changed.
        tokenizer: Its tokenizer, with a chat template and an end token.
        sampling: How `act` samples; `collect` is given its own.
        make_engine: What samples; None means the model itself, in this process.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling | None = None,
        make_engine: MakeEngine | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.chat = ChatFormat(tokenizer)
        self.sampling = sampling or Sampling()
        self.version = 0
        """Counts weight changes; recorded with every turn."""
        self._make_engine: MakeEngine = make_engine or (lambda rows, context: LocalEngine(model, rows, context))
        self._engine: Engine | None = None
        self._asked: tuple[int, int] = (0, 0)
        """Rows and context that the kept engine was made for; it may have less context than that."""
        self._conversation: Conversation | None = None
        self._last: Action | None = None
        self._stream: list[int] = []
        """Tokens of the acting conversation's current segment."""
        self._reader: Engine | None = None
        """The engine that has read them."""
        self._generator = generator("act", 0)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str = "float32",
        device: str = "auto",
        attention: str = "sdpa",
        sampling: Sampling | None = None,
    ) -> LLMPolicy:
        """Loads a transformers folder or hub id.

        Raises:
            ModelError: One line that says what is missing.
        """
        model, tokenizer = load_model(path, dtype=dtype, device=device, attention=attention)
        return cls(model.eval(), tokenizer, sampling)

    @property
    def max_positions(self) -> int | None:
        """Greatest number of tokens of one conversation that the model knows; None = no such limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def engine(self, rows: int, max_context: int) -> Engine:
        """Gives an engine with at least this many rows and this much context; it is kept for the next call."""
        if self.max_positions is not None:
            max_context = min(max_context, self.max_positions)
        kept = self._engine
        if kept is None or self._asked[0] < rows or self._asked[1] < max_context:
            self.close()
            self._engine = kept = self._make_engine(rows, max_context)
            self._asked = (rows, max_context)
        return kept

    def weights_changed(self) -> None:
        """Says that the model's weights changed: cached keys and values are dropped."""
        self.version += 1
        if self._engine is not None:
            self._engine.update_weights(self.version)

    def close(self) -> None:
        """Frees the engine's memory; the policy can be used again."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._reader = None

    # -- one environment at a time --------------------------------------------------------------------------------

    def reset(self, observation: str, info: Mapping[str, Any], seed: int) -> None:
        """Begins an episode with what `env.reset` gave."""
        messages: list[Message] = list(info.get("messages") or [user(observation)])
        self._conversation = Conversation(messages, info.get("tools") or ())
        self._last, self._stream = None, []
        self._generator = generator("act", seed)

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Gives the next action's text.

        Raises:
            EnvironmentFailure: The server that samples could not be reached or kept failing.
        """
        if self._conversation is None:
            self.reset(observation, info, seed=0)
        conversation = self._conversation
        assert conversation is not None
        engine = self.engine(1, self.sampling.max_context_tokens)
        if self._last is None:
            new_ids = self.chat.start(conversation.messages, conversation.tools)
        else:
            replies: list[Message] = list(info.get("messages") or [user(observation)])
            extension = self.chat.extend(conversation, self._last, replies)
            new_ids = extension.token_ids
            if extension.new_segment:
                self._stream = []
        goes_on = bool(self._stream) and engine is self._reader  # a collection may have asked for a larger engine
        self._stream += new_ids
        if not goes_on:
            engine.release("act")
            new_ids = list(self._stream)
        completion = engine.generate(
            [
                GenerationRequest(
                    key="act",
                    token_ids=new_ids,
                    generator=self._generator,
                    temperature=self.sampling.temperature,
                    max_tokens=self.sampling.max_turn_tokens,
                    end_ids=self.chat.end_ids,
                )
            ]
        )[0]
        if completion.failure is not None:
            raise EnvironmentFailure(**completion.failure)
        self._stream += completion.token_ids
        self._reader = engine
        text = self.chat.decode(completion.token_ids)
        self._last = Action(text=text, ended=completion.finished == "end")
        return text

"""Generation for many conversations at once, with keys and values kept across turns.

A conversation (`key`) owns a cache row from its first request to its release, so that each token is prefilled once.
Equal first prompts are prefilled once, and shared or copied. Rows whose turn has ended wait until a useful share of the
rows does; then they are answered together, and what follows is prefilled in one chunk. Freed rows are compacted away.

Not here: what requests say (`chat`), who asks (`agents.rollout`), serving over a network (`server`), or sampling from a
server (`http_engine`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.errors import ConfigError
from .decoder_choice import choose_decoder
from .decoders import Decoder, Verifier, counted
from .drafts import ORDER, Drafts
from .engine import Completion, EngineStats, GenerationRequest
from .row_table import ACTIVE, FREE, IDLE, WAITING, RowTable
from .sampling import sample_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .row_table import IntArray

WORTH_A_PASS = 3
"""Guessed tokens of a row that are checked rather than sampled one by one along with the other rows."""
MOST_LOGITS = 1 << 26
"""Logits of one pass (256 MiB in float32); guesses are cut short where a vocabulary is large."""
COMPACT_BELOW = 0.8
"""Rows are compacted when fewer than this share of the decoded block is taken."""


class LocalEngine:
    """An engine in this process, on the model's own device, with the model's own weights.

    Args:
        model: A causal language model; it is shared, not copied. Call `update_weights` after its weights changed.
        rows: Greatest number of conversations at the same time; further ones queue.
        max_context: Greatest number of tokens of one conversation.
        wait_share: Share of the working rows that must have ended (or wait for prefill) before they are handled.
        decoder: How logits are computed; None takes the fastest one that passes its self-test.
        drafts: Guess tokens that always came after the same ones, and check several in one pass. What is sampled is
            the same, up to the rounding of logits. Needs a decoder that is a `Verifier`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: int,
        max_context: int,
        *,
        wait_share: float = 0.15,
        decoder: Decoder | None = None,
        drafts: bool = True,
    ) -> None:
        if rows < 1 or max_context < 2:
            raise ConfigError(f"rows={rows}, max_context={max_context}: must be at least 1 and 2")
        if not 0 < wait_share <= 1:
            raise ConfigError(f"wait_share={wait_share}: must be in (0, 1]")
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and max_context > positions:
            raise ConfigError(f"max_context={max_context}: the model has {positions} positions")
        self.stats = EngineStats()
        self.version = 0
        self._device = model.device
        self._wait_share = wait_share
        self._decoder = decoder or choose_decoder(model, rows, max_context)
        self._drafts = Drafts() if drafts and isinstance(self._decoder, Verifier) else None
        self._table = RowTable(rows, max_context)
        self._queue: list[GenerationRequest] = []
        self._end_sets: list[frozenset[int]] = []
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._is_end_EV = np.zeros((0, self._vocabulary), dtype=np.bool_)

    @property
    def rows(self) -> int:
        """Greatest number of conversations at the same time."""
        return self._table.rows

    @property
    def max_context(self) -> int:
        """Greatest number of tokens of one conversation."""
        return self._table.max_context

    @property
    def decoder(self) -> Decoder:
        """How logits are computed."""
        return self._decoder

    # -- requests -------------------------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> None:
        """See `Engine.submit`.

        Raises:
            ConfigError: The conversation leaves no room for a token, or has a request running.
        """
        table = self._table
        row = table.row_of.get(request.key)
        known = 0 if row is None else int(table.length_R[row])
        if not request.token_ids and not known:
            raise ConfigError(f"request {request.key!r}: the first prompt is empty")
        if request.max_tokens < 1 or known + len(request.token_ids) >= table.max_context:
            raise ConfigError(
                f"request {request.key!r}: {known + len(request.token_ids)} tokens and max_tokens="
                f"{request.max_tokens} leave no room in max_context={table.max_context}"
            )
        if row is None:
            row = table.take(request.key)
            if row is None:
                self._queue.append(request)
                return
        elif table.state_R[row] != IDLE:
            raise ConfigError(f"request {request.key!r}: its last request is still running")
        self._place(request, row)

    def _place(self, request: GenerationRequest, row: int) -> None:
        table = self._table
        table.append(row, request.token_ids)
        start = int(table.length_R[row])
        table.start_R[row] = start
        table.stop_R[row] = min(start + request.max_tokens, table.max_context)
        table.temperature_R[row] = request.temperature
        table.ends_R[row] = self._end_set(request.end_ids)
        table.set_uniforms(row, request.generator.random(request.max_tokens, dtype=np.float32))
        table.state_R[row] = WAITING

    def _end_set(self, end_ids: frozenset[int]) -> int:
        if end_ids not in self._end_sets:
            self._end_sets.append(end_ids)
            row_V = np.zeros((1, self._vocabulary), dtype=np.bool_)
            row_V[0, sorted(end_ids)] = True
            self._is_end_EV = np.concatenate([self._is_end_EV, row_V])
        return self._end_sets.index(end_ids)

    def release(self, key: Hashable) -> None:
        """See `Engine.release`; a key that is not known is fine."""
        if key in self._table.row_of:
            self._table.drop(key)
        else:
            self._queue = [request for request in self._queue if request.key != key]

    def _admit(self) -> None:
        """Gives freed rows to queued conversations."""
        while self._queue:
            row = self._table.take(self._queue[0].key)
            if row is None:
                return
            self._place(self._queue.pop(0), row)

    # -- work -----------------------------------------------------------------------------------------------------

    def step(self) -> list[Completion]:
        """Prefills what waits, else samples one token for every conversation; gives the turns that ended with it.

        For servers, which look for new requests after every token.
        """
        self._admit()
        waiting = np.flatnonzero(self._table.state_R == WAITING)
        if len(waiting):
            return self._prefill(waiting)
        active = np.flatnonzero(self._table.state_R == ACTIVE)
        return self._decode(active) if len(active) else []

    def poll(self) -> list[Completion]:
        """See `Engine.poll`."""
        table = self._table
        done: list[Completion] = []
        self._admit()
        while True:
            waiting = np.flatnonzero(table.state_R == WAITING)
            active = np.flatnonzero(table.state_R == ACTIVE)
            working = len(waiting) + len(active)
            if not working:
                return done
            if done and len(done) >= self._wait_share * (working + len(done)):
                return done
            if len(waiting) and (not len(active) or len(waiting) >= self._wait_share * working):
                done += self._prefill(waiting)
            else:
                done += self._decode(active)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Engine.generate`."""
        if len(requests) > self.rows:
            raise ConfigError(f"{len(requests)} requests: this engine has {self.rows} rows")
        for request in requests:
            self.submit(request)
        done: dict[Hashable, Completion] = {}
        while len(done) < len(requests):
            completions = self.poll()
            if not completions:
                raise ConfigError("generate() cannot run while other conversations hold all rows")
            done |= {completion.key: completion for completion in completions}
        return [done[request.key] for request in requests]

    def _prefill(self, rows: IntArray) -> list[Completion]:
        """Feeds what waiting rows have not in the cache."""
        self.stats.prefills += 1
        self._table.state_R[rows] = ACTIVE
        is_new = self._table.cached_R[rows] == 0
        done: list[Completion] = []
        if is_new.any():
            done += self._begin(rows[is_new])
        if not is_new.all():
            others = rows[~is_new]
            self.stats.prefilled_tokens += int((self._table.length_R[others] - self._table.cached_R[others]).sum())
            done += self._feed(others, self._guesses(others))
        return done

    def _begin(self, rows: IntArray) -> list[Completion]:
        """Feeds whole prompts; of rows with equal ones one is fed."""
        table = self._table
        first_of: dict[bytes, int] = {}
        copies: dict[int, list[int]] = {}
        for row in rows.tolist():
            first = first_of.setdefault(table.tokens_RT[row, : table.length_R[row]].tobytes(), row)
            if first != row:
                copies.setdefault(first, []).append(row)
        fed = np.array(list(first_of.values()))
        chunks = [table.tokens_RT[row, : table.length_R[row]] for row in fed.tolist()]
        logits = self._decoder.prefill(fed, np.zeros_like(fed), chunks)
        self.stats.prefilled_tokens += sum(map(len, chunks))
        if copies:
            for first, same in copies.items():
                self._decoder.share_prompt(first, np.array(same), int(table.length_R[first]))
            place = {row: i for i, row in enumerate(fed.tolist())}
            origin = np.array([*range(len(fed)), *(place[first] for first, same in copies.items() for _ in same)])
            logits = logits[torch.from_numpy(origin).to(logits.device)]
            fed = np.concatenate([fed, *map(np.array, copies.values())])
        table.cached_R[fed] = table.length_R[fed]
        return self._advance(fed, logits)

    def _feed(self, rows: IntArray, drafted: list[list[int]]) -> list[Completion]:
        """Feeds rows what they have not in the cache, and guesses after it; keeps what is sampled as it was guessed."""
        table = self._table
        starts = table.cached_R[rows]
        spans = zip(rows.tolist(), starts.tolist(), table.length_R[rows].tolist(), drafted, strict=True)
        chunks = [
            np.append(table.tokens_RT[row, start:stop], draft).astype(np.int64) for row, start, stop, draft in spans
        ]
        tails = np.array([1 + len(draft) for draft in drafted])
        if isinstance(self._decoder, Verifier):
            logits = self._decoder.verify(rows, starts, chunks, tails)
        else:
            logits = self._decoder.prefill(rows, starts, chunks)
        row_N = np.repeat(rows, tails)
        tokens, logprobs = self._sampled(row_N, table.length_R[row_N] + counted(tails), logits)
        over: list[int] = []
        first = 0
        for row, draft in zip(rows.tolist(), drafted, strict=True):
            said, is_end_V = tokens[first : first + len(draft) + 1], self._is_end_EV[table.ends_R[row]]
            kept = 1
            while kept <= len(draft) and said[kept - 1] == draft[kept - 1] and not is_end_V[said[kept - 1]]:
                kept += 1
            span = slice(int(table.length_R[row]), int(table.length_R[row]) + kept)
            table.tokens_RT[row, span], table.logprobs_RT[row, span] = said[:kept], logprobs[first : first + kept]
            table.length_R[row], table.cached_R[row] = span.stop, span.stop - 1
            self.stats.sampled_tokens += kept
            self.stats.guessed_tokens += kept - 1
            if is_end_V[said[kept - 1]] or span.stop >= table.stop_R[row]:
                over.append(row)
            first += len(draft) + 1
        return self._completed(np.array(over, dtype=np.int64))

    def _decode(self, active: IntArray) -> list[Completion]:
        """Checks what is guessed, or samples one token for every active row.

        In the latter case the rows of a block are decoded together. Rows among them that wait are fed a token that they
        have anyway, which writes what is there already (or what their next chunk writes again).
        """
        table = self._table
        self.stats.decode_steps += 1
        drafted = self._guesses(active)
        checked = self._worth_checking(drafted)
        if checked:
            return self._feed(active[checked], [drafted[i] for i in checked])
        block = int(active[-1]) + 1
        taken = int(np.count_nonzero(table.state_R[:block] != FREE))
        if taken < COMPACT_BELOW * block:
            block = self._compact(block)
            active = np.flatnonzero(table.state_R == ACTIVE)
        length_B = table.length_R[:block]
        positions_B = np.minimum(table.cached_R[:block], np.maximum(length_B - 1, 0))
        logits = self._decoder.decode(table.tokens_RT[np.arange(block), positions_B], positions_B)
        table.cached_R[active] += 1
        if len(active) < block:
            logits = logits[torch.from_numpy(active).to(logits.device)]
        return self._advance(active, logits)

    def _guesses(self, rows: IntArray) -> list[list[int]]:
        """What is guessed to follow in each of some rows."""
        if self._drafts is None:
            return [[] for _ in rows]
        table = self._table
        lengths = table.length_R[rows]
        most = max(0, MOST_LOGITS // (self._vocabulary * len(rows)) - 1)
        rooms = np.minimum(table.stop_R[rows] - lengths - 1, most)
        last_AO = table.tokens_RT[rows[:, None], np.maximum(lengths[:, None] - np.arange(ORDER, 0, -1), 0)]
        return [self._drafts.guess(*row) for row in zip(last_AO.tolist(), rooms.tolist(), strict=True)]

    def _worth_checking(self, drafted: list[list[int]]) -> list[int]:
        """Which of the active rows are fed with their guesses now; the others wait for it."""
        if isinstance(self._decoder, Verifier) and self._decoder.pays_per_token:
            return [i for i, draft in enumerate(drafted) if len(draft) >= WORTH_A_PASS]
        return list(range(len(drafted))) if sum(map(len, drafted)) >= len(drafted) else []

    def _compact(self, block: int) -> int:
        """Moves the last rows of the block into its free rows; gives the new end of the block."""
        table = self._table
        taken = np.flatnonzero(table.state_R[:block] != FREE)
        targets = np.flatnonzero(table.state_R[: len(taken)] == FREE)
        sources = taken[taken >= len(taken)]
        self._decoder.copy_rows(sources, targets, int(table.cached_R[sources].max(initial=1)))
        table.move(sources, targets)
        return int(np.flatnonzero(table.state_R[:block] == ACTIVE)[-1]) + 1

    def _advance(self, rows: IntArray, logits: torch.Tensor) -> list[Completion]:
        """Samples the next token of each row from its logits; gives the turns that ended with it."""
        table = self._table
        length = table.length_R[rows]
        tokens, logprobs = self._sampled(rows, length, logits)
        table.tokens_RT[rows, length] = tokens
        table.logprobs_RT[rows, length] = logprobs
        table.length_R[rows] = length + 1
        self.stats.sampled_tokens += len(rows)
        ended = self._is_end_EV[table.ends_R[rows], tokens]
        return self._completed(rows[ended | (length + 1 >= table.stop_R[rows])])

    def _sampled(
        self, rows: IntArray, positions: IntArray, logits: torch.Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens for these positions of rows, and their log-probabilities."""
        table = self._table
        uniforms = torch.from_numpy(table.uniforms_RT[rows, positions - table.start_R[rows]])
        temperature = table.temperature_R[rows]
        plain = bool((temperature == 1.0).all())
        temperatures = None if plain else torch.from_numpy(temperature).to(self._device)
        tokens, logprobs = sample_tokens(logits, uniforms.to(self._device), temperatures)
        return tokens.cpu().numpy(), logprobs.cpu().numpy()

    def _completed(self, rows: IntArray) -> list[Completion]:
        """The turns that have ended in these rows, which are idle from now on."""
        table = self._table
        done: list[Completion] = []
        for row in rows.tolist():
            start, stop = int(table.start_R[row]), int(table.length_R[row])
            if self._drafts is not None:
                self._drafts.learn(table.tokens_RT[row, max(0, start - ORDER) : stop].tolist())
            tokens = table.tokens_RT[row, start:stop].tolist()
            is_end = self._is_end_EV[table.ends_R[row], tokens[-1]]
            done.append(
                Completion(
                    key=table.keys[row],
                    token_ids=tokens,
                    logprobs=table.logprobs_RT[row, start:stop].tolist(),
                    finished="end" if is_end else "length",
                )
            )
        table.state_R[rows] = IDLE
        return done

    # -- weights --------------------------------------------------------------------------------------------------

    def update_weights(self, version: int) -> None:
        """See `Engine.update_weights`; conversations that go on are prefilled anew."""
        self.version = version
        self._decoder.refresh()
        if self._drafts is not None:
            self._drafts.clear()  # what is sampled depends, in its last bits, on nothing from before
        table = self._table
        table.cached_R[:] = 0
        table.state_R[table.state_R == ACTIVE] = WAITING

    def close(self) -> None:
        """See `Engine.close`; may be called twice."""
        self._queue.clear()
        for key in list(self._table.row_of):
            self._table.drop(key)

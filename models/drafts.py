"""Guesses of a turn's next tokens, from what other turns said after the same tokens.

Agents write much that only looks like a decision: the frame of a tool call, the name of a file they have just read.
Such tokens are guessed, fed in one pass and sampled as always, each from its own logits with its own random number; the
first one that comes out otherwise ends what is kept. So the tokens are those that one pass per token would have sampled
(speculative decoding, arXiv 2211.17192, with references for a guesser, arXiv 2304.04487: a guess has no probabilities,
and is kept if it is what is sampled).
"""

from __future__ import annotations

from collections.abc import Sequence

ORDER = 3
"""Tokens that a guess is made from."""
LONGEST = 24
SEEN = 2
"""Times that a token must have followed before it is guessed."""
_OPEN = -1
"""Marks a context after which different tokens were seen: nothing is guessed there."""
_MOST = 1 << 20
"""Contexts that are remembered (some 300 MiB); after that, learning begins anew."""


class Drafts:
    """What followed each three tokens, as long as it was always the same."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], tuple[int, int]] = {}

    def clear(self) -> None:
        """Forgets everything."""
        self._next.clear()

    def learn(self, tokens: Sequence[int]) -> None:
        """Takes note of a turn: `ORDER` tokens from before it, then its own."""
        follows = self._next
        if len(follows) > _MOST:
            follows.clear()
        for *context, token in zip(*(tokens[start:] for start in range(ORDER + 1)), strict=False):
            key = tuple(context)
            known, times = follows.get(key, (token, 0))
            follows[key] = (token, times + 1) if known == token else (_OPEN, 0)

    def guess(self, last: Sequence[int], limit: int) -> list[int]:
        """The tokens that should follow the last `ORDER` ones; at most `limit` and `LONGEST`."""
        context, drafted = tuple(last), list[int]()
        for _ in range(min(limit, LONGEST)):
            token, times = self._next.get(context, (_OPEN, 0))
            if times < SEEN:
                break
            drafted.append(token)
            context = (*context[1:], token)
        return drafted

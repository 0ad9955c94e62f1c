"""The text of each token of a run's episodes, by the tokenizer in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from .plain_text import visible

_BROKEN = "\ufffd"
"""What half a character decodes to."""


class Decoder(Protocol):
    """The part of a tokenizer that is used here."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Gives the text of tokens."""
        ...


class TokenTexts:
    """Texts of tokens, each as it reads after the one before it: some tokenizers drop a space at the start of a text.

    A character that is spread over several tokens stands with the last of them.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._known: dict[tuple[int | None, int], str] = {}

    def of(self, token_ids: Sequence[int]) -> list[str]:
        """The texts of a stream of tokens, safe to show."""
        before: int | None = None
        texts: list[str] = []
        for token in token_ids:
            texts.append(self._after(before, token))
            before = token
        return texts

    def _after(self, before: int | None, token: int) -> str:
        key = before, token
        if key not in self._known:
            self._known[key] = visible(self._decode(before, token))
        return self._known[key]

    def _decode(self, before: int | None, token: int) -> str:
        alone = self._decoder.decode([token], skip_special_tokens=False)
        if before is None:
            return alone
        first = self._decoder.decode([before], skip_special_tokens=False)
        both = self._decoder.decode([before, token], skip_special_tokens=False)
        if both.startswith(first) and not first.endswith(_BROKEN):
            return both[len(first) :]
        return alone if _BROKEN in both else both.lstrip() if first.endswith(_BROKEN) else both


def token_texts_of_run(folder: Path) -> TokenTexts | None:
    """Reads the tokenizer of a run's policy, else of its SFT policy; None where there is none, or no package for it."""
    path = next((path for name in ("policy", "sft") if (path := folder / name / "tokenizer.json").is_file()), None)
    if path is None:
        return None
    try:
        from tokenizers import Tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    except ModuleNotFoundError:
        return None
    try:
        tokenizer: Any = Tokenizer.from_file(str(path))
    except Exception:  # the package raises Exception itself about a damaged file
        return None
    return TokenTexts(tokenizer)

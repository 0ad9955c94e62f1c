r"""Text of models and tools made safe to show: no control characters, no direction tricks, no broken Unicode.

What a policy writes is untrusted: an escape sequence could rewrite a terminal, a direction override could make code
read differently from what runs, and a lone surrogate cannot be written to a file at all. Such characters are shown as
their escapes, such as `\x1b`.
"""

from __future__ import annotations

import unicodedata

_HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn")
_KEPT = "\n\t"


def visible(text: str) -> str:
    """Gives the text with every invisible or control character written as its escape; lines and tabs are kept."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escape(character) if unicodedata.category(character) in _HIDDEN_CATEGORIES else character for character in text
    )


def one_line(text: str) -> str:
    """Gives the text on one line, safe to show."""
    return visible(" ".join(text.split()))


def _escape(character: str) -> str:
    return character if character in _KEPT else character.encode("unicode_escape").decode()

"""Values of options that hold several things: `1,2,2,3`, `careful=0.2,hasty=0.8`, `prompt_style=compact`."""

from __future__ import annotations

import importlib.util
import os
import sys
import tomllib
from collections.abc import Sequence
from typing import Any

from ..core.errors import ConfigError


def environment_id(text: str) -> str:
    """The id as it stands; a module of `module:Id-v0` that is not installed is looked for in the current folder.

    The folder goes to the end of the path, and only when such a module was asked for: nothing in it hides what is
    installed.
    """
    module, colon, _ = text.partition(":")
    if colon and not _is_found(module) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return text


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def names(text: str | None) -> tuple[str, ...]:
    """`"compose,repair"` as a tuple; None and `""` give an empty one."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def levels(text: str | None) -> tuple[int, ...]:
    """`"1,2,2,3"` as integers; a level that is listed twice is drawn twice as often."""
    return whole_numbers(text, "--levels", "1,2,2,3")


def whole_numbers(text: str | None, option: str, example: str) -> tuple[int, ...]:
    """`"1,10"` as integers; None and `""` give an empty tuple."""
    try:
        return tuple(int(part) for part in names(text))
    except ValueError:
        raise ConfigError(f"{option}={text}: write whole numbers with commas, such as {example}") from None


def shares(text: str, option: str) -> dict[str, float]:
    """`"careful=0.2,hasty=0.8"` as a mapping; shares need not sum to 1."""
    result: dict[str, float] = {}
    for part in names(text):
        name, equals, value = part.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not equals or not name.strip() or not 0 <= share < float("inf"):
            raise ConfigError(f"{option}: {part!r}: write NAME=SHARE with a share >= 0, such as careful=0.2")
        result[name.strip()] = share
    if not sum(result.values()):
        raise ConfigError(f"{option}={text}: at least one share must be > 0")
    return result


def keywords(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """`["prompt_style=compact", "max_turns=6"]` as keywords; values are read as TOML where that works, else as text."""
    result: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{option} {pair!r}: write KEY=VALUE, such as max_turns=6")
        try:
            result[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            result[name] = value
    return result

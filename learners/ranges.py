"""Checks values of a configuration against intervals written as text, such as `"(0, 1]"`, and against closed sets.

The text is both the check and what the error message shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..core.errors import ConfigError, did_you_mean


def check_ranges(config: object, prefix: str, ranges: Mapping[str, str]) -> None:
    """Raises unless every named field lies in its interval; fields that are None are skipped.

    Args:
        config: Any object with the named attributes.
        prefix: Put before the field's name in the message: `"grpo."` gives `grpo.clip_low=-0.1: must be in (0, 1)`.
        ranges: Field -> interval in the usual notation; `inf` and `-inf` are allowed as open ends. A field that is a
            tuple is checked entry by entry.

    Raises:
        ConfigError: Names the first field that is outside, its value and the interval.
    """
    for name, interval in ranges.items():
        value = getattr(config, name)
        entries = value if isinstance(value, tuple) else (value,)
        if not all(entry is None or _contains(interval, entry) for entry in entries):
            raise ConfigError(f"{prefix}{name}={value!r}: must be in {interval}")


def check_choices(config: object, prefix: str, choices: Mapping[str, Sequence[str]]) -> None:
    """Raises unless every named field has one of its allowed values.

    Raises:
        ConfigError: Names the field, its value, and the nearest allowed value.
    """
    for name, allowed in choices.items():
        value = getattr(config, name)
        if value not in allowed:
            raise ConfigError(f"{prefix}{name}={value!r}{did_you_mean(str(value), allowed)}")


def _contains(interval: str, value: float) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    if math.isnan(value):
        return False
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return above and below

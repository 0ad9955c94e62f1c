"""Values as tagged plain JSON: only exact built-in types exist on the other side, whatever the sender was.

JSON's own types stand for themselves, except objects, which are always tags: `{"$": kind, "v": content}`. A text
without `{` therefore needs no decoding beyond JSON. Kinds: `i` huge int (hex), `f` inf or nan, `t` tuple, `s` set,
`z` frozenset, `d` dict (pairs), `b` bytes (hex), `c` complex, `o` opaque (a repr; equal to nothing).
"""

from __future__ import annotations

import math

from . import wire

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


MAX_DEPTH = 100
MAX_ITEMS = 1_000_000
OPAQUE_TEXT = '{"$":"o"'
"""Is in a tagged JSON text if and only if an opaque value is: quotes inside of texts are escaped."""
_MOST_COLLISIONS = 64
_HUGE = 1 << 62
_PLAIN = (type(None), bool, str)


class ValueTooLarge(ValueError):
    """A value is nested too deeply or has too many items to cross."""


class Opaque:
    """Stands for a value of a type that does not cross; equal to nothing, not even to itself."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return self.text


DECODING_ERRORS = (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RecursionError, MemoryError)
"""What decoding the text of an untrusted process may raise."""
_type: Callable[[object], Any] = type
"""`type`, without the type checker narrowing Any to containers of unknown items."""


def dumps(value: Any) -> str:
    """Gives a value's tagged JSON text. Iterators and views are spent into lists.

    Raises:
        ValueTooLarge: Deeper than `MAX_DEPTH`, or more than `MAX_ITEMS` items in one container.
    """
    return wire.dumps(encode(value))


def loads(text: str) -> Any:
    """Rebuilds the value of a tagged JSON text.

    Raises:
        ValueError: The text is not tagged JSON.
    """
    try:
        plain = wire.loads(text)
        return decode(plain) if "{" in text else plain
    except DECODING_ERRORS as error:
        raise ValueError("not a tagged value") from error


def encode(value: Any, depth: int = 0) -> Any:
    """Gives a value as JSON data with tags."""
    kind = _type(value)
    if kind is int:
        return value if -_HUGE < value < _HUGE else {"$": "i", "v": hex(value)}
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$": "f", "v": repr(value)}
    if depth > MAX_DEPTH:
        raise ValueTooLarge(f"nested deeper than {MAX_DEPTH}")
    if kind is list:
        _check_items(len(value))
        return [encode(item, depth + 1) for item in value]
    if kind is dict:
        _check_items(len(value))
        return {"$": "d", "v": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]}
    return _encode_rare(value, kind, depth)


def _encode_rare(value: Any, kind: Any, depth: int) -> Any:
    tag = {tuple: "t", set: "s", frozenset: "z"}.get(kind)
    if tag is not None:
        _check_items(len(value))
        return {"$": tag, "v": [encode(item, depth + 1) for item in value]}
    if kind is bytes or kind is bytearray:
        return {"$": "b", "v": value.hex()}
    if kind is complex:
        return {"$": "c", "v": [encode(value.real), encode(value.imag)]}
    for base, content_of in _CONTENTS.items():  # subclasses: Counter, namedtuple, IntEnum
        if issubclass(kind, base):
            return encode(content_of(value), depth)
    if hasattr(kind, "tolist") and kind.__module__.partition(".")[0] == "numpy":
        return encode(value.tolist(), depth)
    if hasattr(kind, "__iter__") and kind.__module__ in ("builtins", "itertools", "collections"):
        items: list[Any] = []
        for item in value:  # generators, map, zip, range, dict views, deque
            items.append(item)
            _check_items(len(items))
        return encode(items, depth)
    return {"$": "o", "v": object.__repr__(value)[:200]}


_LIST: Any = list  # untyped, as what they hold is
_TUPLE: Any = tuple
_DICT: Any = dict
_SET: Any = set
_FROZENSET: Any = frozenset
_CONTENTS: dict[type, Callable[[Any], Any]] = {
    int: lambda value: int.__add__(value, 0),
    float: lambda value: float.__add__(value, 0.0),
    complex: lambda value: complex.__add__(value, 0j),
    str: lambda value: "".join(str.__iter__(value)),
    bytes: lambda value: bytes(bytes.__iter__(value)),
    bytearray: lambda value: bytes(bytearray.__iter__(value)),
    list: lambda value: list(_LIST.__iter__(value)),
    tuple: lambda value: tuple(_TUPLE.__iter__(value)),
    dict: lambda value: dict(_DICT.items(value)),
    set: lambda value: set(_SET.__iter__(value)),
    frozenset: lambda value: frozenset(_FROZENSET.__iter__(value)),
}
"""How the built-in content of a subclass's instance is read: with the base's own methods, never its overrides."""


def _check_items(count: int) -> None:
    if count > MAX_ITEMS:
        raise ValueTooLarge(f"more than {MAX_ITEMS} items")


def decode(data: Any) -> Any:
    """Rebuilds a value from JSON data with tags.

    Raises:
        ValueError, KeyError, TypeError, ArithmeticError: The data is not tagged JSON.
    """
    shape = _type(data)
    if shape is list:
        return [decode(item) for item in data]
    if shape is not dict:
        return data
    kind, content = data["$"], data["v"]
    if kind == "d":
        keys = [decode(key) for key, _ in content]
        _check_hashes(keys)
        return dict(zip(keys, [decode(item) for _, item in content], strict=True))
    if kind in _DECODERS:
        return _DECODERS[kind](content)
    raise ValueError(f"unknown tag {kind!r}")


def is_opaque(encoded: Any) -> bool:
    """Whether a value's JSON data says no more than that it does not cross."""
    kind = _type(encoded)
    return bool(kind is dict and encoded["$"] == "o")


def _items(content: Any) -> list[Any]:
    return [decode(item) for item in content]


def _hashable(content: Any) -> list[Any]:
    items = _items(content)
    _check_hashes(items)
    return items


def _check_hashes(items: list[Any]) -> None:
    """Refuses what would fill a set in quadratic time: integers with one hash are easy to find, and whoever sends them
    would stop the process that decodes them.

    Raises:
        ValueError: There are more than `_MOST_COLLISIONS` items whose hash another one has.
    """
    if len(items) > _MOST_COLLISIONS and len(items) - len(set(map(hash, items))) > _MOST_COLLISIONS:
        raise ValueError("too many items with one hash")


def _complex(content: Any) -> complex:
    return complex(*_items(content))


def _huge(content: Any) -> int:
    return int(content, 16)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "i": _huge,
    "f": float,
    "t": lambda content: tuple(_items(content)),
    "s": lambda content: set(_hashable(content)),
    "z": lambda content: frozenset(_hashable(content)),
    "b": bytes.fromhex,
    "c": _complex,
    "o": lambda content: Opaque(str(content)),
}


def same(got: Any, want: Any) -> bool:
    """Whether two plain values are equal for a grader.

    Like `==`, but bools are not numbers, a list equals a tuple of the same items, and NaN equals NaN.
    """
    if type(got) is type(want) and type(got) in (int, str):
        return got == want
    return _canonical(got) == _canonical(want)


def _canonical(value: Any) -> Any:
    kind = _type(value)
    if kind is bool:
        return ("bool", value)
    if kind is float and value != value:
        return ("nan",)
    if kind is list or kind is tuple:
        return ("list", *[_canonical(item) for item in value])
    if kind is set or kind is frozenset:
        return ("set", frozenset(_canonical(item) for item in value))
    if kind is dict:
        return ("dict", {_canonical(k): _canonical(v) for k, v in value.items()})
    return value

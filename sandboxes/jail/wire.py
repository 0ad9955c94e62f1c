"""Frames on the sockets between host, supervisor and sessions.

A frame is `!II` (lengths of head and body), a head (a JSON object) and a body (bytes). Nothing is ever pickled, and
both lengths are checked before anything is stored.
"""

from __future__ import annotations

import json
import os
import struct

TYPE_CHECKING = False  # `typing` stays out of the zygote
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Frame = tuple[dict[str, Any], bytes]


LENGTHS = struct.Struct("!II")
MAX_HEAD = 1 << 20
MAX_BODY = 1 << 28


def _make_dumps() -> Callable[[Any], str]:
    """`json.dumps` without its Python layers where CPython's C encoder can be had: they cost more than the encoding."""
    encoder = json.JSONEncoder(separators=(",", ":"), check_circular=False)
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    quote: Any = getattr(json.encoder, "encode_basestring_ascii")  # noqa: B009 - untyped
    encode: Any = make(None, encoder.default, quote, None, ":", ",", False, False, True)
    return lambda value: "".join(encode(value, 0))


dumps = _make_dumps()
_scan: Callable[[str, int], tuple[Any, int]] = getattr(json.JSONDecoder(), "scan_once")  # noqa: B009 - untyped


class WireError(ValueError):
    """The bytes are no frame; the stream is of no use from here on."""


def pack(head: dict[str, Any], body: bytes = b"") -> bytes:
    """Gives the frame of a head and a body.

    Raises:
        WireError: They are too large for one.
    """
    text = dumps(head).encode()
    if len(text) > MAX_HEAD or len(body) > MAX_BODY:
        raise WireError(f"a frame of {len(text)} + {len(body)} bytes is too large")
    return LENGTHS.pack(len(text), len(body)) + text + body


class FrameReader:
    """Cuts a byte stream into frames.

    Args:
        max_body: Greatest body that the other side may send, bytes.
    """

    __slots__ = ("_buffer", "_max_body", "_wanted")

    def __init__(self, max_body: int = MAX_BODY) -> None:
        self._buffer = bytearray()
        self._max_body = max_body
        self._wanted = 8  # bytes without which looking at the buffer is of no use

    def feed(self, data: bytes) -> list[Frame]:
        """Takes the next bytes and gives the frames that they complete.

        Raises:
            WireError: The bytes are no frame.
        """
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                return []
            data = bytes(self._buffer)
        frames: list[Frame] = []
        start, total = 0, len(data)
        self._wanted = 8
        while total - start >= 8:
            head_size, body_size = LENGTHS.unpack_from(data, start)
            if head_size > MAX_HEAD or body_size > self._max_body:
                raise WireError(f"a frame of {head_size} + {body_size} bytes is too large")
            body_start = start + 8 + head_size
            end = body_start + body_size
            if total < end:
                self._wanted = end - start
                break
            frames.append((_parse_head(data[start + 8 : body_start]), data[body_start:end]))
            start = end
        self._buffer = bytearray(data[start:]) if start < total else bytearray()
        return frames


def loads(text: str) -> Any:
    """`json.loads` without its Python layers; no white space around the value.

    Raises:
        ValueError: The text is not JSON, or nested too deeply.
    """
    try:
        value, end = _scan(text, 0)
    except (StopIteration, RecursionError) as error:
        raise ValueError("not JSON") from error
    if end != len(text):
        raise ValueError("more than one JSON value")
    return value


def _parse_head(text: bytes) -> dict[str, Any]:
    try:
        head = loads(text.decode())
    except ValueError as error:
        raise WireError("the head of a frame is not JSON") from error
    if not hasattr(head, "items"):
        raise WireError("the head of a frame is not a JSON object")
    return head


def read_frame(fd: int) -> Frame:
    """Reads the next frame of a blocking descriptor whose peer sends one frame at a time.

    Raises:
        EOFError: The other side is gone.
        WireError: The bytes are no frame.
    """
    data = bytearray(os.read(fd, 65536))
    while True:
        if len(data) >= 8:
            head_size, body_size = LENGTHS.unpack_from(data)
            if head_size > MAX_HEAD or body_size > MAX_BODY:
                raise WireError(f"a frame of {head_size} + {body_size} bytes is too large")
            missing = 8 + head_size + body_size - len(data)
            if missing <= 0:
                break
        else:
            missing = 65536
        more = os.read(fd, min(missing, 1 << 20)) if data else b""
        if not more:
            raise EOFError
        data += more
    return _parse_head(bytes(data[8 : 8 + head_size])), bytes(data[8 + head_size :])


def one_line(text: str, most: int = 500) -> str:
    """Gives a text of untrusted code as one line that any file or terminal takes: no breaks, no lone surrogates."""
    text = text[:most]
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def write_all(fd: int, data: bytes) -> None:
    """Writes everything to a blocking descriptor."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])

"""Frames to bytes and back, incrementally, under limits.

Rule 1. Lengths are checked before anything is read or allocated for them.
Rule 2. Only the header is decoded, and only to plain values of bounded size.
Rule 3. The decoder raises ProtocolError and nothing else, whatever the bytes.
"""

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any

import msgpack

from qprotocol.errors import ProtocolError
from qprotocol.frames import FRAMES, Frame, Part
from qprotocol.limits import (
    FRAME_BYTES_MAX,
    HEADER_BYTES_MAX,
    HEADER_DEPTH_MAX,
    HEADER_ITEMS_MAX,
    HEADER_STRING_MAX,
    INT_MAX,
)

PREFIX = Struct("<IH")
"""Length of the rest of the frame, and within it the length of the header."""

_packb: Callable[[list[Any]], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encode(frame: Frame) -> bytes:
    """The frame's bytes. The caller keeps ``raw`` within the frame limit (see ``parts``)."""
    header = _packb([frame.TYPE, frame.correlation, *[getattr(frame, n) for n in frame.FIELDS]])
    return PREFIX.pack(2 + len(header) + len(frame.raw), len(header)) + header + frame.raw


def room(frame: Frame, frame_bytes_max: int = FRAME_BYTES_MAX) -> int:
    """Bytes of raw section that still fit into one frame with this header."""
    header = _packb([frame.TYPE, frame.correlation, *[getattr(frame, n) for n in frame.FIELDS]])
    return frame_bytes_max - 2 - len(header)


class Decoder:
    """Bytes in, frames out. Keeps at most one frame's bytes."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._left = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that ``data`` completes, in order.

        Take them all before feeding again. Raises ProtocolError at the first bad one;
        the decoder is of no use after that.
        """
        if self._left:
            data = self._left + data
            self._left = b""
        at, total = 0, len(data)
        while total - at >= 6:
            length, n_header = PREFIX.unpack_from(data, at)
            if length > self.frame_bytes_max:
                raise ProtocolError(
                    "FRAME_TOO_LARGE",
                    f"a frame of {length} bytes: the limit is {self.frame_bytes_max}",
                )
            if n_header > HEADER_BYTES_MAX or n_header + 2 > length:
                raise ProtocolError(
                    "BAD_FRAME", f"a header of {n_header} bytes in a frame of {length}"
                )
            end = at + 4 + length
            if end > total:
                break
            start = at + 6
            frame = decode_header(data[start : start + n_header])
            frame.raw = data[start + n_header : end]
            at = end
            yield frame
        if at < total:
            self._left = data[at:]


def decode_header(header: bytes) -> Frame:
    """The frame with that header and an empty raw section. Raises ProtocolError."""
    try:
        items = msgpack.unpackb(
            header,
            raw=False,
            strict_map_key=True,
            max_array_len=HEADER_ITEMS_MAX,
            max_map_len=HEADER_ITEMS_MAX,
            max_str_len=HEADER_STRING_MAX,
            max_bin_len=HEADER_STRING_MAX,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises a dozen kinds; all of them mean this
        raise ProtocolError("BAD_FRAME", f"the header is not valid msgpack: {error}") from error
    if type(items) is not list or len(items) < 2:
        raise ProtocolError("BAD_FRAME", "the header is not an array of type and correlation")
    number, correlation = items[0], items[1]
    cls = FRAMES.get(number) if type(number) is int else None
    if cls is None:
        raise ProtocolError("BAD_FRAME", f"no frame has the type {str(number)[:40]}")
    if type(correlation) is not int or not 0 <= correlation <= INT_MAX:
        raise ProtocolError("BAD_FRAME", f"{cls.__name__}: the correlation id is not an integer")
    values = items[2 : 2 + len(cls.FIELDS)]
    if len(values) < cls.REQUIRED:
        missing = cls.FIELDS[len(values)]
        raise ProtocolError("BAD_FRAME", f"{cls.__name__}: the field {missing} is missing")
    value: Any
    for name, kind, value in zip(cls.FIELDS, cls.KINDS, values, strict=False):
        if type(value) is not kind:
            check_kind(cls.__name__, name, kind, value)
        elif kind is int:
            if not 0 <= value <= INT_MAX:
                raise ProtocolError("BAD_FRAME", f"{cls.__name__}: {name} is out of range")
        elif kind is list or kind is dict:
            check_nested(cls.__name__, name, value)
    return cls(**dict(zip(cls.FIELDS, values, strict=False)), correlation=correlation)


def check_kind(frame: str, name: str, kind: type, value: object) -> None:
    """Only a map may be nil, which means it is empty; anything else is the wrong type."""
    if kind is dict and value is None:
        return
    raise ProtocolError(
        "BAD_FRAME", f"{frame}: {name} is {type(value).__name__}, not {kind.__name__}"
    )


def check_nested(frame: str, name: str, value: Any, depth: int = 1) -> None:
    """Lists and maps hold plain values, keyed by strings, at most HEADER_DEPTH_MAX deep."""
    if depth > HEADER_DEPTH_MAX:
        raise ProtocolError("BAD_FRAME", f"{frame}: {name} is nested too deeply")
    for item in value.values() if type(value) is dict else value:
        if type(item) in (list, dict):
            check_nested(frame, name, item, depth + 1)
    if type(value) is dict and any(type(key) is not str for key in value):
        raise ProtocolError("BAD_FRAME", f"{frame}: {name} has a key that is not a string")
    if type(value) is list and depth == 1 and any(type(item) is not str for item in value):
        raise ProtocolError("BAD_FRAME", f"{frame}: {name} has an item that is not a string")


class Assembler:
    """Puts the parts before a frame back in front of its raw section."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._parts: dict[int, list[bytes]] = {}
        self._bytes = 0

    def add(self, part: Frame) -> None:
        """Keep one part. Raises ProtocolError past ``bytes_max`` in all."""
        self._bytes += len(part.raw)
        if self._bytes > self.bytes_max:
            raise ProtocolError("FRAME_TOO_LARGE", f"parts of over {self.bytes_max} bytes")
        self._parts.setdefault(part.correlation, []).append(part.raw)

    def complete(self, frame: Frame) -> Frame:
        """The frame with its parts, which are forgotten."""
        if self._parts:
            parts = self._parts.pop(frame.correlation, None)
            if parts:
                self._bytes -= sum(map(len, parts))
                frame.raw = b"".join((*parts, frame.raw))
        return frame


def encode_in_parts(frame: Frame, frame_bytes_max: int = FRAME_BYTES_MAX) -> list[bytes]:
    """The frame's bytes, behind as many Part frames as its raw section needs.

    A push that needs parts must carry a correlation id of its own.
    """
    fits = room(frame, frame_bytes_max)
    if len(frame.raw) <= fits:
        return [encode(frame)]
    assert frame.correlation, f"{type(frame).__name__} in parts needs a correlation id"
    raw, out, index = frame.raw, [], 0
    step = room(Part(index=2**32, of=frame.TYPE, correlation=frame.correlation), frame_bytes_max)
    while len(raw) - index * step > fits:
        piece = raw[index * step : (index + 1) * step]
        out.append(
            encode(Part(index=index, of=frame.TYPE, correlation=frame.correlation, raw=piece))
        )
        index += 1
    frame.raw = raw[index * step :]
    out.append(encode(frame))
    return out

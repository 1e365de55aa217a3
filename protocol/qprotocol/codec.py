"""Frames to bytes and back, incrementally, under limits.

    bytes -> Decoder.feed -> header.decode_header -> frames        (Assembler joins parts)
    frame -> header.encode_header -> encode -> bytes               (encode_in_parts cuts)

Rule 1. Lengths are checked before anything is read or allocated for them.
Rule 2. Only the header is decoded, and only to plain values of bounded size.
Rule 3. The decoder raises ProtocolError and nothing else, whatever the bytes.
Rule 4. Nobody assigns to a frame: one that was encoded may be encoded again, unchanged.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from struct import Struct

from qprotocol.errors import ProtocolError
from qprotocol.frames import Frame, Part, Publish
from qprotocol.header import decode_header, encode_header
from qprotocol.limits import (
    FRAME_BYTES_MAX,
    HEADER_BYTES_MAX,
    MESSAGES_PER_FRAME_MAX,
    PARTED_MAX,
)
from qprotocol.wire import SIZE

__all__ = ["Assembler", "Decoder", "decode_header", "encode", "encode_in_parts", "room"]

PREFIX = Struct("<IH")
"""Length of the rest of the frame, and within it the length of the header."""


def encode(frame: Frame) -> bytes:
    """The frame's bytes. Raises ValueError if its header is over the limits.

    The caller keeps ``raw`` within ``room``, or uses ``encode_in_parts``.
    """
    header, raw = encode_header(frame), frame.raw
    return PREFIX.pack(2 + len(header) + len(raw), len(header)) + header + raw


def room(frame: Frame, frame_bytes_max: int = FRAME_BYTES_MAX) -> int:
    """Bytes of raw section that one frame with this header takes at most."""
    return frame_bytes_max - 2 - len(encode_header(frame))


class Decoder:
    """Bytes in, frames out. Keeps at most one frame's bytes, and copies each byte at most twice."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.frame_bytes_max = frame_bytes_max
        """May be changed between two frames, even while ``feed`` is being read."""
        self._left = bytearray()
        self._needed = PREFIX.size
        """Bytes of a frame that ``_left`` must reach before looking at it again makes sense."""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that ``data`` completes, in order.

        Take them all before feeding again. Raises ProtocolError at the first bad one;
        the decoder is of no use after that.
        """
        if self._left:
            self._left += data
            if len(self._left) < self._needed:
                return
            data = bytes(self._left)
            self._left = bytearray()
        at, total, needed = 0, len(data), PREFIX.size
        while total - at >= PREFIX.size:
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
                needed = 4 + length
                break
            start = at + PREFIX.size
            raw = start + n_header
            at = end
            yield decode_header(data[start:raw], data[raw:end])
            needed = PREFIX.size
        if at < total:
            self._left += data[at:]
            self._needed = needed


class Assembler:
    """Puts the parts before a frame back in front of its raw section.

    Holds at most ``bytes_max`` bytes, for at most PARTED_MAX frames at once.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._bytes = 0
        self._parts: dict[int, tuple[int, bytearray]] = {}
        """For each correlation id: the parts that came, and their bytes."""

    def add(self, part: Part) -> None:
        """Keep one part.

        Raises ProtocolError past the limits, and for a part that is empty, out of
        order or for nobody.
        """
        self._bytes += len(part.raw)
        if self._bytes > self.bytes_max:
            raise ProtocolError("FRAME_TOO_LARGE", f"parts of over {self.bytes_max} bytes")
        index, held = self._parts.get(part.correlation, (0, bytearray()))
        if not part.correlation or not part.raw or part.index != index:
            raise ProtocolError(
                "BAD_FRAME",
                f"part {part.index} for {part.correlation} with {len(part.raw)} bytes, "
                f"where part {index} with at least one was due",
            )
        held += part.raw
        self._parts[part.correlation] = index + 1, held
        if len(self._parts) > PARTED_MAX:
            raise ProtocolError("FRAME_TOO_LARGE", f"parts of over {PARTED_MAX} frames at once")

    def complete(self, frame: Frame) -> Frame:
        """The frame with its parts, which are forgotten. The same frame if it has none."""
        if frame.correlation not in self._parts:
            return frame
        _, held = self._parts.pop(frame.correlation)
        self._bytes -= len(held)
        return replace(frame, raw=b"".join((held, frame.raw)))


def encode_in_parts(frame: Frame, frame_bytes_max: int = FRAME_BYTES_MAX) -> list[bytes]:
    """The frame's bytes, behind as many Part frames as its raw section needs.

    Of a Publish, each has bytes of MESSAGES_PER_FRAME_MAX messages at most.
    A push that needs parts must carry a correlation id of its own. Raises ValueError if
    its header is over the limits.
    """
    header, raw = encode_header(frame), frame.raw
    fits, starts = frame_bytes_max - 2 - len(header), starts_of(frame)
    if end_of_piece(starts, 0, fits) >= len(raw):
        return [PREFIX.pack(2 + len(header) + len(raw), len(header)) + header + raw]
    assert frame.correlation, f"{type(frame).__name__} in parts needs a correlation id"
    out, index, at = [], 0, 0
    part = Part(index=2**32, of=frame.TYPE, correlation=frame.correlation)
    step = room(part, frame_bytes_max)
    while end_of_piece(starts, at, fits) < len(raw):
        end = end_of_piece(starts, at, step)
        out.append(encode(replace(part, index=index, raw=raw[at:end])))
        index, at = index + 1, end
    out.append(encode(replace(frame, raw=raw[at:])))
    return out


def starts_of(frame: Frame) -> "array[int]":
    """Where the messages of a Publish begin if they are too many for one piece; else nothing."""
    starts, at = array("Q"), 0
    if type(frame) is Publish and frame.count > MESSAGES_PER_FRAME_MAX:
        while at + SIZE.size <= len(frame.raw):
            starts.append(at)
            at += SIZE.size + int(SIZE.unpack_from(frame.raw, at)[0])
    return starts


def end_of_piece(starts: "array[int]", at: int, bytes_max: int) -> int:
    """Where a piece from ``at`` on ends: before it has more bytes or messages than it may."""
    behind = bisect_right(starts, at) - 1 + MESSAGES_PER_FRAME_MAX
    return min(at + bytes_max, starts[behind]) if behind < len(starts) else at + bytes_max

"""Small values and long columns of numbers as one piece of bytes: what a snapshot is made of.

    u32 length of the head | head | column | column ...
    head: msgpack [values, [how many numbers each column has]]; a number has eight bytes

Columns are copied whole: ten million numbers in some hundredths of a second.
"""

import sys
from array import array
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Any

import msgpack

_LENGTH = Struct("<I")
_BYTES = 8


def column(numbers: Iterable[int]) -> "array[int]":
    """The numbers, each from 0 to 2^64 - 1, as a column."""
    return array("Q", numbers)


def pack_columns(values: Any, columns: "Sequence[array[int]]" = ()) -> bytes:
    """The values, which msgpack must know, and the columns. Copies once."""
    head = msgpack.packb([values, [len(each) for each in columns]], use_bin_type=True)
    return b"".join((_LENGTH.pack(len(head)), head, *map(_little, columns)))


def unpack_columns(block: bytes | memoryview) -> "tuple[Any, list[array[int]]]":
    """What ``pack_columns`` was given. Raises ValueError if the bytes are not of its making."""
    at = 4 + int.from_bytes(block[:4], "little")
    values, counts = msgpack.unpackb(block[4:at], strict_map_key=False)
    columns = []
    view = memoryview(block)
    for count in counts:
        found = array("Q")
        found.frombytes(view[at : at + count * _BYTES])
        columns.append(_little(found))
        at += count * _BYTES
    if at != len(block):
        raise ValueError(f"columns end at byte {at} of {len(block)}")
    return values, columns


def _little(numbers: "array[int]") -> "array[int]":
    if sys.byteorder == "big":  # pragma: no cover  # no such machine has run it
        numbers = numbers[:]
        numbers.byteswap()
    return numbers

"""A frame's header: one msgpack array ``[type, correlation, *fields]``, made and judged here.

Rule 1. msgpack's own limits come first, so that no header makes it allocate much.
Rule 2. What it lets through is judged by the fields' declared kinds: integers from 0 to
        INT_MAX, UTF-8 strings, bytes, booleans, lists of strings, maps of plain values.
Rule 3. A bad header is a ProtocolError that names the frame and the field; nothing else
        is ever raised, whatever the bytes.

Each frame has its own reader, written out by ``reader`` as the plain code one would type
by hand: a header costs 0.8 µs where a loop over the fields took 2.5. That is worth
forty unusual lines because every frame of every connection passes here.
"""

from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from typing import Any

import msgpack

from qprotocol.errors import ProtocolError
from qprotocol.frames import FRAMES, Error, Frame
from qprotocol.limits import (
    ERROR_TEXT_MAX,
    HEADER_BYTES_MAX,
    HEADER_DEPTH_MAX,
    HEADER_ITEMS_MAX,
    HEADER_STRING_MAX,
    INT_MAX,
)

# Shared by all threads: packing plain values never lets go of the interpreter.
_pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack

Reader = Callable[[list[Any], bytes], Frame]


def encode_header(frame: Frame) -> bytes:
    """The header's bytes.

    Raises ValueError for a header the peer would close the connection for: too long, or
    with a string, list or map over its limit. That an integer or a type is wrong is only
    noticed by the peer: checking each would cost as much as packing. An Error that is too
    long is cut instead.
    """
    header = _pack(frame.HEADER(frame))
    if len(header) > HEADER_STRING_MAX and type(frame) is Error:
        # It quotes what it refuses; raising here would let a peer choose where we fail.
        short = frame.message[:ERROR_TEXT_MAX] + " ..."
        return _pack(frame.HEADER(replace(frame, message=short, details={})))
    if frame.NESTED or len(header) > HEADER_STRING_MAX:
        if len(header) > HEADER_BYTES_MAX:
            raise ValueError(
                f"{type(frame).__name__}: a header of {len(header)} bytes, the limit is "
                f"{HEADER_BYTES_MAX}; shorten its texts"
            )
        try:
            decode_header(header)
        except ProtocolError as error:
            raise ValueError(f"the peer would not take this frame: {error.message}") from error
    return header


def decode_header(header: bytes, raw: bytes = b"") -> Frame:
    """The frame with that header and raw section. Raises ProtocolError."""
    try:
        items = msgpack.unpackb(header, **_LIMITS)
    except Exception as error:  # msgpack raises a dozen kinds; all of them mean this
        reason = str(error) or type(error).__name__
        raise ProtocolError("BAD_FRAME", f"the header is not valid msgpack: {reason}") from error
    if type(items) is not list or len(items) < 2:
        raise ProtocolError("BAD_FRAME", "the header is not an array of type and correlation")
    number = items[0]
    read = READERS.get(number) if type(number) is int else None
    if read is None:
        raise ProtocolError("BAD_FRAME", f"no frame has the type {str(number)[:40]}")
    return read(items, raw)


def decode_map(raw: bytes) -> dict[str, Any]:
    """A map of plain values under the limits of a header. Raises ValueError."""
    try:
        found = msgpack.unpackb(raw, **_LIMITS)
    except Exception as error:  # msgpack raises a dozen kinds; all of them mean this
        raise ValueError(
            f"no msgpack of at most {HEADER_ITEMS_MAX} items: {error!s:.80}"
        ) from error
    if type(found) is not dict or not plain(found):
        raise ValueError("no map of strings to plain values")
    return found


def encode_map(values: dict[str, Any]) -> bytes:
    """What ``decode_map`` reads, if it is within its limits."""
    return _pack(values)


def distinct(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """The pairs as a map. Raises ValueError for a key that comes twice.

    Readers differ in which one they keep, so one that is checked may not be the one used.
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a map has a key twice")
    return made


def no_extension(code: int, data: bytes) -> None:
    """Refuses the one extension that ``max_ext_len=0`` lets through: the empty one."""
    raise ValueError(f"extension type {code} of {len(data)} bytes: extensions are not used")


_LIMITS: dict[str, Any] = {
    "raw": False,
    "strict_map_key": True,
    "max_array_len": HEADER_ITEMS_MAX,
    "max_map_len": HEADER_ITEMS_MAX,
    "max_str_len": HEADER_STRING_MAX,
    "max_bin_len": HEADER_STRING_MAX,
    "max_ext_len": 0,
    "object_pairs_hook": distinct,
    "ext_hook": no_extension,
}
"""Rule 1."""


# What a field may hold. Each function says what is wrong with a value, or nothing.


def integer_fault(value: Any) -> str:
    if type(value) is not int:
        return f"is {type(value).__name__}, not an integer"
    return "" if 0 <= value <= INT_MAX else f"is {value}: from 0 to {INT_MAX}"


def list_fault(value: Any) -> str:
    if type(value) is not list:
        return f"is {type(value).__name__}, not a list"
    return "" if texts(value) else "has an item that is not a string"


def map_fault(value: Any) -> str:
    if type(value) is not dict:
        return f"is {type(value).__name__}, not a map"
    return (
        ""
        if plain(value)
        else (f"is not a map of strings to plain values nested at most {HEADER_DEPTH_MAX} deep")
    )


def kind_fault(kind: type) -> Callable[[Any], str]:
    return lambda value: (
        "" if type(value) is kind else f"is {type(value).__name__}, not {kind.__name__}"
    )


FAULTS: dict[type, Callable[[Any], str]] = {
    int: integer_fault,
    str: kind_fault(str),
    bytes: kind_fault(bytes),
    bool: kind_fault(bool),
    list: list_fault,
    dict: map_fault,
}

CONDITIONS: dict[type, str] = {
    int: "type({0}) is int and {0} >= 0",  # msgpack has no integer over INT_MAX
    str: "type({0}) is str",
    bytes: "type({0}) is bytes",
    bool: "type({0}) is bool",
    list: "type({0}) is list and texts({0})",
    dict: "type({0}) is dict and plain({0})",
}
"""The same as FAULTS, as the reader asks it: true if the value is fine."""

assert INT_MAX == 2**64 - 1


def texts(values: list[Any]) -> bool:
    """Whether all of them are strings."""
    return all(type(value) is str for value in values)


def plain(value: Any, depth: int = 1) -> bool:
    """Whether a map or list holds plain values, keyed by strings, HEADER_DEPTH_MAX deep at most.

    Integers have 64 bits, with a sign if need be; floats are finite.
    """
    if type(value) is dict and not all(type(key) is str for key in value):
        return False
    for item in value.values() if type(value) is dict else value:
        kind = type(item)
        if kind is dict or kind is list:
            if depth == HEADER_DEPTH_MAX or not plain(item, depth + 1):
                return False
        elif kind is float and not isfinite(item):
            return False
    return True


# Readers: from the decoded array to the frame.


def reader(cls: type[Frame]) -> Reader:
    """A function that turns a decoded header and a raw section into a ``cls``.

    For Credit it is, with ``new`` for ``object.__new__``::

        def read(items, raw):
            if len(items) != 4:
                items = fit(cls, items)
            _, correlation, subscription, credit = items
            if not (
                type(correlation) is int and correlation >= 0
                and type(subscription) is int and subscription >= 0
                and type(credit) is int and credit >= 0
            ):
                refuse(cls, items)
            made = new(cls)
            made.correlation = correlation
            made.subscription = subscription
            made.credit = credit
            made.raw = raw
            return made

    A map that is nil is the empty map.
    """
    names = ("correlation", *cls.FIELDS)
    kinds = dict(zip(names, (int, *cls.KINDS), strict=True))
    empty_maps = [f"    if {n} is None: {n} = {{}}" for n, kind in kinds.items() if kind is dict]
    source = "\n".join(
        (
            "def read(items, raw):",
            f"    if len(items) != {1 + len(names)}: items = fit(cls, items)",
            f"    _, {', '.join(names)} = items",
            *empty_maps,
            f"    if not ({' and '.join(CONDITIONS[k].format(n) for n, k in kinds.items())}):",
            "        refuse(cls, items)",
            "    made = new(cls)",
            *(f"    made.{name} = {name}" for name in (*names, "raw")),
            "    return made",
        )
    )
    scope: dict[str, Any] = {
        "cls": cls,
        "new": object.__new__,
        "fit": fit,
        "refuse": refuse,
        "texts": texts,
        "plain": plain,
    }
    exec(compile(source, f"<reader of {cls.__name__}>", "exec"), scope)  # noqa: S102
    made: Reader = scope["read"]
    return made


def fit(cls: type[Frame], items: list[Any]) -> list[Any]:
    """The items of ``cls``: those a newer peer added cut off, those an older one lacks added."""
    given = len(items) - 2
    if given < cls.REQUIRED:
        raise ProtocolError(
            "BAD_FRAME", f"{cls.__name__}: the field {cls.FIELDS[given]} is missing"
        )
    return items[: 2 + len(cls.FIELDS)] + list(cls.DEFAULTS[given:])


def refuse(cls: type[Frame], items: list[Any]) -> None:
    """Raises ProtocolError for the first item that is wrong."""
    names, kinds = ("correlation", *cls.FIELDS), (int, *cls.KINDS)
    values = [{} if v is None and k is dict else v for k, v in zip(kinds, items[1:], strict=True)]
    fault = next(
        f"{name} {fault}"
        for name, kind, value in zip(names, kinds, values, strict=True)
        if (fault := FAULTS[kind](value))
    )
    raise ProtocolError("BAD_FRAME", f"{cls.__name__}: {fault}")


READERS: dict[int, Reader] = {number: reader(cls) for number, cls in FRAMES.items()}

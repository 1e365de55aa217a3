"""Arguments and results as bytes, and back: a closed set of types, no code, no names.

    content 1  msgpack    None bool int float str bytes list dict, and tuple set frozenset
                          datetime date time timedelta Decimal UUID, in and as each other
    content 2  JSON       what JSON has, keyed by strings; for peers in other languages

A call's body is ``[args, kwargs]``, a result is one value.

Rule 1. What goes in comes out equal and of the same type, or is refused at the caller with a
        TypeError that names the argument. Subclasses are refused: an Enum, a numpy number or a
        lazy string would come out as something else. (bytearray and memoryview arrive as bytes;
        an aware datetime arrives with its offset, not its zone's name.)
Rule 2. Decoding raises DecodeError and nothing else, and runs no code of the sender's choice.
Rule 3. A tuple is an array that begins with a marker, so that any nesting, also in keys, is one
        pass of the C packer. Bytes without a marker are decoded without looking for one.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from struct import Struct
from typing import Any
from uuid import UUID

import msgpack

from qclient.exceptions import QBrokerError

MSGPACK = 1
JSON = 2
CONTENTS = {"msgpack": MSGPACK, "json": JSON}
"""Names of serializers, as options and settings write them."""

SHOWN_MAX = 40
"""Characters of a dict key shown in the path of an argument."""

# Extension types. Numbers are in messages on disk: never reused.
EXT_MARKER, EXT_DATETIME, EXT_DATE, EXT_TIME, EXT_TIMEDELTA, EXT_DECIMAL, EXT_UUID, EXT_INT = range(
    1, 9
)
MARKED = b"\xd4\x01"
"""How a marker begins: a one-byte extension of type 1."""
TUPLE, SET, FROZENSET = (msgpack.ExtType(EXT_MARKER, bytes((n,))) for n in range(3))
TIMEDELTA = Struct("<iII")
"""Days, seconds, microseconds, as timedelta normalises them."""


class DecodeError(QBrokerError):
    """The bytes are not what a client of this version sends."""


class Marker:
    """What a marker decodes to: the first item of an array that was not a list."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[list[Any]], Any]) -> None:
        self.make = make


MARKERS = {b"\0": Marker(tuple), b"\1": Marker(set), b"\2": Marker(frozenset)}


def long_bytes(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


def pack_timedelta(value: timedelta) -> bytes:
    return TIMEDELTA.pack(value.days, value.seconds, value.microseconds)


def unpack_timedelta(raw: bytes) -> timedelta:
    return timedelta(*TIMEDELTA.unpack(raw))


PACKERS: dict[type, Callable[[Any], Any]] = {
    tuple: lambda value: [TUPLE, *value],
    set: lambda value: [SET, *value],
    frozenset: lambda value: [FROZENSET, *value],
    datetime: lambda value: msgpack.ExtType(EXT_DATETIME, value.isoformat().encode()),
    date: lambda value: msgpack.ExtType(EXT_DATE, value.isoformat().encode()),
    time: lambda value: msgpack.ExtType(EXT_TIME, value.isoformat().encode()),
    timedelta: lambda value: msgpack.ExtType(EXT_TIMEDELTA, pack_timedelta(value)),
    Decimal: lambda value: msgpack.ExtType(EXT_DECIMAL, str(value).encode()),
    UUID: lambda value: msgpack.ExtType(EXT_UUID, value.bytes),
    int: lambda value: msgpack.ExtType(EXT_INT, long_bytes(value)),  # beyond 64 bits
}
"""What msgpack cannot say by itself, by exact type."""

UNPACKERS: dict[int, Callable[[bytes], Any]] = {
    EXT_MARKER: MARKERS.__getitem__,
    EXT_DATETIME: lambda raw: datetime.fromisoformat(raw.decode()),
    EXT_DATE: lambda raw: date.fromisoformat(raw.decode()),
    EXT_TIME: lambda raw: time.fromisoformat(raw.decode()),
    EXT_TIMEDELTA: unpack_timedelta,
    EXT_DECIMAL: lambda raw: Decimal(raw.decode()),
    EXT_UUID: lambda raw: UUID(bytes=raw),
    EXT_INT: lambda raw: int.from_bytes(raw, "little", signed=True),
}


def pack_special(value: Any) -> Any:
    """What msgpack calls for what it does not know."""
    special = PACKERS.get(type(value))
    if special is None:
        raise TypeError(f"an object of class {type(value).__qualname__}")
    return special(value)


def unpack_special(code: int, raw: bytes) -> Any:
    """What msgpack calls for extensions."""
    return UNPACKERS[code](raw)


def unmark(items: list[Any]) -> Any:
    """What msgpack calls for arrays: those with a marker become what they were."""
    if items and type(items[0]) is Marker:
        return items[0].make(items[1:])
    return items


# Shared by all threads: without a hook in Python it never lets go of the interpreter.
pack_plain: Callable[[Any], bytes] = msgpack.Packer(strict_types=True).pack
"""Bytes of a value of msgpack's own types. TypeError, ValueError or OverflowError for others."""


def pack(value: Any) -> bytes:
    """Bytes of a value, content 1. Raises TypeError or ValueError; ``complaint`` says where."""
    try:
        return pack_plain(value)
    except (TypeError, OverflowError):
        packer = msgpack.Packer(strict_types=True, default=pack_special, buf_size=4096)
        return bytes(packer.pack(value))


def unpack(raw: bytes) -> Any:
    """The value in bytes of content 1."""
    return msgpack.unpackb(
        raw,
        strict_map_key=False,
        ext_hook=unpack_special,
        list_hook=unmark if MARKED in raw else None,
    )


def pack_json(value: Any) -> bytes:
    """Bytes of a value, content 2."""
    place = unsendable(value, JSON)
    if place is not None:  # json would make strings of keys and lists of tuples
        raise TypeError(place[1])
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


ENCODERS: dict[int, Callable[[Any], bytes]] = {MSGPACK: pack, JSON: pack_json}
DECODERS: dict[int, Callable[[bytes], Any]] = {MSGPACK: unpack, JSON: json.loads}


def encode_call(
    task: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    content: int = MSGPACK,
    names: Sequence[str] = (),
    *,
    shape: Sequence[Any] | None = None,
) -> bytes:
    """The body of a call. ``names`` are the task's parameters, for messages.

    ``shape`` says what becomes of what it is given by those before it; see canvas/inputs.py.

    Raises TypeError or ValueError naming the argument that cannot be sent.
    """
    try:
        return ENCODERS[content]([[*args], {**kwargs}, *(() if shape is None else ([*shape],))])
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        problem = call_complaint(task, args, kwargs, content, names)
        raise type_of(error)(
            problem or f"the arguments of {task} cannot be sent: {error}"
        ) from None


def encode_result(task: str, value: Any, content: int = MSGPACK) -> bytes:
    """The bytes of what a task returned. Raises TypeError or ValueError saying what is wrong."""
    try:
        return ENCODERS[content](value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        place = unsendable(value, content)
        told = f"the result{place[0]} of {task}: {place[1]}" if place else None
        raise type_of(error)(told or f"the result of {task} cannot be sent: {error}") from None


def decode(content: int, raw: bytes) -> Any:
    """The value in ``raw``. Raises DecodeError.

    Nesting is bounded by the decoder's own stack, allocation by a multiple of len(raw).
    """
    decoder = DECODERS.get(content)
    if decoder is None:
        raise DecodeError(f"content type {content} is not known here: upgrade this side")
    try:
        return decoder(raw)
    except Exception as error:  # a dozen kinds for hostile bytes; all of them mean this
        raise DecodeError(f"{len(raw)} bytes that cannot be decoded: {error!r}") from error


def decode_call(content: int, raw: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments of a body. Raises DecodeError."""
    args, kwargs, _ = decode_shaped(content, raw)
    return args, kwargs


def decode_shaped(
    content: int, raw: bytes
) -> tuple[tuple[Any, ...], dict[str, Any], list[Any] | None]:
    """Like ``decode_call``, and what becomes of inputs; None if the body does not say."""
    call = decode(content, raw)
    if type(call) is list and len(call) in (2, 3):
        args, kwargs, *more = call
        if type(args) is list and type(kwargs) is dict and all(type(k) is str for k in kwargs):
            shape = more[0] if more else None
            if shape is None or type(shape) is list:
                return tuple(args), kwargs, shape
    raise DecodeError("the body is not [arguments, keyword arguments]")


# What to say when it cannot be sent. Slow, and run only then.

PLAIN = {type(None), bool, int, float, str}
SCALARS = {
    MSGPACK: PLAIN | {bytes, bytearray, memoryview} | (PACKERS.keys() - {tuple, set, frozenset}),
    JSON: PLAIN,
}
CONTAINERS: dict[int, set[type]] = {
    MSGPACK: {list, dict, tuple, set, frozenset},
    JSON: {list, dict},
}
DEPTH_MAX = 500
"""Nesting that msgpack packs is 511 deep."""


def type_of(error: Exception) -> type[Exception]:
    """Values that are too large or too deep are ValueErrors, whatever the encoder calls it."""
    return TypeError if isinstance(error, TypeError) else ValueError


def call_complaint(
    task: str, args: Sequence[Any], kwargs: Mapping[str, Any], content: int, names: Sequence[str]
) -> str | None:
    """What is wrong with which argument; None if this file sees nothing."""
    for index, value in enumerate(args):
        place = unsendable(value, content)
        if place:
            name = f'"{names[index]}"' if index < len(names) else str(index + 1)
            return f"argument {name}{place[0]} of {task}: {place[1]}"
    for key, value in kwargs.items():
        place = unsendable(value, content)
        if place:
            return f'argument "{key}"{place[0]} of {task}: {place[1]}'
    return None


def unsendable(value: Any, content: int, path: str = "", depth: int = 0) -> tuple[str, str] | None:
    """Where in ``value`` the first thing is that cannot be sent, and why; None if all can."""
    kind = type(value)
    if depth > DEPTH_MAX:
        return path[:SHOWN_MAX] + "...", f"nested more than {DEPTH_MAX} deep"
    if kind in CONTAINERS[content]:
        for step, item in steps(value):
            if step is None:
                if content == JSON and type(item) is not str:
                    return path, f"JSON's keys are strings, this one is {short(item)}"
                step = f" key {short(item)}"  # noqa: PLW2901  # how the key itself is named
            found = unsendable(item, content, path + step, depth + 1)
            if found:
                return found
        return None
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return path, "a string with lone surrogates cannot be sent: send os.fsencode() of it"
        return None
    if kind is float and content == JSON and not isfinite(value):
        return path, f"JSON has no {value}"
    if kind in SCALARS[content]:
        return None
    return path, refusal_of(kind, content)


def steps(value: Any) -> Iterator[tuple[str | None, Any]]:
    """A container's items with the way to each; keys of a dict have None."""
    if type(value) is dict:
        for key, item in value.items():
            yield None, key
            yield f"[{short(key)}]", item
    else:
        ordered = type(value) in (list, tuple)
        for index, item in enumerate(value):
            yield (f"[{index}]" if ordered else "{...}"), item


def refusal_of(kind: type, content: int) -> str:
    if content == JSON and kind in SCALARS[MSGPACK] | CONTAINERS[MSGPACK]:
        return f"JSON has no {kind.__name__}: send it as text or use the msgpack serializer"
    bases = [base.__name__ for base in kind.__mro__[1:] if base in SCALARS[content]]
    if bases:
        return f"an object of class {kind.__qualname__} cannot be sent: send {bases[0]}() of it"
    return f"an object of class {kind.__qualname__} cannot be sent: pass its id"


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."

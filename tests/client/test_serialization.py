"""What goes in comes out, of the same type; what cannot is refused by the argument's name."""

from __future__ import annotations

import contextlib
import enum
import math
import string
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qclient.serialization import (
    JSON,
    MSGPACK,
    PACKERS,
    UNPACKERS,
    DecodeError,
    decode,
    decode_call,
    encode_call,
    encode_result,
)

ZONES = st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))
HASHABLE_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.none() | ZONES)
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
HASHABLE = st.recursive(
    HASHABLE_SCALARS,
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
    ),
    max_leaves=8,
)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def shape(value):
    """A value with the type of each of its parts, for comparing."""
    kind = type(value)
    if kind is dict:
        return kind, {shape(k): shape(v) for k, v in value.items()}
    if kind in (set, frozenset):
        return kind, frozenset(map(shape, value))
    if kind is tuple:
        return kind, tuple(map(shape, value))
    if kind is list:
        return kind, [shape(item) for item in value]
    return kind, value


@given(VALUES)
def test_every_value_comes_back_with_the_types_of_all_its_parts(value) -> None:
    assert shape(decode(MSGPACK, encode_result("t", value))) == shape(value)


@given(st.lists(VALUES, max_size=3), st.dictionaries(st.text(), VALUES, max_size=3))
def test_arguments_come_back_as_a_tuple_and_a_dict(args: list, kwargs: dict) -> None:
    decoded = decode_call(MSGPACK, encode_call("t", tuple(args), kwargs))
    assert shape(decoded) == shape((tuple(args), kwargs))


@given(PLAIN)
def test_json_brings_back_what_json_has(value) -> None:
    assert shape(decode(JSON, encode_result("t", value, JSON))) == shape(value)


@given(st.binary(max_size=200), st.sampled_from([MSGPACK, JSON, 0, 9]))
def test_any_bytes_are_a_value_or_a_decode_error(raw: bytes, content: int) -> None:
    for read in (decode, decode_call):
        with contextlib.suppress(DecodeError):
            read(content, raw)


def test_bytes_that_look_like_a_marker_are_just_bytes() -> None:
    value = [b"\xd4\x01\x00", (1,), "\x00"]
    assert decode(MSGPACK, encode_result("t", value)) == value


def test_special_floats_survive_msgpack() -> None:
    back = decode(MSGPACK, encode_result("t", [math.inf, -math.inf, math.nan]))
    assert back[:2] == [math.inf, -math.inf]
    assert math.isnan(back[2])


def test_every_packed_type_has_a_way_back() -> None:
    """Each row of PACKERS, by an example of its type: a new type needs a line here."""
    examples = {
        tuple: (1, 2),
        set: {1},
        frozenset: frozenset({1}),
        datetime: datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        date: date(2026, 1, 2),
        time: time(3, 4, 5),
        timedelta: timedelta(-1, 2, 3),
        Decimal: Decimal("-1.50"),
        UUID: UUID(int=7),
        int: -(2**200),
    }
    assert examples.keys() == PACKERS.keys()
    assert len(UNPACKERS) == 8
    for value in examples.values():
        assert shape(decode(MSGPACK, encode_result("t", value))) == shape(value)


class User:
    pass


class Colour(enum.IntEnum):
    RED = 1


REFUSED = [
    ((User(),), {}, MSGPACK, 'argument "user" of shop.send: an object of class User '),
    ((User(),), {}, MSGPACK, "cannot be sent: pass its id"),
    ((1, 2, User()), {}, MSGPACK, "argument 3 of shop.send"),
    ((), {"to": [1, {"x": (User(),)}]}, MSGPACK, "argument \"to\"[1]['x'][0] of shop.send"),
    (({User(): 1},), {}, MSGPACK, 'argument "user" key <'),
    ((Colour.RED,), {}, MSGPACK, "an object of class Colour cannot be sent: send int() of it"),
    (("\ud800",), {}, MSGPACK, "a string with lone surrogates cannot be sent"),
    (((1, 2),), {}, JSON, "JSON has no tuple: send it as text or use the msgpack serializer"),
    (([b"x"],), {}, JSON, 'argument "user"[0] of shop.send: JSON has no bytes'),
    (({1: 2},), {}, JSON, "JSON's keys are strings, this one is 1"),
    ((math.nan,), {}, JSON, "JSON has no nan"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "kwargs", "content", "told"), REFUSED)
def test_what_cannot_be_sent_is_named(args, kwargs, content: int, told: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        encode_call("shop.send", args, kwargs, content, ("user",))
    assert told in str(caught.value)


def test_a_result_that_cannot_be_sent_says_where() -> None:
    with pytest.raises(TypeError, match=r"the result\[0\] of t: an object of class User"):
        encode_result("t", [User()])


def test_what_contains_itself_is_too_deep() -> None:
    endless: list = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested more than 500 deep"):
        encode_call("t", (endless,), {})


def test_the_packer_works_after_a_refusal() -> None:
    """The shared packer keeps nothing of what it could not pack."""
    whole = encode_call("t", (1,), {})
    with pytest.raises(TypeError):
        encode_call("t", ("x" * 1000, User()), {})
    assert encode_call("t", (1,), {}) == whole


def test_a_body_that_is_no_call_is_refused() -> None:
    for value in (1, [], [[1]], [{}, {}], [[], []], [[], {1: 2}], [1, 2, 3]):
        with pytest.raises(DecodeError, match="not .arguments, keyword arguments."):
            decode_call(MSGPACK, encode_result("t", value))


def test_a_nesting_bomb_is_refused() -> None:
    with pytest.raises(DecodeError):
        decode(MSGPACK, b"\x91" * 100_000 + b"\xc0")


def test_ordinary_text_is_a_plain_msgpack_string() -> None:
    """Other languages read what needs no extension."""
    assert encode_call("t", (string.ascii_letters[:2],), {"k": 1}) == b"\x92\x91\xa2ab\x81\xa1k\x01"

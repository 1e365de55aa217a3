"""Unique and idempotency keys: one form for each, there and back, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qprotocol.uniquekeys import (
    CONFLICTS,
    HOLD_MS_MAX,
    SCOPES,
    UNTILS,
    Existing,
    IdempotencyKey,
    UniqueKey,
    pack_existing,
    unpack_existing,
)

KEY = st.text(min_size=1, max_size=60)
GOLDEN = {
    "02 02 01 0000000000000000 61": UniqueKey("a"),
    "01 01 02 0000000000000000 c3bc": UniqueKey("ü", "queue", "started", "reject"),
    "03 03 04 e803000000000000 61": UniqueKey("a", "global", "time", "redelay", 1_000),
    "0000000000000000 61": IdempotencyKey("a"),
    "e803000000000000 61": IdempotencyKey("a", 1_000),
}


@pytest.mark.parametrize("digits", GOLDEN)
def test_keys_that_were_released_read_for_ever(digits) -> None:
    raw, key = bytes.fromhex(digits), GOLDEN[digits]
    assert type(key).unpack(raw) == key
    assert key.pack() == raw


@given(KEY, *map(st.sampled_from, (list(SCOPES), list(UNTILS), list(CONFLICTS))))
def test_keys_come_back_as_they_were(text, scope, until, conflict) -> None:
    key = UniqueKey(text, scope, until, conflict, 5 if until == "time" else 0)
    assert UniqueKey.unpack(key.pack()) == key


@given(st.binary(max_size=16))
def test_the_same_key_has_one_form(raw) -> None:
    for kind in (UniqueKey, IdempotencyKey):
        try:
            key = kind.unpack(raw)
        except ValueError:
            continue
        assert key.pack() == raw


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (UniqueKey(""), "unique_key is empty"),
        (UniqueKey("x" * 256), "unique_key has 256 bytes: at most 255"),
        (UniqueKey("k", "lane"), "scope is 'lane': queue, task, global"),
        (UniqueKey("k", until="over"), "until is 'over': started, finished, time"),
        (UniqueKey("k", conflict="wait"), "conflict is 'wait': return, reject"),
        (UniqueKey("k", until="time"), "held until 'time' and for 0 ms"),
        (UniqueKey("k", for_ms=5), "held until 'finished' and for 5 ms"),
        (UniqueKey("k", until="time", for_ms=HOLD_MS_MAX + 1), "is 1 to"),
        (IdempotencyKey(""), "idempotency_key is empty"),
        (IdempotencyKey("k", -1), "a window of -1 ms"),
        (IdempotencyKey("\udc80"), "cannot be written as UTF-8"),
    ],
)
def test_keys_out_of_bounds_are_named(key, words) -> None:
    with pytest.raises(ValueError, match=words):
        key.pack()


@pytest.mark.parametrize(
    ("kind", "digits", "words"),
    [
        (UniqueKey, "02 02 01 0000000000000000", "11 bytes: no key"),
        (UniqueKey, "09 02 01 0000000000000000 61", "scope is 9: 1 queue, 2 task, 3 global"),
        (UniqueKey, "02 09 01 0000000000000000 61", "until is 9: 1 started, 2 finished, 3 time"),
        (UniqueKey, "02 02 01 0000000000000000" + "61" * 256, "unique_key has 256 bytes"),
        (UniqueKey, "02 03 01 0000000000000000 61", "held until 'time' and for 0 ms"),
        (IdempotencyKey, "0000000000000000", "8 bytes: no key"),
        (IdempotencyKey, "0000000000000080 61", "a window of"),
        (IdempotencyKey, "0000000000000000" + "61" * 256, "idempotency_key has 256 bytes"),
    ],
)
def test_bytes_that_are_no_key_are_refused(kind, digits, words) -> None:
    with pytest.raises(ValueError, match=words):
        kind.unpack(bytes.fromhex(digits))


def test_rows_of_existing_messages_come_back() -> None:
    minted = bytes.fromhex("018bcfe5688070008000000000000001")
    raw = pack_existing([(0, 5 << 20, False, b"a"), (7, 0, True, minted), (9, 1, False, b"")])
    assert list(unpack_existing(raw)) == [
        Existing(0, "a", 5 << 20),
        Existing(7, "018bcfe5-6880-7000-8000-000000000001"),
        Existing(9, "", 1),
    ]


@pytest.mark.parametrize(
    ("digits", "words"),
    [
        ("00", "1 bytes are left over"),
        ("00000000 0000000000000000 00 05 61", "a row of 5 bytes where 1 are left"),
        ("00000000 0000000000000000 02 01 61", "a row of 1 bytes"),
        ("00000000 0000000000000000 01 01 61", "a minted id has 16 bytes"),
    ],
)
def test_rows_that_are_malformed_are_refused(digits, words) -> None:
    with pytest.raises(ValueError, match=words):
        list(unpack_existing(bytes.fromhex(digits)))

"""Lane keys: one form for each, there and back, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qprotocol.lanekeys import KEY_OPTIONS, NO_KEYS, LaneKeys

KEY = st.text(max_size=30) | st.just("é" * 127)
GOLDEN = {
    "": NO_KEYS,
    "0101 61": LaneKeys("a"),
    "0202 c3bc": LaneKeys(ordering="ü"),
    "0301 61": LaneKeys(fair="a"),
    "0402 0002": LaneKeys(weight=512),
    "0101 61 0201 62 0301 63 0402 ffff": LaneKeys("a", "b", "c", 65_535),
    "01ff" + "78" * 255: LaneKeys("x" * 255),
}


@pytest.mark.parametrize("digits", GOLDEN)
def test_keys_that_were_released_read_for_ever(digits) -> None:
    raw = bytes.fromhex(digits)
    assert LaneKeys.unpack(raw) == GOLDEN[digits]
    assert GOLDEN[digits].pack() == raw


@given(st.builds(LaneKeys, KEY, KEY, KEY, st.integers(1, 0xFFFF)))
def test_keys_come_back_as_they_were(keys) -> None:
    assert LaneKeys.unpack(keys.pack()) == keys


@given(st.binary(max_size=12))
def test_the_same_keys_have_one_form(raw) -> None:
    """Whatever can be read is what would have been written: else one lane had two names."""
    try:
        keys = LaneKeys.unpack(raw)
    except ValueError:
        return
    assert keys.pack() == raw


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (LaneKeys(weight=0), "weight is 0: a whole number from 1 to 65535"),
        (LaneKeys(weight=65_536), "weight is 65536: a whole number"),
        (LaneKeys(weight=True), "weight is True: a whole number"),
        (LaneKeys("x" * 256), "limit_key has 256 bytes: at most 255"),
        (LaneKeys(ordering="é" * 128), "ordering_key has 256 bytes: at most 255"),
        (LaneKeys(fair="\udc80"), "fair_key .* cannot be written as UTF-8"),
    ],
)
def test_keys_out_of_bounds_are_named(keys, words) -> None:
    with pytest.raises(ValueError, match=words):
        keys.pack()


@pytest.mark.parametrize(
    ("digits", "words"),
    [
        ("01", "end inside the field with tag 1"),
        ("0102 61", "end inside the field with tag 1"),
        ("0201 61 0101 61", "tag 1 behind 2: 1 to 4, ascending"),
        ("0101 61 0101 61", "tag 1 behind 1"),
        ("0001 61", "tag 0 behind 0"),
        ("0501 61", "tag 5 behind 0"),
        ("0100", "tag 1 is empty"),
        ("0101 ff", "limit_key is no UTF-8"),
        ("0301 ff", "fair_key is no UTF-8"),
        ("0402 0100", "a weight of 1 in 2 bytes"),
        ("0402 0000", "a weight of 0 in 2 bytes"),
        ("0401 05", "a weight of 0 in 1 bytes: from 2, in 2"),
    ],
)
def test_bytes_that_are_no_keys_are_refused_with_what_is_wrong(digits, words) -> None:
    with pytest.raises(ValueError, match=words):
        LaneKeys.unpack(bytes.fromhex(digits))


def test_every_key_has_an_option() -> None:
    assert len(KEY_OPTIONS) == len(NO_KEYS)

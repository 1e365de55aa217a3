"""The preview in a message's headers: found where clients put it, and nowhere else."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qprotocol.preview import ENTRY, preview_of


@given(st.text(max_size=400), st.dictionaries(st.text(max_size=9), st.booleans(), max_size=5))
def test_a_map_that_begins_with_it_gives_it_back(text: str, more: dict[str, bool]) -> None:
    headers = msgpack.packb({ENTRY: text} | {k: v for k, v in more.items() if k != ENTRY})
    assert preview_of(headers, 65_535) == text


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 16_000])
def test_texts_of_every_form_are_cut(size: int) -> None:
    headers = msgpack.packb({ENTRY: "x" * size})
    assert preview_of(headers, 16_384) == "x" * size
    assert preview_of(headers, 20) == "x" * min(size, 20)


def test_a_cut_leaves_no_half_characters() -> None:
    headers = msgpack.packb({ENTRY: "aé"})
    assert [preview_of(headers, n) for n in range(4)] == ["", "a", "a", "aé"]


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        msgpack.packb({}),
        msgpack.packb({"user": 1}),
        msgpack.packb({"user": 1, ENTRY: "x"}),
        msgpack.packb({ENTRY: 7}),
        msgpack.packb({ENTRY: None}),
        b"\x81\xa7preview",
    ],
)
def test_what_is_no_preview_is_none(headers: bytes) -> None:
    assert preview_of(headers, 100) == ""


@given(st.binary(max_size=40), st.integers(0, 100))
def test_it_never_fails(rest: bytes, bytes_max: int) -> None:
    found = preview_of(b"\x81\xa7preview" + rest, bytes_max)
    assert len(found.encode()) <= bytes_max

"""Records found by what stands in them: the right ones, checked, and whatever lies beside them."""

from __future__ import annotations

import pytest

from qbroker.log.errors import CorruptError, UnreadableError
from qbroker.log.format import (
    BATCH_HEADER_BYTES,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SLOT_BITS,
)
from qbroker.log.log import LogSettings

FIRST = "00000000000000000001.qlog"
NEEDLE = b"seventeen letters"
BODY = b"b" * 100


def held(story, batches: range, needle: bytes = NEEDLE, key: int = 0) -> list[tuple[int, int]]:
    """Batch and slot of each record found."""
    found = [record.position for record in story.log.holding(batches, needle, key)]
    return [(position >> SLOT_BITS, position & 0xFFFFF) for position in found]


@pytest.fixture
def many(new_story):
    """Ten batches of five records; the needle is in some."""
    story = new_story(settings=LogSettings(segment_bytes=1 << 20))
    for number in range(1, 11):
        bodies = [BODY + bytes([slot]) for slot in range(5)]
        if number in (3, 4, 7):
            bodies[number % 5] = BODY + NEEDLE + BODY + NEEDLE
            bodies[4] = NEEDLE
        story.put(*bodies)
    return story


def test_all_records_with_the_needle_and_no_others_are_found(many) -> None:
    """In order; each once, however often the needle is in it."""
    assert held(many, range(1, 11)) == [(3, 3), (3, 4), (4, 4), (7, 2), (7, 4)]
    assert held(many, range(4, 7)) == [(4, 4)]
    assert held(many, range(5, 7)) == []
    assert held(many, range(10, 999)) == []
    assert held(many, range(1, 11), bytes([3])) != []


def test_no_other_batches_are_looked_at(new_story) -> None:
    """Those asked for begin and end somewhere between two entries of the index."""
    story = new_story(settings=LogSettings(segment_bytes=1 << 20))
    for _ in range(100):
        story.put(BODY * 10 + NEEDLE)
    for first, stop in ((1, 2), (3, 5), (3, 40), (16, 33), (70, 101)):
        assert held(story, range(first, stop)) == [(each, 0) for each in range(first, stop)]


def test_what_stands_in_no_record_is_not_found(new_story) -> None:
    """A needle in a header, across two records, or in the zeros behind them."""
    story = new_story(settings=LogSettings(segment_bytes=1 << 20))
    story.put(b"ab", b"cd", b"e")
    for position in (1 << 20, 1 << 20 | 1):
        assert held(story, range(1, 2), position.to_bytes(8, "little")) == []
    content = bytes(story.file())
    at = content.index(b"ab", SEGMENT_HEADER_BYTES)
    assert held(story, range(1, 2), content[at + 1 : at + 2 + RECORD_HEADER_BYTES + 1]) == []
    assert held(story, range(1, 2), bytes(30)) == []
    assert held(story, range(1, 2), b"cd") == [(1, 1)]


@pytest.mark.parametrize("field", ["checksum", "length", "length beyond all", "position", "body"])
def test_a_record_that_went_bad_hides_no_other(many, field) -> None:
    """If it is one with the needle, it is left out: nothing is given that does not verify."""
    content = many.file()
    at = content.index(NEEDLE, SEGMENT_HEADER_BYTES) - len(BODY) - RECORD_HEADER_BYTES
    assert RECORD_HEADER.unpack_from(content, at)[2] == 3 << SLOT_BITS | 3
    where = {"checksum": 0, "length": 4, "length beyond all": 7, "position": 8}.get(field, 30)
    content[at + where] ^= 0x41
    assert held(many, range(1, 11)) == [(3, 4), (4, 4), (7, 2), (7, 4)]


def test_a_neighbour_whose_length_reaches_to_the_end_is_passed_over(new_story) -> None:
    """The walk over headers ends outside of the batch: its records are looked for one by one."""
    story = new_story(settings=LogSettings(segment_bytes=1 << 20))
    story.put(BODY * 3, NEEDLE)
    content = story.file()
    first = SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES
    end = story.log._manifest.segments[0].end
    length = end - 16 - first - RECORD_HEADER_BYTES - 5
    content[first + 4 : first + 8] = length.to_bytes(4, "little")
    assert held(story, range(1, 2)) == [(1, 1)]


def test_a_batch_that_cannot_be_read_is_named_after_those_before_it(many) -> None:
    """Who asks may go on behind it."""
    end = many.log._manifest.segments[0].end
    length = (end - SEGMENT_HEADER_BYTES) // 10
    at = SEGMENT_HEADER_BYTES + 3 * length
    content = many.file()
    many.disk.files[FIRST].dead = {at // 512}
    found = []
    with pytest.raises(UnreadableError) as unread:
        found += [(r.position >> SLOT_BITS) for r in many.log.holding(range(1, 11), NEEDLE, 0)]
    assert unread.value.first == 4
    many.disk.files[FIRST].dead = set()
    content[at + 9] ^= 1
    with pytest.raises(CorruptError, match="batch header checksum") as corrupt:
        held(many, range(1, 11))
    assert (corrupt.value.first, type(corrupt.value)) == (4, CorruptError)

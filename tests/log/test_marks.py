"""Large batches have marks: a look-up reads the records that may hold its key, and no others."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbroker.log.errors import UnreadableError
from qbroker.log.format import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SLOT_BITS
from qbroker.log.log import Log, LogSettings
from qbroker.log.marks import SPACING_BYTES
from simdisk import SimDisk

FIRST = "00000000000000000001.qlog"
SETTINGS = LogSettings(segment_bytes=1 << 20, batch_bytes_max=512 << 10)
NEEDLE = b"the id looked for"
FAR = 1 << 16

Body = tuple[int, tuple[int, int], bool]
"""Bytes of a record's body, its keys, and whether the needle is in it."""


def put(log: Log, bodies: list[Body]) -> list[int]:
    """One batch; the positions of its records."""
    batch = log.begin()
    filled = [(b"b" * size + NEEDLE * holds + b"b" * 9, keys) for size, keys, holds in bodies]
    positions = [batch.add(1, body, keys=keys) for body, keys in filled]
    log.commit(batch, sync=True, wall_ms=7, epoch=3)
    return positions


def found(log: Log, batches: range, key: int) -> list[int]:
    held = list(log.holding(batches, NEEDLE, key))
    assert all(each.type == 1 and NEEDLE in each.body for each in held)
    return [each.position for each in held]


def looked_up(log: Log, key: int) -> list[int]:
    """As a look-up goes: where the key may be, and what is there."""
    return [p for batches in log.candidates(key) for p in found(log, batches, key)]


def marks(story) -> list[int]:
    """Where in the first segment something is marked."""
    return list(story.log._manifest.segments[0].index.marks.offsets)


@pytest.fixture
def large(new_story):
    """A batch of ten records of 20 KB: the keys of record n are 100 n to 100 n + 99."""
    story = new_story(settings=SETTINGS)
    put(story.log, [(20_000, (100 * n, 100 * n + 99), True) for n in range(1, 11)])
    return story


def leave_readable(story, places: range) -> None:
    """The disk gives only the sectors that these bytes lie in."""
    inode = story.disk.files[FIRST]
    inode.dead = set(range(len(inode.cached) // 512 + 1))
    inode.dead -= set(range(places.start // 512, (places.stop - 1) // 512 + 1))


def record(n: int) -> range:
    """Where record n of the large batch is: all are of one size."""
    length = RECORD_HEADER_BYTES + 20_000 + len(NEEDLE) + 9
    start = SEGMENT_HEADER_BYTES + 72 + (n - 1) * length
    return range(start, start + length)


def test_one_record_is_read_and_nothing_else(large) -> None:
    """Not even the header of its batch: one read of what the marks say."""
    for n in (1, 2, 7, 10):
        leave_readable(large, record(n))
        assert looked_up(large.log, 100 * n + 50) == [1 << SLOT_BITS | n - 1]


def test_neighbours_are_one_read(new_story) -> None:
    """Records 3 to 5 may hold the key, and so may 8: two reads, with nothing between."""
    story = new_story(settings=SETTINGS)
    put(story.log, [(20_000, (5, 9) if n in (3, 4, 5, 8) else (1, 4), True) for n in range(1, 11)])
    assert looked_up(story.log, 2) != []  # the file is open now
    before = story.disk.calls
    assert looked_up(story.log, 7) == [1 << SLOT_BITS | n - 1 for n in (3, 4, 5, 8)]
    assert story.disk.calls - before == 2


def test_small_batches_and_those_without_keys_have_no_marks(new_story) -> None:
    """Nor one of a single record, however large: there is nothing to choose from."""
    story = new_story(settings=SETTINGS)
    put(story.log, [(9_000, (0, 0), False)] * 5)
    put(story.log, [(90_000, (5, 9), True)])
    put(story.log, [(900, (5, 9), True)] * 5)
    assert marks(story) == []
    assert looked_up(story.log, 7) == [2 << SLOT_BITS, *(3 << SLOT_BITS | n for n in range(5))]


def test_marks_lie_at_records_and_not_too_near(new_story) -> None:
    """At least 16 KiB apart, the end of the last record aside."""
    story = new_story(settings=SETTINGS)
    put(story.log, [(1_000, (n, n), True) for n in range(1, 201)])
    places = marks(story)
    assert all(b - a >= SPACING_BYTES for a, b in pairwise(places[:-1]))
    assert {(place - places[0]) % (places[-1] - places[0]) % 1_046 for place in places} == {0}
    assert 10 < len(places) < 16


def test_a_start_forgets_marks_and_finds_the_same(large) -> None:
    """What stands in memory alone cannot be asked for; the batch is read whole then."""
    large.log.close()
    for again in (large.reopen, large.killed):
        again()
        for n in (1, 5, 10):
            assert found(large.log, range(1, 2), 100 * n) == [
                1 << SLOT_BITS | each for each in range(10)
            ]


@pytest.mark.parametrize("at", [0, 5, 9, 14, 16, 19, 20, 9_000, 20_030])
def test_a_record_that_went_bad_is_not_given_and_hides_no_other(large, at: int) -> None:
    """A mark leads to what makes no sense, or does not verify: then the batch is read whole."""
    content = large.file()
    content[record(4).start + at] ^= 0x41
    others = [1 << SLOT_BITS | n - 1 for n in range(1, 11) if n != 4]
    is_in_needle = at >= RECORD_HEADER_BYTES + 20_000
    assert looked_up(large.log, 450) == ([] if is_in_needle else others)
    assert looked_up(large.log, 350) == [1 << SLOT_BITS | 2]


def test_a_record_of_another_batch_is_not_one_of_this(large) -> None:
    """It was written to the wrong place, and is intact in itself: position and checksum are its."""
    other = put(large.log, [(20_000, (450, 450), True)] * 10)
    content = large.file()
    first, length = large.log._manifest.segments[0].index.marks.offsets[11], len(record(4))
    strange = range(first + 3 * length, first + 4 * length)
    content[record(4).start : record(4).stop] = content[strange.start : strange.stop]
    assert found(large.log, range(1, 2), 450) == [
        1 << SLOT_BITS | n - 1 for n in range(1, 11) if n != 4
    ]
    assert looked_up(large.log, 450)[9:] == other


def test_where_the_disk_refuses_the_batch_is_named(large) -> None:
    """Who asks may go on behind it."""
    put(large.log, [(20_000, (400, 499), True)] * 3)
    leave_readable(large, record(5))
    with pytest.raises(UnreadableError) as unread:
        looked_up(large.log, 450)
    assert (unread.value.first, unread.value.last) == (1, 1)
    assert unread.value.offset == record(4).start


def test_a_file_that_ends_in_a_record_is_no_other_record(large) -> None:
    """What is left of it does not verify, read whole or not."""
    del large.file()[record(4).start + 100 :]
    assert looked_up(large.log, 350) == [1 << SLOT_BITS | 2]
    assert looked_up(large.log, 450) == []


keys = st.integers(1, 5).flatmap(
    lambda low: st.tuples(st.just(low), st.integers(low, 6))
) | st.sampled_from([(0, 0), (3, 3 + FAR), (FAR - 1, FAR + 2), (FAR + 5, 3 * FAR)])
bodies = st.tuples(st.sampled_from([0, 500, 9_000, 17_000, 40_000]), keys, st.booleans())
batches = st.lists(st.lists(bodies, min_size=1, max_size=6), min_size=1, max_size=5)
asked = [1, 3, 5, 6, FAR - 1, FAR, FAR + 3, FAR + 5, 2 * FAR, 9 * FAR]


@given(batches)
def test_what_may_hold_the_key_is_found_whatever_lies_beside(given_batches) -> None:
    """All records that hold the needle and whose keys include the one asked for, in order;
    some more perhaps, but none without the needle.
    """
    log = Log.open(SimDisk(), SETTINGS)
    given_by_position: dict[int, Body] = {}
    for each in given_batches:
        given_by_position |= dict(zip(put(log, each), each, strict=True))
    for key in asked:
        wanted = {
            position
            for position, (_, (low, high), holds) in given_by_position.items()
            if holds and low <= key <= high
        }
        got = looked_up(log, key)
        assert wanted <= set(got)
        assert got == sorted(set(got))
        assert all(given_by_position[position][2] for position in got)

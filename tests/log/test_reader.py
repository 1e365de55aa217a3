"""A log seen by another process: what is appended, rolled and removed under its eyes."""

from __future__ import annotations

import pytest

from qbroker.log.errors import (
    CorruptError,
    ForeignError,
    NoSuchPosition,
    TrimmedError,
    UnreadableError,
)
from qbroker.log.format import SEGMENT_HEADER_BYTES
from qbroker.log.log import LogSettings
from qbroker.log.reader import LogReader
from simdisk import SimDisk

FIRST = "00000000000000000001.qlog"


def seen(reader: LogReader, first: int, upto: int) -> dict[int, list[bytes]]:
    return {
        info.number: [record.body for record in found] for info, found in reader.replay(first, upto)
    }


def test_a_reader_sees_what_is_durable_and_no_more(story) -> None:
    """Up to the batch it is told; the active file is read while it grows."""
    story.fill(5)
    reader = LogReader.open(story.disk)
    assert (reader.log_id, reader.oldest) == (story.log.log_id, 1)
    assert seen(reader, 0, 3) == {n: story.given[n] for n in (1, 2, 3)}
    story.fill(5)
    assert list(seen(reader, 4, 10)) == list(range(4, 11))
    assert seen(reader, 2, 10) == {n: story.given[n] for n in range(2, 11)}
    assert seen(reader, 11, 10) == {}


def test_a_reader_changes_nothing_and_takes_no_lock(story) -> None:
    """It calls nothing but what reads; the log under it goes on."""
    story.fill(60)
    story.disk.trace.clear()
    reader = LogReader.open(story.disk)
    assert seen(reader, 0, 60) == story.given
    assert set(story.disk.trace) <= {"open", "read", "names", "size"}


def test_a_reader_follows_a_log_that_rolls(story) -> None:
    """Batch by batch over many files, opened before the second of them was there."""
    reader = LogReader.open(story.disk)
    found: dict[int, list[bytes]] = {}
    for _ in range(100):
        story.fill(1, size=500)
        found |= seen(reader, story.log.written, story.log.durable)
    assert found == story.given
    assert story.log.statistics().segments > 5
    story.log.close()
    assert seen(reader, 0, 100) == story.given


def test_a_reader_that_comes_late_catches_up_over_many_files(story) -> None:
    """Files that were made since it looked are found by their names, one behind the other."""
    story.fill(3)
    reader = LogReader.open(story.disk)
    story.fill(97, size=500)
    assert seen(reader, 50, 100) == {n: story.given[n] for n in range(50, 101)}
    assert seen(reader, 0, 100) == story.given
    assert list(seen(reader, 5, 9)) == [5, 6, 7, 8, 9]


def test_following_reads_only_what_is_new(new_story) -> None:
    """A tail is walked once, however often it is asked for."""
    story = new_story(settings=LogSettings(segment_bytes=1 << 20))
    story.fill(1000)
    reader = LogReader.open(story.disk)
    assert len(seen(reader, 0, 1000)) == 1000
    story.fill(1)
    story.disk.trace.clear()
    assert list(seen(reader, 1001, 1001)) == [1001]
    assert story.disk.trace == ["size", "read"]


def test_one_record_and_blocks_are_read_by_position(story) -> None:
    """Also those in files, or parts of files, that were not walked yet."""
    positions = [story.put(bytes([n]) * 700)[0] for n in range(40)]
    reader = LogReader.open(story.disk)
    more = [story.put(bytes([n]) * 700)[0] for n in range(40, 80)]
    for position in (more[-1], positions[3], more[0], positions[-1]):
        assert reader.read(position).body == story.given[position >> 20][0]
    assert reader.read_block(2, 1)[0].body == story.given[2][0]
    with pytest.raises(NoSuchPosition, match="has 1 slots"):
        reader.read(more[-1] + 1)
    with pytest.raises(NoSuchPosition, match="counted from 1"):
        reader.read(7)


def test_what_was_trimmed_under_a_reader_is_said_to_be(story) -> None:
    """A file that is gone is looked for in META; what it had open it may finish."""
    story.fill(100)
    reader = LogReader.open(story.disk)
    walk = reader.replay(1, 100)
    assert next(walk)[0].number == 1
    story.log.trim(60)
    assert next(walk)[0].number == 2
    with pytest.raises(TrimmedError):
        list(walk)
    assert reader.oldest == story.log.oldest
    assert list(seen(reader, 0, 100)) == list(range(story.log.oldest, 101))


def test_a_tail_walked_in_part_is_taken_anew_once_it_has_a_successor(story) -> None:
    """A look at META finds the file sealed that was active when it was last read."""
    story.fill(60)
    reader = LogReader.open(story.disk)
    assert len(seen(reader, 0, 60)) == 60
    story.fill(60)
    story.log.trim(30)
    assert list(seen(reader, 30, 120))[-1] == 120
    with pytest.raises(TrimmedError):
        reader.read(1 << 20)
    assert seen(reader, 61, 120) == {n: story.given[n] for n in range(61, 121)}


def test_damage_at_or_below_what_is_durable_is_never_a_torn_tail(story) -> None:
    """The writer said so: the bytes were there once."""
    story.fill(4)
    content = story.file()
    end = SEGMENT_HEADER_BYTES + 4 * 512
    for at in range(SEGMENT_HEADER_BYTES, end, 5):
        content[at] ^= 4
        with pytest.raises(CorruptError, match=FIRST):
            seen(LogReader.open(story.disk), 0, 4)
        content[at] ^= 4
    assert seen(LogReader.open(story.disk), 0, 4) == story.given


def test_a_batch_that_was_promised_and_is_not_there_is_damage(story) -> None:
    """Behind the last batch are zeros, or the file that should follow is missing."""
    story.fill(2)
    reader = LogReader.open(story.disk)
    with pytest.raises(CorruptError, match="no batch begins here"):
        seen(reader, 0, 3)
    story.log.close()
    with pytest.raises(CorruptError, match=r"0+3\.qlog is damaged.*the file is missing"):
        seen(reader, 3, 3)


def test_a_footer_of_other_batches_is_damage(story) -> None:
    """Sealed behind fewer batches than were read."""
    story.fill(3)
    story.disk.kill()
    twin = story.disk.copy()
    story.reopen()
    sealed = bytes(story.file(0)[-512:])
    reader = LogReader.open(twin)
    inode = twin.files[FIRST]
    inode.cached[SEGMENT_HEADER_BYTES + 1024 : SEGMENT_HEADER_BYTES + 1536] = sealed
    with pytest.raises(CorruptError, match="the footer is that of other batches"):
        seen(reader, 0, 3)


def test_a_directory_that_cannot_be_read_is_told_apart(story, new_story) -> None:
    """Missing files, another log's files, and a disk that refuses."""
    story.fill(60)
    twin = story.disk.copy()
    del twin.files[FIRST]
    with pytest.raises(CorruptError, match="does not continue the beginning"):
        LogReader.open(twin)
    other = new_story(SimDisk(seed=5))
    mixed = story.disk.copy()
    mixed.files[FIRST] = other.disk.files[FIRST]
    with pytest.raises(ForeignError):
        LogReader.open(mixed)
    reader = LogReader.open(story.disk)
    story.disk.fail(2, sticky=True)
    with pytest.raises(UnreadableError):
        seen(reader, 0, 60)
    story.disk.heal()
    assert seen(reader, 0, 60) == story.given


def test_a_file_that_is_gone_though_meta_counts_it_is_damage(story) -> None:
    """Looking again does not help."""
    story.fill(100)
    reader = LogReader.open(story.disk)
    for name in sorted(story.disk.files)[1:3]:
        del story.disk.files[name]
    with pytest.raises(CorruptError):
        seen(reader, 0, 100)

"""Cut, or flipped, at every byte: cut above what is durable, or refused; never a wrong record."""

from __future__ import annotations

import pytest

from qbroker.log.errors import (
    CorruptError,
    FormatError,
)
from qbroker.log.format import (
    FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
)
from qbroker.log.log import Log, LogSettings
from simdisk import SimDisk

FIRST = "00000000000000000001.qlog"


def batches_of(disk: SimDisk, settings: LogSettings) -> dict[int, list[bytes]]:
    log = Log.open(disk, settings)
    return {info.number: [r.body for r in records] for info, records in log.replay()}


def torn_files(disk: SimDisk) -> list[str]:
    return [name for name in disk.files if name.endswith(".torn")]


# --- Cut at every byte


def test_a_file_cut_at_any_byte_ends_at_a_whole_batch(story) -> None:
    """Of an unclean end only batches that are whole remain, in order, and nothing else."""
    for number in range(4):
        story.put(bytes([65 + number]) * 300 * number)
    whole = bytes(story.file())
    ends = {
        info.number: sum(i.length for i, _ in story.log.replay() if i.number <= info.number)
        for info, _ in story.log.replay()
    }
    story.disk.kill()
    for size in range(SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + ends[4] + 600):
        disk = story.disk.copy()
        disk.files[FIRST].cached = bytearray(whole[:size])
        disk.files[FIRST].durable = bytearray(whole[:size])
        kept = [n for n, end in ends.items() if SEGMENT_HEADER_BYTES + end <= size]
        assert batches_of(disk, story.settings) == {n: story.given[n] for n in kept}
        again = disk.copy()
        assert list(batches_of(again, story.settings)) == kept


def test_a_file_cut_inside_its_header_is_refused(story) -> None:
    """A segment has its name only once its header is durable."""
    story.put(b"a")
    content = story.file()
    story.disk.kill()
    for size in (0, 7, 100, SEGMENT_HEADER_BYTES - 1):
        disk = story.disk.copy()
        disk.files[FIRST].cached = content[:size]
        disk.files[FIRST].durable = content[:size]
        with pytest.raises(CorruptError, match="no segment header"):
            Log.open(disk, story.settings)


# --- Flip every byte


def test_damage_anywhere_in_an_unclean_segment_is_cut_above_durable_or_refused(story) -> None:
    """What a later batch says was durable is never cut; the last one alone may be."""
    story.put(b"a" * 100)
    story.put(b"b" * 600)
    story.put(b"c" * 100)
    story.put(b"d" * 10)
    content = story.file()
    end = story.log._manifest.segments[0].end
    story.disk.kill()
    outcomes = set()
    for at in range(end + 600):
        content[at] ^= 1 << at % 8
        disk = story.disk.copy()
        try:
            found = batches_of(disk, story.settings)
        except (CorruptError, FormatError):
            outcomes.add("refused")
            assert at < end - 512
        else:
            assert found == {n: story.given[n] for n in found}
            outcomes.add(len(found))
            if at < end:
                assert len(found) == 3
                assert torn_files(disk)
        content[at] ^= 1 << at % 8
    assert outcomes == {"refused", 3, 4}


def test_damage_anywhere_after_a_clean_stop_is_refused(story) -> None:
    """A sealed file has no torn tail: every byte of it was confirmed, the footer too."""
    story.put(b"a" * 100)
    story.put(b"b" * 600)
    story.log.close()
    content = story.file()
    story.disk.kill()
    for at in range(len(content)):
        content[at] ^= 1 << at % 8
        with pytest.raises((CorruptError, FormatError)):
            batches_of(story.disk.copy(), story.settings)
        content[at] ^= 1 << at % 8
    assert batches_of(story.disk, story.settings) == story.given


def test_a_sealed_file_cut_short_is_refused(story) -> None:
    """Its mode says that it had a footer."""
    story.fill(3)
    story.log.close()
    for cut in (1, FOOTER_BYTES, FOOTER_BYTES + 700):
        disk = story.disk.copy()
        for content in (disk.files[FIRST].cached, disk.files[FIRST].durable):
            del content[-cut:]
        with pytest.raises(CorruptError, match="it was sealed, but no footer"):
            Log.open(disk, story.settings)


def test_damage_in_an_older_segment_is_refused(story) -> None:
    """A later segment proves that the earlier one was durable, to the last byte."""
    story.fill(60)
    story.disk.kill()
    content = story.file(0)
    for at in range(0, len(content), 7):
        content[at] ^= 0x10
        with pytest.raises((CorruptError, FormatError)):
            batches_of(story.disk.copy(), story.settings)
        content[at] ^= 0x10

"""META and the order of files: what is missing, mixed, newer or left over."""

from __future__ import annotations

from zlib import crc32

import pytest

from qbroker.log.disk import write_whole
from qbroker.log.errors import (
    CorruptError,
    ForeignError,
    FormatError,
)
from qbroker.log.format import (
    SEGMENT_HEADER,
    SEGMENT_HEADER_BYTES,
)
from qbroker.log.log import Log, LogSettings
from qbroker.log.meta import read_meta
from simdisk import SimDisk

FIRST = "00000000000000000001.qlog"


def batches_of(disk: SimDisk, settings: LogSettings) -> dict[int, list[bytes]]:
    log = Log.open(disk, settings)
    return {info.number: [r.body for r in records] for info, records in log.replay()}


def torn_files(disk: SimDisk) -> list[str]:
    return [name for name in disk.files if name.endswith(".torn")]


def test_a_missing_meta_beside_data_is_refused(story) -> None:
    """Absence is never inferred: a directory with data and without META is not new."""
    story.put(b"a")
    story.disk.kill()
    del story.disk.files["META"]
    with pytest.raises(CorruptError, match="missing, but 0+1.qlog holds data"):
        story.reopen()


def test_a_creation_cut_short_begins_anew(story) -> None:
    """Before META is there, nothing was ever confirmed."""
    story.disk.kill()
    del story.disk.files["META"]
    story.reopen()
    story.put(b"a")
    assert story.killed().written == 1


def test_a_missing_segment_is_refused(story) -> None:
    """The newest is named in META; any other breaks the chain."""
    story.fill(100)
    story.disk.kill()
    names = sorted(name for name in story.disk.files if name.endswith(".qlog"))
    for gone, sentence in (
        (0, "does not continue the beginning"),
        (1, "does not continue"),
        (-1, "the file is missing"),
    ):
        disk = story.disk.copy()
        del disk.files[names[gone]]
        with pytest.raises(CorruptError, match=sentence):
            Log.open(disk, story.settings)


def test_an_unsealed_file_that_is_not_the_last_is_refused(story) -> None:
    """A successor is made only once the file before is sealed."""
    story.fill(30)
    content = story.file(0)
    del content[-512:]
    story.disk.kill()
    with pytest.raises(CorruptError, match="it was sealed"):
        story.reopen()


def test_a_file_under_another_name_is_refused(story) -> None:
    """Name and header agree on the first batch."""
    story.put(b"a")
    story.log.close()
    story.disk.files["00000000000000000002.qlog"] = story.disk.files[FIRST]
    with pytest.raises(CorruptError, match="begins at batch 1"):
        story.reopen()


def test_files_of_another_log_are_refused(story, new_story) -> None:
    """Directories that were mixed, or the wrong cluster's, are told from damage."""
    story.fill(3)
    other = new_story(SimDisk(seed=5))
    other.put(b"x")
    story.disk.kill()
    mixed = story.disk.copy()
    mixed.files[FIRST] = other.disk.files[FIRST]
    with pytest.raises(ForeignError, match="belongs to log"):
        Log.open(mixed, story.settings)
    with pytest.raises(ForeignError, match="belongs to cluster"):
        Log.open(story.disk, LogSettings(cluster=b"c" * 16))


def test_another_format_is_left_untouched(story) -> None:
    """A version says which one would be needed, whichever file it sees first."""
    story.fill(3)
    story.log.close()
    for found, whose in ((3, "a newer version"), (1, "before the first release")):
        other = story.disk.copy()
        for content in (other.files[FIRST].cached, other.files[FIRST].durable):
            content[8:12] = found.to_bytes(4, "little")
        with pytest.raises(FormatError, match=f"format {found}, this version reads.*{whose}"):
            Log.open(other, story.settings)
    newer = story.disk.copy()
    newer.files["META"].cached = bytearray(b"qbroker log\nformat 3\nwho knows\n")
    with pytest.raises(FormatError, match="META has format 3"):
        Log.open(newer, story.settings)
    old = b"qbroker log\nformat 1\ncluster 00\nlog 00\noldest 1\nnewest 1\n"
    story.disk.files["META"].cached = bytearray(old + b"crc %08x\n" % crc32(old))
    with pytest.raises(FormatError, match="META has format 1"):
        story.reopen()


def test_a_segment_header_of_format_zero_is_damage(story) -> None:
    """No version ever wrote it."""
    story.put(b"a")
    story.file()[8] = 0
    story.disk.kill()
    with pytest.raises(CorruptError, match="segment header checksum"):
        story.reopen()
    assert SEGMENT_HEADER.size <= SEGMENT_HEADER_BYTES


def test_every_byte_of_meta_is_guarded(story) -> None:
    """Unreadable metadata stops the start."""
    story.disk.kill()
    content = story.disk.files["META"].cached
    for at in range(len(content)):
        for bit in (0, 7):
            content[at] ^= 1 << bit
            with pytest.raises((CorruptError, FormatError)):
                read_meta(story.disk)
            content[at] ^= 1 << bit
    for cut in range(len(content)):
        disk = story.disk.copy()
        del disk.files["META"].cached[cut:]
        with pytest.raises(CorruptError):
            read_meta(disk)


def test_a_trim_cut_short_is_finished_by_the_next_start(story) -> None:
    """META goes first: files it no longer counts are leftovers, not gaps."""
    story.fill(100)
    story.disk.kill()
    story.reopen()
    before = dict(story.disk.files)
    oldest = story.log.trim(60)
    story.disk.files = before | {"META": story.disk.files["META"]}
    assert FIRST in story.disk.files
    story.killed()
    assert list(story.contents()) == list(range(oldest, 101))
    assert FIRST not in story.disk.files
    assert read_meta(story.disk).gaps[0].last == oldest - 1


def test_a_trim_removes_nothing_that_meta_counts(story) -> None:
    """On a full disk META may still count an older segment as the newest; trim sets it right."""
    story.log.prepare_next()
    story.fill(23)
    story.disk.fill_up()
    story.fill(1)
    assert read_meta(story.disk).newest == 1
    story.disk.capacity = None
    story.log.trim(24)
    assert list(story.killed().replay()) != []
    assert read_meta(story.disk).newest == 25


def test_half_made_files_are_removed_and_strangers_left(story) -> None:
    """*.tmp was never renamed, so it was never needed; other names are not ours."""
    for name in ("roll.tmp", "META.tmp", "x.torn.tmp", "notes.txt"):
        write_whole(story.disk.create(name), 0, b"x")
    story.killed()
    assert set(story.disk.files) == {FIRST, "META", "notes.txt"}

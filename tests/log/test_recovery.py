"""From a directory to a log: what is cut, what is kept, and what is said."""

from __future__ import annotations

import errno

import pytest

from qbroker.log.errors import (
    CorruptError,
    LockedError,
    LogFailed,
    UnreadableError,
)
from qbroker.log.format import (
    SECTOR_BYTES,
    SEGMENT_HEADER_BYTES,
    Footer,
    pack_footer,
)
from qbroker.log.log import Log, LogSettings
from qbroker.log.meta import read_meta, write_meta
from simdisk import SimDisk, lose_all

FIRST = "00000000000000000001.qlog"


def batches_of(disk: SimDisk, settings: LogSettings) -> dict[int, list[bytes]]:
    log = Log.open(disk, settings)
    return {info.number: [r.body for r in records] for info, records in log.replay()}


def torn_files(disk: SimDisk) -> list[str]:
    return [name for name in disk.files if name.endswith(".torn")]


# --- Stops, clean and not


def test_a_clean_stop_and_a_kill_lose_nothing(story) -> None:
    """Everything written is there after the process ended, politely or not."""
    story.fill(5)
    story.put(b"unsynced", sync=False)
    assert (story.killed().written, story.log.durable) == (6, 6)
    story.fill(2)
    story.log.close()
    story.reopen()
    assert story.contents() == story.given
    assert story.log.statistics().torn_bytes == 0


def test_a_power_cut_loses_only_what_was_not_synced(story) -> None:
    """Durable batches are there; the unsynced end is as if it had never been."""
    story.fill(5)
    story.put(b"unsynced", sync=False)
    story.disk.crash(lose_all)
    story.reopen()
    assert list(story.contents()) == [1, 2, 3, 4, 5]
    assert story.put(b"again") == [6 << 20]


def test_each_start_continues_in_a_new_file(story) -> None:
    """The old tail is sealed, never appended to; the chain goes on."""
    for _ in range(4):
        story.fill(2)
        story.killed()
    names = [name for name in story.disk.files if name.endswith(".qlog")]
    assert len(names) == 5
    assert story.contents() == story.given


def test_starts_without_work_leave_one_empty_file(story) -> None:
    """An empty segment is taken again, after a clean stop and after a kill."""
    story.fill(3)
    for _ in range(3):
        story.killed()
        story.log.close()
        story.reopen()
    assert story.log.statistics().segments == 2
    assert story.contents() == story.given


def test_a_second_process_is_refused(story) -> None:
    """One directory, one writer; the other is named, and keeps its lock."""
    for _ in range(2):
        with pytest.raises(LockedError, match="in use by another broker .pid 1."):
            Log.open(story.disk, story.settings)
    story.put(b"undisturbed")


def test_a_lock_that_fails_is_disk_trouble(story) -> None:
    """A lock that cannot be had for another reason is not said to be held."""
    story.disk.kill()
    story.disk.fail(1)
    with pytest.raises(LogFailed, match="locking"):
        story.reopen()


# --- The decision


def test_a_torn_end_is_kept_as_evidence_and_counted(story) -> None:
    """What is cut stands in a file beside, to the byte."""
    story.fill(2)
    story.put(b"never confirmed" * 50, sync=False)
    content = story.file()
    offset = story.log._manifest.segments[0].end - 1024
    content[offset + 600] ^= 1
    torn = bytes(content[offset : offset + 1024])
    story.killed()
    assert list(story.contents()) == [1, 2]
    assert story.log.statistics().torn_bytes == len(torn.rstrip(b"\0"))
    (name,) = torn_files(story.disk)
    assert bytes(story.disk.files[name].cached) == torn.rstrip(b"\0")
    assert story.disk.files[FIRST].mode == 0o400


def test_a_torn_end_of_an_empty_segment_goes_with_it(story) -> None:
    """The first batch of a file may be the torn one: the file is cut to its header."""
    story.put(b"never confirmed", sync=False)
    story.file()[SEGMENT_HEADER_BYTES + 100] ^= 1
    story.killed()
    assert story.contents() == {}
    assert len(torn_files(story.disk)) == 1
    story.put(b"first")
    assert story.killed().read(1 << 20).body == b"first"


def test_of_several_unsynced_batches_all_behind_a_torn_one_are_cut(story) -> None:
    """Unsynced sectors reach the disk in any order; a gap ends the log."""
    story.fill(2)
    story.fill(3, sync=False)
    story.file()[SEGMENT_HEADER_BYTES + 2 * 512 + 100] ^= 1
    story.killed()
    assert list(story.contents()) == [1, 2]


def test_a_lost_batch_that_a_later_one_calls_durable_is_refused(story) -> None:
    """The sentence names the file, the byte, the batches, and what to do."""
    story.fill(4)
    story.put()
    story.file()[SEGMENT_HEADER_BYTES + 512 + 100] ^= 1
    story.disk.kill()
    with pytest.raises(CorruptError) as refused:
        story.reopen()
    assert str(refused.value) == (
        f"{FIRST} is damaged at byte 4608: batch digest disagrees; batches 2 to 4 of the log had "
        "been confirmed and cannot be trusted; restore the directory from a backup or a replica, "
        "or keep a copy of it before any repair"
    )
    assert not story.disk.locked


def test_zeros_where_a_batch_was_do_not_hide_the_ones_behind(story) -> None:
    """The search goes on over a hole, however long."""
    story.fill(10)
    content = story.file()
    content[SEGMENT_HEADER_BYTES : SEGMENT_HEADER_BYTES + 8 * 512] = bytes(8 * 512)
    story.disk.kill()
    with pytest.raises(CorruptError, match="batches 1 to 9"):
        story.reopen()


def test_a_damaged_header_behind_the_damage_is_no_proof(story) -> None:
    """Only an intact header says what was durable; bytes that look like one do not."""
    story.fill(2)
    story.put(b"\0" * 420 + b"QBAT" + b"x" * 508 + b"QEND" + b"x" * 600, sync=False)
    content = story.file()
    content[SEGMENT_HEADER_BYTES + 2 * 512 + 80] ^= 1
    assert content[SEGMENT_HEADER_BYTES + 3 * 512 :].startswith(b"QBAT")
    assert content[SEGMENT_HEADER_BYTES + 4 * 512 :].startswith(b"QEND")
    story.killed()
    assert list(story.contents()) == [1, 2]


def test_a_footer_behind_the_damage_is_proof(story) -> None:
    """A stop during the seal: the size is not cut yet, but the footer is written."""
    story.fill(3)
    content = story.file()
    grown = len(content)
    story.log.close()
    content.extend(bytes(grown - len(content)))
    story.disk.files[FIRST].mode = 0o600
    whole = story.disk.copy()
    assert batches_of(whole, story.settings) == story.given
    assert whole.files[FIRST].mode == 0o400
    assert not torn_files(whole)
    content[SEGMENT_HEADER_BYTES + 2 * 512 + 90] ^= 1
    with pytest.raises(CorruptError, match="batch 3 of"):
        Log.open(story.disk, story.settings)


def test_a_batch_in_the_wrong_place_is_not_taken(story) -> None:
    """A whole, well signed batch copied over another is damage, and reads see it too."""
    story.fill(4)
    content = story.file()
    base = SEGMENT_HEADER_BYTES
    for source, target in ((3, 1), (0, 1)):
        saved = bytes(content[base + target * 512 : base + (target + 1) * 512])
        content[base + target * 512 : base + (target + 1) * 512] = content[
            base + source * 512 : base + (source + 1) * 512
        ]
        for read in (
            lambda: story.log.read(2 << 20),
            lambda: story.log.read_block(1, 4096),
            lambda: list(story.log.replay()),
        ):
            with pytest.raises(CorruptError):
                read()
        disk = story.disk.copy()
        with pytest.raises(CorruptError, match="batches 2 to 3"):
            Log.open(disk, story.settings)
        content[base + target * 512 : base + (target + 1) * 512] = saved
    assert story.contents() == story.given


def test_an_old_record_under_a_new_header_is_not_handed_out(story) -> None:
    """Record headers that lead nowhere are damage, not an endless walk."""
    batch = story.log.begin()
    for body in (b"a" * 1000, b"b" * 1000, b"c" * 1000):
        batch.add(1, body)
    story.log.commit(batch, sync=True, wall_ms=0, epoch=1)
    content = story.file()
    for at, value in (
        (SEGMENT_HEADER_BYTES + 72 + 4, 0xFF),  # length: beyond the batch
        (SEGMENT_HEADER_BYTES + 72 + 18, 0),  # count: nothing
        (SEGMENT_HEADER_BYTES + 72 + 8, 9),  # position: another slot, found nowhere
    ):
        saved, content[at] = content[at], value
        content[at + 2], more = (0x7F if at % 8 == 4 else content[at + 2]), content[at + 2]
        with pytest.raises(CorruptError, match="do not lead to|checksum"):
            story.log.read(1 << 20)
        content[at], content[at + 2] = saved, more
    assert story.log.read(1 << 20 | 2).body == b"c" * 1000


def test_a_damaged_header_met_by_the_index_hides_its_own_batch_alone(story) -> None:
    """After a clean start the index is built when first asked, around what it stumbles on."""
    story.fill(3)
    story.put(b"last", keys=(5, 9))
    story.log.close()
    second = slice(SEGMENT_HEADER_BYTES + 512, SEGMENT_HEADER_BYTES + 1024)
    whole = bytes(story.file(0)[second])
    first = bytes(story.file(0)[SEGMENT_HEADER_BYTES : second.start])
    for damage, sentence in (
        (bytes(512), "no batch begins here"),
        (whole[:8] + b"x" + whole[9:], "batch header checksum"),
        (first, "batch 1 stands in the place of 2"),
    ):
        story.reopen()
        content = story.file(0)
        content[second] = damage
        assert story.log.candidates(7) == [range(2, 5)]
        assert story.log.candidates(4) == []
        with pytest.raises(CorruptError, match=f"byte 4608: {sentence}"):
            story.log.read(2 << 20)
        for batch in (1, 3, 4):
            assert [story.log.read(batch << 20).body] == story.given[batch]
        content[second] = whole
        assert [story.log.read(2 << 20).body] == story.given[2]
        content[second] = damage  # and once it is built
        with pytest.raises(CorruptError, match=f"byte 4608: {sentence}"):
            story.log.read(2 << 20)
        assert [story.log.read(3 << 20).body] == story.given[3]
        content[second] = whole
        story.log.close()


def test_damaged_headers_at_the_end_and_side_by_side_hide_their_batches_alone(story) -> None:
    for size in (100, 3000, 100, 100, 100, 100):
        story.put(bytes(size), keys=(3, 8))
    story.log.close()
    story.reopen()
    content = story.file(0)
    starts = {}
    at = SEGMENT_HEADER_BYTES
    for batch, size in enumerate((512, 3584, 512, 512, 512, 512), 1):
        starts[batch] = at
        at += size
    lost = (1, 2, 4, 6)
    for batch in lost:
        content[starts[batch] + 20] ^= 1
    assert story.log.candidates(5) == [range(1, 7)]
    for batch in range(1, 7):
        if batch in lost:
            with pytest.raises(
                CorruptError, match=f"byte {starts[1] if batch == 2 else starts[batch]}"
            ):
                story.log.read(batch << 20)
        else:
            assert [story.log.read(batch << 20).body] == story.given[batch]


def test_a_sector_that_cannot_be_read_hides_its_own_batches_alone(story) -> None:
    """The page it is in is passed over; a disk that refuses all is not asked for ever."""
    for _ in range(6):
        story.put(bytes(3000), keys=(3, 8))  # 3,584 bytes a batch
    story.log.close()
    story.reopen()
    name = next(name for name in sorted(story.disk.files) if name.endswith(".qlog"))
    inode = story.disk.files[name]
    inode.dead.add((SEGMENT_HEADER_BYTES + 3584) // SECTOR_BYTES)
    with pytest.raises(UnreadableError, match="byte 7680"):
        story.log.read(2 << 20)
    for batch in (1, 3, 4, 5, 6):
        assert [story.log.read(batch << 20).body] == story.given[batch]
    inode.dead.clear()
    assert [story.log.read(2 << 20).body] == story.given[2]
    story.log.close()
    story.reopen()
    story.disk.fail(2, sticky=True)  # the first call opens the file
    with pytest.raises(UnreadableError):
        story.log.read(4 << 20)
    assert story.disk.failed <= 40
    story.disk.heal()
    assert [story.log.read(4 << 20).body] == story.given[4]


def test_a_header_of_another_batch_leads_nowhere(story) -> None:
    """The search for an intact one passes over those that stand in the wrong place."""
    story.fill(4)
    story.log.close()
    story.reopen()
    content = story.file(0)
    first = bytes(content[SEGMENT_HEADER_BYTES : SEGMENT_HEADER_BYTES + 512])
    for batch in (2, 3):
        place = SEGMENT_HEADER_BYTES + 512 * (batch - 1)
        content[place : place + 512] = first
    for batch in (2, 3):
        with pytest.raises(CorruptError, match="byte 4608: batch 1 stands in the place of 2"):
            story.log.read(batch << 20)
    assert [story.log.read(4 << 20).body] == story.given[4]


def test_a_file_of_which_much_cannot_be_read_is_not_searched_for_ever(new_story) -> None:
    """Each page that the disk refuses may take it seconds."""
    story = new_story(settings=LogSettings(segment_bytes=256 << 10))
    for _ in range(50):
        story.put(bytes(4000))
    story.log.close()
    story.reopen()
    name = next(name for name in sorted(story.disk.files) if name.endswith(".qlog"))
    dead = story.disk.files[name].dead
    dead.update(range(2 * 4096 // SECTOR_BYTES, 40 * 4096 // SECTOR_BYTES))
    before = story.disk.calls
    with pytest.raises(UnreadableError, match="Input/output error"):
        story.log.read(45 << 20)
    assert story.disk.calls - before < 50
    dead.clear()
    assert [story.log.read(45 << 20).body] == story.given[45]


def test_a_digest_whose_sector_cannot_be_read_is_not_given(story) -> None:
    story.put(bytes(3000))
    story.put(b"")
    story.log.close()
    story.reopen()
    name = next(name for name in sorted(story.disk.files) if name.endswith(".qlog"))
    story.disk.files[name].dead.add((SEGMENT_HEADER_BYTES + 3072) // SECTOR_BYTES)
    with pytest.raises(UnreadableError, match="byte 4096"):
        story.log.digest(1)


def test_a_footer_that_contradicts_its_batches_is_damage(story) -> None:
    """The last digest is written twice; the two must agree."""
    story.fill(3)
    story.log.close()
    story.reopen()
    sealed = story.log._manifest.segments[0]
    other = b"another digest.."
    footer = Footer(1, 3, 3, sealed.end, 1, 0, other, 1, other)
    story.file(0)[sealed.end :] = pack_footer(footer, sealed.seed)
    with pytest.raises(CorruptError, match="does not continue"):
        story.killed()
    sealed.content = other
    with pytest.raises(CorruptError, match="the footer's digest disagrees"):
        list(story.log.replay())


def test_a_file_cut_under_a_running_broker_is_damage(story) -> None:
    """Reads beyond the end of a file say where and which batch."""
    story.put(b"a" * 20_000)
    content = story.file()
    for size in (SEGMENT_HEADER_BYTES + 80, SEGMENT_HEADER_BYTES + 1000, 100):
        saved = bytes(content[size:])
        del content[size:]
        for read in (
            lambda: story.log.read(1 << 20),
            lambda: story.log.read_block(1),
            lambda: list(story.log.replay()),
        ):
            with pytest.raises(CorruptError, match=f"{FIRST} is damaged at byte 4096"):
                read()
        content.extend(saved)


# --- The disk during recovery


def test_a_failed_sync_hides_nothing_from_the_next_start(story) -> None:
    """After a failed sync the cache shows what the disk does not have; recovery asks the disk."""
    story.fill(2)
    story.disk.fail(2)
    with pytest.raises(LogFailed):
        story.put(b"in the cache only")
    assert b"in the cache only" in story.disk.files[FIRST].cached
    story.killed()
    assert list(story.contents()) == [1, 2]
    story.disk.crash()
    story.reopen()
    assert list(story.contents()) == [1, 2]


def test_a_read_error_in_the_tail_is_not_a_torn_tail(story) -> None:
    """What cannot be read now is not cut: the start is refused and may be tried again."""
    story.fill(3)
    story.disk.kill()
    for nth in range(1, 60):
        disk = story.disk.copy()
        disk.fail(nth)
        try:
            Log.open(disk, story.settings)
        except LogFailed:
            disk.kill()
            assert batches_of(disk, story.settings) == story.given
        else:
            break
    else:
        pytest.fail("recovery never got through")


def test_a_full_disk_never_stops_a_start_for_good(story) -> None:
    """Without a spare the new segment is as small as it must be, start after start."""
    story.fill(8)
    story.disk.fill_up()
    for _ in range(5):
        story.killed()
        assert list(story.contents()) == list(range(1, 9))
    story.put(b"and an acknowledgement can be written")
    story.disk.capacity += 10_000
    assert story.killed().written == 9


def test_torn_bytes_are_let_go_on_a_full_disk(story) -> None:
    """Evidence is not worth a broker that cannot start."""
    story.fill(2)
    story.log.prepare_next()
    story.put(b"never confirmed" * 80, sync=False)
    story.file()[SEGMENT_HEADER_BYTES + 2 * 512 + 100] ^= 1
    story.disk.fill_up()
    story.killed()
    assert list(story.contents()) == [1, 2]
    assert story.log.statistics().torn_bytes > 1000
    assert not torn_files(story.disk)


def test_keeping_torn_bytes_fails_for_other_reasons_aloud(story) -> None:
    """Only a full disk excuses the missing evidence."""
    story.put(b"never confirmed", sync=False)
    story.file()[SEGMENT_HEADER_BYTES + 100] ^= 1
    story.disk.kill()
    clean = story.disk.copy()
    Log.open(clean, story.settings)
    creating = clean.trace.index("create") + 1
    story.disk.fail(creating, errno.EIO)
    with pytest.raises(LogFailed):
        story.reopen()
    assert story.killed().written == 0


def test_meta_is_written_by_rename(story) -> None:
    """It is whole, old or new, at any moment."""
    story.disk.trace.clear()
    meta = read_meta(story.disk)
    write_meta(story.disk, meta)
    assert story.disk.trace[-5:] == ["create", "write", "sync", "rename", "sync_directory"]


def test_a_spare_that_is_left_is_taken_whatever_it_got_to(story) -> None:
    """A start that goes on with an empty segment needs none: it is there for the next roll."""
    assert story.log.prepare_next()
    story.killed()
    assert story.log.statistics().segments == 1
    assert story.log.prepare_next()
    story.killed()
    story.disk.files["spare.tmp"].resize(0)
    assert story.log.prepare_next()
    story.disk.fill_up()
    story.fill(40)
    assert story.log.statistics().segments == 2

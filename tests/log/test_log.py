"""The verbs: what is true after each of them."""

from __future__ import annotations

import errno
import threading
from contextlib import suppress
from itertools import pairwise

import pytest

from qbroker.log.batch import BatchBuilder
from qbroker.log.errors import (
    CorruptError,
    LogFailed,
    NoRoom,
    NoSuchPosition,
    TooLargeError,
    TrimmedError,
    UnreadableError,
)
from qbroker.log.format import SECTOR_BYTES, SEGMENT_HEADER_BYTES
from qbroker.log.log import Log, LogSettings
from qbroker.log.marks import SPACING_BYTES
from qbroker.log.reader import LogReader
from qbroker.log.window import Handles
from simdisk import SimDisk, SimFile


def test_a_record_is_read_by_any_of_its_slots(story) -> None:
    """A position inside a record leads to the record."""
    batch = story.log.begin()
    first = batch.add(1, b"one", count=5)
    second = batch.add(2, [b"t", b"wo"], flags=9)
    story.log.commit(batch, sync=True, wall_ms=77, epoch=1)
    assert story.log.read(first + 4) == story.log.read(first)
    found = story.log.read(second)
    assert (found.position, found.type, found.flags, found.count) == (second, 2, 9, 1)
    assert (found.body, found.wall_ms) == (b"two", 77)


def test_written_is_not_durable_until_a_sync(story) -> None:
    """A sync makes all earlier batches durable, whoever asks for it."""
    story.put(b"a", sync=False)
    story.put(b"b", sync=False)
    assert (story.log.written, story.log.durable) == (2, 0)
    story.put(b"c")
    assert story.log.durable == 3
    story.put(b"d", sync=False)
    story.log.sync()
    assert story.log.durable == 4
    syncs = story.disk.trace.count("sync")
    story.log.sync()
    assert story.disk.trace.count("sync") == syncs


def test_the_next_batch_is_filled_while_this_one_commits(story) -> None:
    """begin and add need nothing of the commit that runs beside them."""
    first, second = story.log.begin(), story.log.begin()
    position = second.add(1, b"later")
    first.add(1, b"sooner")
    story.log.commit(first, sync=True, wall_ms=0, epoch=1)
    story.log.commit(second, sync=True, wall_ms=0, epoch=1)
    assert position >> 20 == 2
    assert story.contents() == {1: [b"sooner"], 2: [b"later"]}


def test_batches_are_committed_in_order(story) -> None:
    """A batch out of turn is refused, and the log is as before."""
    first, second = story.log.begin(), story.log.begin()
    with pytest.raises(ValueError, match="batch 2 committed after batch 0"):
        story.log.commit(second, sync=True, wall_ms=0, epoch=1)
    story.log.commit(first, sync=True, wall_ms=0, epoch=1)
    assert story.log.written == 1


def test_an_empty_batch_takes_a_sector_and_holds_nothing(story) -> None:
    """The idle batch: it has a number, carries what is durable, and no position."""
    story.put(b"a")
    before = story.log.statistics().bytes
    story.put()
    assert story.log.statistics().bytes == before + 512
    (_, idle) = [info for info, _ in story.log.replay()]
    assert (idle.durable_upto, idle.records, idle.epoch) == (1, 0, 3)
    assert story.log.read_block(2) == []
    with pytest.raises(NoSuchPosition, match="has 0 slots"):
        story.log.read(2 << 20)


def test_positions_that_never_were(story) -> None:
    """Beyond the end, in no batch, behind the last slot: each is told apart from trimmed."""
    (position,) = story.put(b"a")
    for wrong, why in [
        (position + 1, "has 1 slots"),
        (2 << 20, "newest batch is 1"),
        (5, "counted from 1"),
    ]:
        with pytest.raises(NoSuchPosition, match=why):
            story.log.read(wrong)
    with pytest.raises(NoSuchPosition):
        story.log.read_block(9)


def test_the_log_rolls_into_segments_and_reads_across_them(story) -> None:
    """A full segment is sealed, the next named by its first batch; nobody reading notices."""
    positions = [story.put(bytes([n]) * 3000)[0] for n in range(20)]
    names = [name for name in story.disk.names() if name.endswith(".qlog")]
    assert len(names) == story.log.statistics().segments == 7
    assert names[:2] == ["00000000000000000001.qlog", "00000000000000000004.qlog"]
    assert [story.disk.files[name].mode for name in names] == [0o400] * 6 + [0o600]
    assert [story.log.read(position).body[0] for position in positions] == list(range(20))
    assert story.contents() == story.given


def test_blocks_are_whole_batches_and_end_with_the_segment(story) -> None:
    """Read-ahead walks the log block by block and meets every record once."""
    for number in range(30):
        story.put(bytes([number]) * 700, b"", bytes([number]) * 10)
    seen: list[bytes] = []
    batch = 1
    while batch <= story.log.written:
        block = story.log.read_block(batch, 2500)
        assert len(block) % 3 == 0
        assert len(block) <= 9
        seen += [record.body for record in block]
        batch = (block[-1].position >> 20) + 1
    assert seen == [body for bodies in story.given.values() for body in bodies]


def test_a_batch_larger_than_a_segment_gets_a_segment_of_its_own(story) -> None:
    """One record may be larger than files usually are, first in a file or not."""
    huge = bytes(range(256)) * 200
    for bodies in ([huge], [b"small"], [huge], [b"small"]):
        story.put(*bodies)
    assert story.log.statistics().segments == 4
    assert story.contents() == story.given
    assert story.log.read(3 << 20).body == huge
    assert story.killed().read(1 << 20).body == huge


def test_a_batch_has_a_limit_of_bytes(new_story) -> None:
    """The limit of the settings is the builder's."""
    story = new_story(settings=LogSettings(batch_bytes_max=2000))
    batch = story.log.begin()
    batch.add(1, bytes(1500))
    with pytest.raises(TooLargeError):
        batch.add(1, bytes(1500))


@pytest.mark.parametrize(
    ("setting", "size"),
    [("segment_bytes", 4096), ("segment_bytes", (2 << 30) + 1), ("batch_bytes_max", (1 << 30) + 1)],
)
def test_sizes_have_bounds(setting, size) -> None:
    """A size that cannot work is refused with the bounds."""
    with pytest.raises(ValueError, match=f"{setting} is {size};.*choose \\d+ to \\d+"):
        LogSettings(**{setting: size})


def test_a_record_far_inside_a_large_batch_is_found(new_story) -> None:
    """Lookups hop over record headers, across many small reads."""
    story = new_story(settings=LogSettings(segment_bytes=1 << 20))
    bodies = [bytes([n % 256]) * (n * 37 % 3000) for n in range(300)]
    positions = story.put(*bodies)
    for at in (0, 1, 150, 298, 299):
        assert story.log.read(positions[at]).body == bodies[at]


def test_the_index_is_sparse_and_finds_every_batch(new_story) -> None:
    """One entry for 16 KiB at most; what lies between is walked."""
    story = new_story(settings=LogSettings(segment_bytes=1 << 20))
    story.fill(500, size=10)
    index = story.log._manifest.segments[0].index
    assert len(index.numbers) == -(-500 * 512 // SPACING_BYTES)
    assert all(b - a >= SPACING_BYTES for a, b in pairwise(index.offsets))
    for number in (1, 2, 31, 32, 33, 34, 499, 500):
        assert story.log.read(number << 20).body == story.given[number][0]
    story.log.close()
    story.reopen()
    for number in (500, 1, 33):
        assert story.log.read(number << 20).body == story.given[number][0]


def test_keys_lead_to_few_batches(new_story) -> None:
    """A key is looked for where committed key ranges include it, before and after a start."""
    story = new_story(settings=LogSettings(segment_bytes=256 << 10))
    for number in range(1, 1001):
        story.put(b"x", keys=(number * 10, number * 10 + 5) if number % 100 else (0, 0))
    for log in (story.log, story.killed()):
        for number in (1, 99, 101, 502, 999):
            (found,) = log.candidates(number * 10 + 3)
            assert number in found
            assert len(found) <= 64
        assert log.candidates(3) == []
        assert log.candidates(1 << 60) == []


def test_large_batches_are_hopped_over_to_know_where_they_are(new_story, monkeypatch) -> None:
    """The first look-up in a segment after a start reads the pages with their headers alone."""
    story = new_story(settings=LogSettings(segment_bytes=3 << 20, batch_bytes_max=1 << 20))
    for number in range(1, 11):
        story.put(b"x" * 200_000, keys=(number * 10, number * 10 + 5))
    story.log.close()
    log, read_at, read = story.reopen(), SimFile.read_at, []

    def counted(file: SimFile, offset: int, length: int) -> bytes:
        read.append(length)
        return read_at(file, offset, length)

    monkeypatch.setattr(SimFile, "read_at", counted)
    for number in range(1, 11):
        assert log.candidates(number * 10 + 3) == [range(number, number + 1)]
    assert read == [4096] * 10


def test_key_ranges_that_overlap_are_one_answer(new_story) -> None:
    """Neighbouring entries that both may hold the key make one range; others stay apart."""
    story = new_story(settings=LogSettings(segment_bytes=1 << 20))
    for number in range(1, 200):
        story.put(b"x", keys=(1, 9) if number < 64 or number > 128 else (5, 6))
    assert story.log.candidates(5) == [range(1, 200)]
    first, second = story.log.candidates(8)
    assert first.start == 1
    assert second.stop == 200
    assert set(range(1, 64)) <= set(first)
    assert set(range(129, 200)) <= set(second)


def test_replay_may_begin_later(story) -> None:
    """From a checkpoint on, only later batches are handed out."""
    story.fill(100)
    assert [info.number for info, _ in story.log.replay(60)] == list(range(60, 101))


def test_trimmed_is_told_apart_from_never(story) -> None:
    """Whole segments before the batch are gone, for good, and said to be."""
    story.fill(100)
    assert story.log.trim(3) == 1
    oldest = story.log.trim(60)
    assert 30 < oldest <= 60
    assert story.log.trim(60) == oldest
    with pytest.raises(TrimmedError, match="batch 1 .* is gone: its segment was dropped"):
        story.log.read(1 << 20)
    for log in (story.log, story.killed()):
        assert [info.number for info, _ in log.replay()] == list(range(oldest, 101))
        assert log.statistics().oldest == log.oldest == oldest
    assert story.log.trim(1000) == 101


def test_a_reader_that_meets_a_trim_is_told_so(story, monkeypatch) -> None:
    """Between finding the segment and opening it, a trim may have removed it."""
    story.fill(100)
    real = Handles.of

    def late(handles: Handles, name: str):
        monkeypatch.setattr(Handles, "of", real)
        story.log.trim(60)
        return real(handles, name)

    monkeypatch.setattr(Handles, "of", late)
    with pytest.raises(TrimmedError):
        story.log.read(1 << 20)


def test_a_segment_that_cannot_be_opened_fences(story) -> None:
    """A file that went away under a running broker is disk trouble, not a missing record."""
    story.fill(100)
    gone = story.disk.files.pop("00000000000000000001.qlog")
    with pytest.raises(LogFailed, match="opening the file of batch 1 for reading"):
        story.log.read(1 << 20)
    with pytest.raises(LogFailed):
        story.log.begin()
    story.disk.kill()
    story.disk.files["00000000000000000001.qlog"] = gone
    story.reopen()
    del story.disk.files["00000000000000000001.qlog"]
    with pytest.raises(LogFailed, match="opening a segment for reading"):
        list(story.log.replay())


def test_the_spare_is_made_ahead_and_used(story) -> None:
    """With a spare, a roll allocates no block."""
    assert story.log.prepare_next()
    assert story.log.prepare_next()
    assert story.log.statistics().spare_ready
    story.disk.fill_up()
    story.fill(40)
    assert story.log.statistics().segments == 2
    assert not story.log.statistics().spare_ready
    assert not story.log.prepare_next()
    assert story.log.free_bytes() >= 0


def test_whether_a_commit_would_roll_can_be_asked(story) -> None:
    """has_room tells a plain write from one that makes a segment; spare_ready if one waits."""
    small, large = story.log.begin(), story.log.begin()
    small.add(1, b"x")
    assert story.log.has_room(small)
    large.add(1, b"x" * (20 << 10))
    assert not story.log.has_room(large)
    assert not story.log.spare_ready
    story.log.prepare_next()
    assert story.log.spare_ready


def test_a_clean_stop_is_told_from_a_kill(story) -> None:
    """The log knows at its start how it ended."""
    story.put(b"x")
    assert story.log.clean
    assert not story.killed().clean
    story.put(b"y")
    story.log.close(clean=True)
    assert story.reopen().clean


def test_a_stop_is_not_clean_once_the_disk_has_failed(story) -> None:
    """It failed beside the batches, for the segment to come: what is only written may be lost."""
    story.fill(1)
    written = story.log.written
    story.disk.fail(1)
    with pytest.raises(LogFailed, match="preparing the next segment"):
        story.log.prepare_next()
    with pytest.raises(LogFailed, match="preparing the next segment"):
        story.log.close(clean=True)
    story.log.close()
    assert story.log.written == written
    assert not story.reopen().clean


def test_a_start_that_fails_after_a_crash_does_not_hide_it(story) -> None:
    """It seals the log, with or without a batch of its own, and the next start still knows."""
    story.put(b"x")
    for batches in (0, 1, 0):
        log = story.killed()
        assert not log.clean
        story.fill(batches)
        log.close(clean=log.clean)
        assert not story.reopen().clean
    story.log.close(clean=True)
    log = story.reopen()
    log.close(clean=log.clean)
    assert story.reopen().clean


def test_a_kill_between_two_segments_is_no_clean_stop(story) -> None:
    """The last segment is sealed by a roll that found no room for the next."""
    filled_up(story)
    story.disk.kill()
    assert sorted(name for name in story.disk.files if name.endswith(".qlog"))
    story.disk.capacity = None
    assert not story.reopen().clean
    filled_up(story)
    story.log.close(clean=True)  # the batch that waits is missing
    story.disk.capacity = None
    assert not story.reopen().clean


def filled_up(story) -> BatchBuilder:
    """There is no room for another segment: the batch that waits for one."""
    story.disk.capacity = 20 << 10
    with pytest.raises(NoRoom, match=r"No space left.*goes on by itself") as refused:
        story.fill(100)
    assert refused.value.cause.errno == errno.ENOSPC
    assert story.log.durable == story.log.written > 10
    waiting = BatchBuilder(story.log.written + 1, 1 << 16)
    waiting.add(1, b"waited")
    return waiting


def test_a_full_disk_makes_a_batch_wait_for_room(story) -> None:
    """Nothing of it is written, nothing is fenced, all can be read; with room it goes on."""
    waiting = filled_up(story)
    assert not story.log.has_room(waiting)
    for _ in range(2):
        with pytest.raises(NoRoom):
            story.log.commit(waiting, sync=True, wall_ms=0, epoch=1)
    assert story.log.read(5 << 20).body == story.given[5][0]
    assert not any(name.endswith(".tmp") for name in story.disk.files)
    story.disk.capacity = None
    story.log.commit(waiting, sync=True, wall_ms=0, epoch=1)
    assert story.log.durable == waiting.number
    story.killed()
    assert story.contents()[waiting.number] == [b"waited"]


@pytest.mark.parametrize("end", ["close", "killed"])
def test_a_log_that_waits_for_room_can_end(story, end) -> None:
    """What was durable stays, whether it stops or is killed; the batch that waited is gone."""
    waiting = filled_up(story)
    if end == "close":
        story.log.close()
    story.disk.capacity = None
    story.disk.kill()
    story.reopen()
    assert list(story.contents()) == list(range(1, waiting.number))


def test_a_batch_larger_than_the_disk_waits_too(story) -> None:
    """One that needs a segment of its own size; the spare is kept for it, as it is."""
    story.log.prepare_next()
    story.disk.fill_up(1024)
    large = bytes(40 << 10)
    for _ in range(2):
        with pytest.raises(NoRoom):
            story.put(large)
        story.log._begun = story.log.written
    story.fill(1)
    with pytest.raises(NoRoom):
        story.put(large)
    assert story.log.spare_ready
    story.disk.capacity = None
    story.log._begun = story.log.written
    story.put(large)
    story.killed()
    assert story.contents()[story.log.written] == [large]


def test_what_else_fails_there_still_fences(story) -> None:
    """Only a full disk may be waited for."""
    story.disk.fail(1)
    with pytest.raises(LogFailed, match="writing batch 1 failed"):
        story.put(bytes(40 << 10))


def test_a_start_on_a_full_disk_uses_the_spare(story) -> None:
    """The reserve lets a broker start when nothing else may be allocated."""
    story.fill(3)
    story.log.prepare_next()
    story.disk.fill_up(1024)
    story.killed()
    assert story.contents() == story.given
    story.put(b"one more fits")


@pytest.mark.parametrize("verb", ["begin", "sync", "prepare_next", "statistics", "close"])
def test_a_failed_sync_ends_the_log(story, verb) -> None:
    """After the disk refused once nothing is tried again; only looking and closing go on."""
    story.put(b"a")
    batch = story.log.begin()
    story.disk.fail(2)
    with pytest.raises(LogFailed, match=r"writing batch 2 failed.*start again") as failed:
        story.log.commit(batch, sync=True, wall_ms=0, epoch=1)
    assert failed.value.cause.errno == errno.EIO
    assert story.log.durable == 1
    calls = story.disk.calls
    if verb in ("statistics", "close"):
        getattr(story.log, verb)()
    else:
        with pytest.raises(LogFailed):
            getattr(story.log, verb)()
    for later in (lambda: story.log.read(1 << 20), lambda: story.log.trim(1)):
        with pytest.raises(LogFailed):
            later()
    assert story.disk.calls == calls


def test_each_verb_fences_with_its_name(story) -> None:
    """The sentence says what the broker was doing."""

    def failing(log: Log, verb: str) -> None:
        story.disk.fail(1, sticky=True)
        with pytest.raises(LogFailed, match=verb):
            {"a sync": log.sync, "closing": log.close, "preparing": log.prepare_next}[verb]()

    for verb in ("a sync", "closing", "preparing"):
        story.put(b"x", sync=False)
        failing(story.log, verb)
        story.killed()
    story.fill(100)
    story.disk.fail(1)
    with pytest.raises(LogFailed, match="a drop"):
        story.log.trim(60)
    story.killed()


def test_a_short_write_is_a_failure(story) -> None:
    """What the kernel took only in part is not continued."""
    story.disk.fail(1, "short")
    with pytest.raises(LogFailed, match="short write, 256 of 512"):
        story.put(b"a")
    assert story.killed().written == 0


def test_a_closed_log_says_so(story) -> None:
    """Closing twice is once; everything else is refused."""
    story.put(b"a", sync=False)
    story.log.close()
    story.log.close()
    with pytest.raises(LogFailed, match="the log is closed"):
        story.log.begin()
    story.reopen()
    assert story.contents() == {1: [b"a"]}


def test_a_flipped_bit_at_rest_is_never_handed_out(story) -> None:
    """Reads check what they return, at any byte of the batches read."""
    story.put(b"a" * 300, b"b" * 300)
    story.put(b"c" * 300, b"d" * 300)
    bodies = [body for given in story.given.values() for body in given]
    content = story.file()
    for at in range(4096, story.log._manifest.segments[0].end):
        content[at] ^= 1
        for read in (
            lambda: [story.log.read(1 << 20 | 1)],
            lambda: story.log.read_block(1),
            lambda: story.log.read_block(2),
            lambda: [record for _, records in story.log.replay() for record in records],
        ):
            with suppress(CorruptError):
                assert all(record.body in bodies for record in read())
        content[at] ^= 1
    assert story.contents() == story.given


def test_a_read_error_is_told_from_damage(story) -> None:
    """A sector that cannot be read now may be read later; the writer goes on."""
    story.put(b"a")
    story.log.read(1 << 20)
    for read in (
        lambda: story.log.read(1 << 20),
        lambda: story.log.read_block(1),
        lambda: list(story.log.replay()),
    ):
        story.disk.fail(1, sticky=True)
        with pytest.raises(UnreadableError, match="Input/output error"):
            read()
        story.disk.heal()
    story.put(b"b")


def test_a_dead_sector_costs_the_batch_it_is_in(new_story) -> None:
    """What is beside it is read without it, though more is read at once where that works."""
    story = new_story(settings=LogSettings(segment_bytes=1 << 20))
    story.fill(30, size=700)
    (name,) = (name for name in story.disk.files if name.endswith(".qlog"))
    inode = story.disk.files[name]
    inode.dead = {(SEGMENT_HEADER_BYTES + 9 * 1024) // SECTOR_BYTES + 1}  # behind 10's header
    for number in {*range(1, 31)} - {10}:
        assert story.log.read(number << 20).body == story.given[number][0]
        assert story.log.read_block(number, 1)[0].body == story.given[number][0]
    with pytest.raises(UnreadableError, match="batch 10"):
        story.log.read_block(10)
    inode.dead = set()
    assert story.contents() == story.given


def test_readers_in_threads_see_only_whole_batches(new_story) -> None:
    """While one thread commits, others read everything that is written, across many files."""
    story = new_story(settings=LogSettings(segment_bytes=6 << 10))
    failures: list[BaseException] = []
    done = threading.Event()

    def reading() -> None:
        try:
            while not done.is_set():
                written = story.log.written
                for number in range(max(1, written - 20), written + 1):
                    assert story.log.read(number << 20).body == story.given[number][0]
                if written:
                    story.log.read_block(max(1, written - 5))
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=reading) for _ in range(2)]
    for thread in threads:
        thread.start()
    story.fill(400, size=50)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    for number in range(1, 401):
        assert story.log.read(number << 20).body == story.given[number][0]


def test_a_log_has_an_id_of_its_own() -> None:
    """Two directories are two logs, and each keeps its id."""
    one, other = Log.open(SimDisk(seed=1)), Log.open(SimDisk(seed=2))
    assert one.log_id != other.log_id
    one.close()
    assert Log.open(one._disk).log_id == one.log_id


def test_the_digest_behind_a_batch_is_what_the_next_is_chained_to(story) -> None:
    """Inside a file and at its end, of a log that goes on, was reopened, and as read beside."""
    story.fill(60, size=500)
    digests = [story.log.digest(number) for number in range(1, 61)]
    assert len(set(digests)) == 60
    assert story.log.statistics().segments > 2
    reader = LogReader.open(story.disk)
    assert [reader.digest(number) for number in range(1, 61)] == digests
    log = story.killed()
    assert [log.digest(number) for number in range(1, 61)] == digests
    with pytest.raises(NoSuchPosition):
        log.digest(61)


def test_a_digest_survives_the_batches_it_stands_for(story) -> None:
    story.fill(60, size=500)
    digest = story.log.digest(story.log.trim(31) - 1)
    assert story.log.oldest > 20
    log = story.killed()
    assert log.digest(log.oldest - 1) == digest == LogReader.open(story.disk).digest(log.oldest - 1)
    with pytest.raises(TrimmedError):
        log.digest(log.oldest - 2)


def test_a_digest_in_a_damaged_file_is_not_given(story) -> None:
    story.fill(60, size=500)
    story.file(0)[8192 : 8192 + 600] = b"x" * 600
    log = story.killed()
    with pytest.raises(CorruptError):
        log.digest(5)
    assert log.digest(10)
    log.read(40 << 20)
    story.disk.fail(1, sticky=True)
    with pytest.raises(UnreadableError):
        log.digest(41)

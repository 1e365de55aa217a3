"""Segments written anew without what is dead: nothing else changes, nothing else is believed."""

from __future__ import annotations

import errno
import json
import threading
from contextlib import suppress
from dataclasses import asdict, replace

import pytest

from qbroker.log.cleaning import WRITE_BYTES, Rewritten, rewrite, sweep
from qbroker.log.errors import (
    CorruptError,
    DamagedRecord,
    ForeignError,
    FormatError,
    LogFailed,
    NoRoom,
    NoSuchPosition,
    StaleError,
    TooLargeError,
    TrimmedError,
)
from qbroker.log.format import RECORD_BYTES_MAX, SEGMENT_HEADER_BYTES
from qbroker.log.log import LogSettings
from qbroker.log.meta import read_meta, write_meta
from qbroker.log.reader import LogReader
from qbroker.log.salvage import Damage
from simdisk import SimDisk

FIRST = "00000000000000000001.qlog"


def third(record):
    """Every third batch lives, with a new type and body."""
    return (9, (b"kept ", record.body)) if (record.position >> 20) % 3 == 0 else None


def everything(record):
    return record.type, (record.body,)


def early(record):
    return (record.type, [record.body]) if record.position >> 20 < 9 else None


def cleaned(story, keep=third, count: int = 1, start: int = 0) -> Rewritten:
    """So many neighbouring segments of the story's log, rewritten."""
    reader = LogReader.open(story.disk)
    done = rewrite(story.disk, reader.sealed(story.log.durable)[start : start + count], keep)
    assert done is not None
    sent = Rewritten(**json.loads(json.dumps(asdict(done))))  # as one process tells another
    assert sent == done
    return sent


def names(story) -> list[str]:
    return [name for name in story.disk.names() if name.endswith((".qlog", ".tmp"))]


def bodies(log) -> dict[int, list[bytes]]:
    return {info.number: [r.body for r in records] for info, records in log.replay()}


def expected(story, upto: int, since: int = 1) -> dict[int, list[bytes]]:
    """What is to be found once the batches in between were cleaned as `third` does."""
    return {
        n: [b"kept " + body for body in given] if since <= n <= upto else given
        for n, given in story.given.items()
        if not since <= n <= upto or n % 3 == 0
    }


@pytest.fixture
def filled(story):
    """A log of five segments, four of them sealed."""
    story.fill(100)
    assert story.log.statistics().segments == 5
    return story


# --- What stays and what goes


def test_a_cleaned_segment_keeps_positions_counts_and_times(filled) -> None:
    """Type and body are those that keep() gave; dead batches are gone, and said to be."""
    before = {n: filled.log.read(n << 20) for n in range(1, 24)}
    done = cleaned(filled)
    assert filled.log.adopt(done)
    assert names(filled)[0] == "00000000000000000001.1.qlog"
    for log in (filled.log, filled.killed()):
        for number, old in before.items():
            if number % 3:
                with pytest.raises(TrimmedError, match="nothing needed it any more"):
                    log.read(number << 20)
                continue
            new = log.read(number << 20)
            assert (new.position, new.count, new.flags) == (old.position, old.count, old.flags)
            assert (new.wall_ms, new.type, new.body) == (old.wall_ms, 9, b"kept " + old.body)
        assert bodies(log) == expected(filled, 23)
        assert log.whole_from == 24
        assert log.oldest == 1
    with pytest.raises(TrimmedError, match="whole from 24 on"):
        list(filled.log.replay(23))
    assert next(iter(filled.log.replay(24)))[0].number == 24


def test_slots_that_lost_their_record_are_told_from_those_that_never_were(story) -> None:
    """Within a batch that is kept, only the living can be read; the others are gone."""
    batch = story.log.begin()
    positions = [batch.add(1, bytes([n]) * 90, count=n + 1) for n in range(6)]
    story.log.commit(batch, sync=True, wall_ms=5, epoch=1)
    story.fill(60)
    live = positions[1], positions[4]
    story.log.adopt(cleaned(story, lambda r: (r.type, [r.body]) if r.position in live else None))
    for _ in range(2):
        for n, position in enumerate(positions):
            for slot in range(n + 1):
                if position in live:
                    assert story.log.read(position + slot).body == bytes([n]) * 90
                else:
                    with pytest.raises(TrimmedError):
                        story.log.read(position + slot)
        with pytest.raises(NoSuchPosition, match="has 21 slots"):
            story.log.read(positions[0] + 21)
        assert [r.position for r in story.log.read_block(1, 1)] == list(live)
        story.killed()


def test_blocks_of_a_cleaned_segment_go_from_kept_batch_to_kept_batch(filled) -> None:
    """Asked for a batch that is gone, the next one kept; behind the last, none."""
    filled.log.adopt(cleaned(filled))
    for batch in (1, 2, 3):
        assert filled.log.read_block(batch, 1)[0].position >> 20 == 3
    assert [r.position >> 20 for r in filled.log.read_block(5)] == [6, 9, 12, 15, 18, 21]
    assert filled.log.read_block(22) == []
    with pytest.raises(TrimmedError):
        filled.log.read(22 << 20)


def test_a_needle_is_found_in_what_cleaning_kept(filled) -> None:
    """Batches that are gone hold nothing: between, before, and behind those that were kept."""
    filled.log.adopt(cleaned(filled))
    for batches, kept in ((range(1, 3), []), (range(1, 10), [3, 6, 9]), (range(22, 23), [])):
        found = filled.log.holding(batches, b"kept ", 0)
        assert sorted({record.position >> 20 for record in found}) == kept


def test_keys_lead_into_cleaned_segments(new_story) -> None:
    """The range of keys of a batch that is kept is kept; ranges end with the last kept batch."""
    story = new_story(settings=LogSettings(segment_bytes=64 << 10))
    for number in range(1, 201):
        story.put(b"x" * 400, keys=(number * 10, number * 10 + 5) if number % 2 else (0, 0))
    last = story.log.segments()[0].last
    story.log.adopt(cleaned(story, lambda r: third(r) if r.position >> 20 < 30 else None))
    for log in (story.log, story.killed()):
        (found,) = log.candidates(213)
        assert 21 in found
        assert found.stop == 28
        assert log.candidates(283 + 50) == []
        (found,) = log.candidates((last + 2) * 10)
        assert found.start > last


def test_a_segment_can_be_cleaned_again(filled) -> None:
    """The next generation takes the place of the one before; the chain goes on as it did."""
    filled.log.adopt(cleaned(filled))
    filled.log.adopt(
        cleaned(filled, lambda r: (r.type, [r.body]) if r.position >> 20 < 9 else None)
    )
    assert names(filled)[0] == "00000000000000000001.2.qlog"
    for log in (filled.log, filled.killed()):
        assert list(bodies(log)) == [3, 6, *range(24, 101)]
        assert log.read(6 << 20).body == b"kept " + filled.given[6][0]


def test_neighbours_and_the_gaps_between_them_become_one_file(filled) -> None:
    """So the number of files is bounded by what lives, not by what was ever written."""
    second = filled.log.segments()[1]
    assert filled.log.drop([second.first])
    filled.log.adopt(cleaned(filled, count=3))
    assert names(filled)[:2] == ["00000000000000000001.1.qlog", f"{93:020d}.qlog"]
    assert read_meta(filled.disk).gaps == ()
    for log in (filled.log, filled.killed()):
        found = bodies(log)
        wanted = expected(filled, 92)
        assert found == {n: b for n, b in wanted.items() if not 24 <= n <= second.last}
        with pytest.raises(TrimmedError):
            log.read(30 << 20)
    filled.fill(100)
    filled.log.adopt(cleaned(filled, lambda r: (r.type, [r.body]), count=2))
    assert filled.killed().segments()[0].generation == 2


def test_what_keeps_nothing_leaves_no_file(filled) -> None:
    """It is to be dropped."""
    (first, *_) = LogReader.open(filled.disk).sealed(100)
    assert rewrite(filled.disk, [first], lambda record: None) is None
    assert not [name for name in filled.disk.files if name.endswith(".tmp")]


def test_a_cleaned_file_is_written_and_synced_piece_by_piece(new_story) -> None:
    """The broker's own syncs never wait behind more than a piece of it."""
    story = new_story(settings=LogSettings(segment_bytes=32 << 20))
    for _ in range(20):
        story.put(bytes(1 << 20))
    story.log.close()
    story.reopen()
    story.put(b"active")
    story.disk.trace.clear()
    story.log.adopt(cleaned(story, everything))
    writes = story.disk.trace.count("write")
    assert writes >= 20 * (1 << 20) // (WRITE_BYTES + (1 << 20))
    assert story.disk.trace.count("sync") >= writes
    assert bodies(story.log) == story.given


def test_only_what_can_be_stored_may_be_kept(filled) -> None:
    """A body too large or a type out of range stops the rewriting; no file is left."""
    segments = LogReader.open(filled.disk).sealed(100)[:1]
    with pytest.raises(TooLargeError):
        rewrite(filled.disk, segments, lambda r: (1, [bytes(RECORD_BYTES_MAX + 1)]))
    with pytest.raises(ValueError, match="type 0 out of range"):
        rewrite(filled.disk, segments, lambda r: (0, [b""]))
    segments[0].last += 1 << 32
    with pytest.raises(ValueError, match="too many for one file"):
        rewrite(filled.disk, segments, everything)
    assert not [name for name in filled.disk.files if name.endswith(".tmp")]


# --- Drops


def test_a_gap_anywhere_keeps_the_chain(filled) -> None:
    """Dropped segments are named with the digest that what follows must continue."""
    rows = filled.log.segments()
    assert filled.log.drop([rows[1].first, rows[3].first])
    assert filled.log.drop([rows[1].first, 12345])
    assert len(read_meta(filled.disk).gaps) == 2
    for log in (filled.log, filled.killed()):
        kept = [n for row in (rows[0], rows[2], rows[4]) for n in range(row.first, row.last + 1)]
        assert list(bodies(log)) == kept
        for row in (rows[1], rows[3]):
            with pytest.raises(TrimmedError, match="its segment was dropped"):
                log.read(row.first << 20)
            with pytest.raises(TrimmedError):
                log.read_block(row.last)
        assert log.whole_from == rows[4].first
    filled.fill(3)
    assert filled.log.drop([rows[2].first, rows[0].first])
    assert len(read_meta(filled.disk).gaps) == 1
    assert filled.killed().oldest == rows[4].first
    assert filled.log.statistics().dropped_segments == 0


def test_the_active_segment_is_never_dropped(filled) -> None:
    """Whoever thinks it dead is mistaken."""
    with pytest.raises(ValueError, match="begins the active segment"):
        filled.log.drop([filled.log.segments()[-1].first])
    assert bodies(filled.log) == filled.given


def test_a_last_segment_that_waits_for_room_stays(filled) -> None:
    """It is sealed, and not one of the others yet: not offered, and refused to who took it."""
    filled.disk.fill_up()
    with pytest.raises(NoRoom):
        filled.put(b"x" * 20_000)
    filled.disk.capacity = None
    last = filled.log.segments()[-1]
    assert last.sealed
    assert filled.log.drop([1, last.first])
    reader = LogReader.open(filled.disk)
    assert last.first not in [s.first for s in reader.sealed(filled.log.durable)]
    with pytest.raises(StaleError):
        filled.log.adopt(rewrite(filled.disk, reader._segments[-1:], everything))
    assert filled.log.read(last.last << 20).body == filled.given[last.last][0]


@pytest.mark.parametrize("field", ["last", "number", "number_last", "previous", "chain"])
def test_a_gap_must_fit_what_is_around_it(filled, field) -> None:
    """A META whose gap is another one is refused, on either side of it."""
    filled.log.drop([filled.log.segments()[1].first])
    filled.disk.kill()
    meta = read_meta(filled.disk)
    (gap,) = meta.gaps
    value = getattr(gap, field)
    other = bytes(16) if isinstance(value, bytes) else value + 1
    write_meta(filled.disk, replace(meta, gaps=(replace(gap, **{field: other}),)))
    with pytest.raises(CorruptError):
        filled.reopen()


def test_a_file_missing_beside_a_gap_is_seen(filled) -> None:
    """A gap excuses only what was dropped."""
    rows = filled.log.segments()
    filled.log.drop([rows[1].first])
    filled.disk.kill()
    for row in (rows[0], rows[2]):
        disk = filled.disk.copy()
        del disk.files[f"{row.first:020d}.qlog"]
        with pytest.raises(CorruptError, match="does not continue"):
            type(filled)(disk, filled.settings)


def test_digests_at_the_ends_of_what_is_gone_are_known(filled) -> None:
    """A gap and a cleaned segment tell what follows them, not what was within."""
    rows = filled.log.segments()
    ends = [row.last for row in rows[:4]]
    digests = {end: filled.log.digest(end) for end in ends}
    filled.log.adopt(cleaned(filled))
    filled.log.drop([row.first for row in rows[1:3]])
    reader = LogReader.open(filled.disk)
    for log in (filled.log, reader, filled.killed()):
        for end in (ends[0], ends[2], ends[3]):
            assert log.digest(end) == digests[end]
        for gone in (3, ends[1]):
            with pytest.raises(TrimmedError):
                log.digest(gone)
    filled.log.adopt(cleaned(filled, everything))
    filled.log.drop([rows[3].first])
    assert LogReader.open(filled.disk).digest(ends[3]) == digests[ends[3]]


# --- What is not believed


def test_a_stale_cleaned_file_is_never_taken_for_the_newer(filled) -> None:
    """Not when it is offered, nor when it lies under the newer one's name, or its own."""
    stale = cleaned(filled)
    one, other = cleaned(filled), cleaned(filled, everything)
    old = filled.disk.files[one.name]
    assert filled.log.adopt(one)
    for late in (stale, other):
        with pytest.raises(StaleError, match="what it was made of is not what is there"):
            filled.log.adopt(late)
        assert late.name not in filled.disk.files
    filled.log.adopt(
        cleaned(filled, lambda r: (r.type, [r.body]) if r.position >> 20 < 9 else None)
    )
    filled.disk.kill()
    beside = filled.disk.copy()
    beside.files["00000000000000000001.1.qlog"] = old
    assert list(bodies(type(filled)(beside, filled.settings).log))[:3] == [3, 6, 24]
    assert "00000000000000000001.1.qlog" not in beside.files
    filled.disk.files["00000000000000000001.2.qlog"] = old
    with pytest.raises(CorruptError, match="its header says it begins at batch 1, generation 1"):
        filled.reopen()


def test_a_swapped_cleaned_file_is_refused(filled) -> None:
    """Another rewriting of the segment, or an original in its place, is not what was adopted."""
    one, other = cleaned(filled), cleaned(filled, everything)
    original, swapped = filled.disk.files[FIRST], filled.disk.files[other.name]
    filled.log.adopt(one)
    filled.disk.kill()
    for inode, sentence in ((swapped, "not the cleaned file that META counts"), (original, "gen")):
        filled.disk.files["00000000000000000001.1.qlog"] = inode
        for opening in (filled.reopen, lambda: LogReader.open(filled.disk)):
            with pytest.raises(CorruptError, match=sentence):
                opening()
            filled.disk.kill()
    del filled.disk.files["00000000000000000001.1.qlog"]
    filled.disk.files[FIRST] = original
    with pytest.raises(CorruptError, match="file is missing"):
        filled.reopen()
    assert FIRST in filled.disk.files


def test_a_foreign_cleaned_file_is_refused(filled, new_story) -> None:
    """Of another log, of other segments, or not as it was announced."""
    other = new_story(SimDisk(seed=5))
    other.fill(100)
    theirs = cleaned(other)
    filled.disk.files[theirs.name] = other.disk.files[theirs.name]
    with pytest.raises(ForeignError):
        filled.log.adopt(theirs)
    assert theirs.name not in filled.disk.files
    mine = cleaned(filled)
    for changed in ({"digest": "00" * 16}, {"last": 24}, {"generation": 3}, {"first": 2}):
        filled.disk.files["copy.tmp"] = filled.disk.files[mine.name]
        with pytest.raises(CorruptError):
            filled.log.adopt(replace(mine, name="copy.tmp", **changed))
        assert "copy.tmp" not in filled.disk.files
    assert filled.log.adopt(mine)
    assert bodies(filled.log) == expected(filled, 23)


def test_what_the_log_does_not_have_any_more_is_not_brought_back(filled) -> None:
    """Dropped meanwhile, in whole or in part, or the active segment taken for a sealed one."""
    two = cleaned(filled, count=2)
    one = cleaned(filled)
    rows = filled.log.segments()
    filled.log.drop([rows[0].first])
    with pytest.raises(StaleError, match="what it was made of is not what is there"):
        filled.log.adopt(one)
    with pytest.raises(StaleError, match="what it was made of is not what is there"):
        filled.log.adopt(two)
    segments = LogReader.open(filled.disk).sealed(100)
    apart = rewrite(filled.disk, [segments[0], segments[2]], everything)
    with pytest.raises(StaleError):
        filled.log.adopt(apart)


def test_a_flipped_bit_in_a_cleaned_segment_is_never_a_wrong_record(filled) -> None:
    """Every byte: read right, or damage; refused by replay; what is lost is not said to be gone."""
    filled.log.adopt(cleaned(filled))
    filled.log.close()
    content = filled.file(0)
    alive = {n: b"kept " + filled.given[n][0] for n in range(3, 24, 3)}
    for at in range(len(content)):
        content[at] ^= 1 << at % 8
        disk = filled.disk.copy()
        with pytest.raises((CorruptError, FormatError)) if at < 4096 else suppress(CorruptError):
            twin = type(filled)(disk, filled.settings)
            for number, body in alive.items():
                with suppress(CorruptError):
                    assert twin.log.read(number << 20).body == body
            with pytest.raises(CorruptError):
                list(twin.log.replay())
        content[at] ^= 1 << at % 8


def test_a_bad_record_of_a_cleaned_segment_is_told_from_those_that_are_gone(story) -> None:
    """Both its bytes and the slots it may have covered are named."""
    positions = story.put(*(bytes([n]) * 90 for n in range(1, 7)))
    story.fill(60)
    live = positions[1], positions[3]
    story.log.adopt(cleaned(story, lambda r: (r.type, [r.body]) if r.position in live else None))
    content = story.file(0)
    for byte in (20, 8):  # of its body, of its position
        content[SEGMENT_HEADER_BYTES + 72 + byte] ^= 255
        assert story.log.read(positions[3]).body == bytes([4]) * 90
        for position in positions[:3]:
            with pytest.raises(DamagedRecord):
                story.log.read(position)
        with pytest.raises(TrimmedError):
            story.log.read(positions[4])
        content[SEGMENT_HEADER_BYTES + 72 + byte] ^= 255


def test_a_bad_record_that_was_set_aside_does_not_stop_cleaning(filled) -> None:
    """Whoever rewrites is told which slots went, and sees to it that nothing in them lives."""
    filled.file(0)[SEGMENT_HEADER_BYTES + 2 * 512 + 100] ^= 1
    damaged: list[Damage] = []
    segments = LogReader.open(filled.disk).sealed(100)[:1]
    done = rewrite(filled.disk, segments, third, damaged)
    assert [(damage.position >> 20, damage.count) for damage in damaged] == [(3, 1)]
    assert filled.log.adopt(done)
    assert 3 not in bodies(filled.log)
    assert 6 in bodies(filled.killed())


def test_what_a_dead_cleaner_left_is_swept(filled) -> None:
    """Its own kind of file and no other."""
    done = cleaned(filled)
    filled.log.prepare_next()
    before = set(filled.disk.files)
    assert sweep(filled.disk) == 1
    assert before - set(filled.disk.files) == {done.name}
    assert sweep(filled.disk) == 0


def test_a_source_that_does_not_verify_is_not_cleaned(filled) -> None:
    """Damage is not copied under a new checksum, and not lost from sight."""
    filled.file(0)[SEGMENT_HEADER_BYTES + 100] ^= 1
    with pytest.raises(CorruptError):
        cleaned(filled)
    assert not [name for name in filled.disk.files if name.endswith(".tmp")]


# --- Beside others


def test_reads_on_their_way_keep_the_old_file(filled) -> None:
    """Who has it open finishes; who asks later has the new one."""
    walk = filled.log.replay()
    assert next(walk)[0].number == 1
    reader = LogReader.open(filled.disk)
    other = reader.replay(0, 100)
    assert next(other)[0].number == 1
    filled.log.adopt(cleaned(filled, count=2))
    filled.log.drop([filled.log.segments()[1].first])
    assert [info.number for info, _ in walk][:22] == list(range(2, 24))
    assert [info.number for info, _ in other][:22] == list(range(2, 24))
    assert filled.log.read(3 << 20).body.startswith(b"kept")
    assert reader.read(3 << 20).body.startswith(b"kept")


def test_a_reader_meets_cleaned_segments_only_if_it_asks_for_all(filled) -> None:
    """From a batch on means all of them: a gap or a cleaned segment is said, not passed over."""
    reader = LogReader.open(filled.disk)
    rows = filled.log.segments()
    filled.log.adopt(cleaned(filled))
    filled.log.drop([rows[1].first])
    reader.sealed(100)
    assert reader.whole_from == rows[2].first
    found = {i.number: [r.body for r in records] for i, records in reader.replay(0, 100)}
    assert found == bodies(filled.log)
    for first in (1, rows[1].first):
        with pytest.raises(TrimmedError):
            list(reader.replay(first, 100))
    assert len(list(reader.replay(rows[2].first, 100))) == 101 - rows[2].first
    assert reader.read_block(1, 1)[0].position >> 20 == 3


def test_a_reader_behind_a_file_that_was_cleaned_before_it_came_is_told(filled) -> None:
    """The next file's name is gone: META says what became of it."""
    story = filled
    reader = LogReader.open(story.disk)
    assert len(list(reader.replay(0, 100))) == 100
    story.fill(100)
    rows = story.log.segments()
    story.log.adopt(cleaned(story, start=5))
    story.log.drop([rows[6].first])
    for first in (rows[5].first, rows[6].first):
        with pytest.raises(TrimmedError):
            list(reader.replay(first, 200))


def test_files_and_meta_that_change_while_a_reader_looks_are_read_once_more(filled) -> None:
    """META, then names, then files: what was swapped in between is found at the second look."""
    real = filled.disk.names
    done = cleaned(filled)

    def names_after_an_adoption() -> list[str]:
        filled.disk.names = real
        filled.log.adopt(done)
        return real()

    filled.disk.names = names_after_an_adoption
    reader = LogReader.open(filled.disk)
    assert reader.sealed(100)[0].header.generation == 1


def test_look_ups_of_a_key_survive_what_is_swapped_meanwhile(filled, monkeypatch) -> None:
    """A segment that was replaced between listing and opening is found under its new name."""
    filled.put(b"x" * 100, keys=(7, 7))
    filled.log.adopt(cleaned(filled))
    for number in range(20):
        filled.put(b"y" * 1000, keys=(number + 5, number + 6))
    start = [row.first for row in filled.log.segments()].index(93)
    done = cleaned(filled, everything, start=start)
    opened = type(filled.log._manifest)._opened

    def late(manifest, segment):
        if segment.first == 93 and not segment.header.generation:
            filled.log.adopt(done)
        return opened(manifest, segment)

    monkeypatch.setattr(type(filled.log._manifest), "_opened", late)
    assert any(101 in found for found in filled.log.candidates(7))


def test_cleaning_runs_beside_commits_and_reads(new_story) -> None:
    """One thread appends and rolls, one cleans and drops, one reads: nothing kept is missed."""
    story = new_story(settings=LogSettings(segment_bytes=8 << 10))
    failures: list[BaseException] = []
    done = threading.Event()

    def cleaning() -> None:
        try:
            while not done.is_set():
                segments = LogReader.open(story.disk).sealed(story.log.durable)
                plain = [s for s in segments if not s.header.generation][:2]
                if plain:
                    made = rewrite(story.disk, plain, third)
                    assert made is not None
                    assert story.log.adopt(made)
                if len(segments) > 20:
                    story.log.drop([segments[0].first])
        except BaseException as failure:
            failures.append(failure)

    def reading() -> None:
        try:
            while not done.is_set():
                written = story.log.written
                for number in range(max(written - 60, 1), written + 1):
                    with suppress(TrimmedError):
                        body = story.log.read(number << 20).body
                        assert body in (story.given[number][0], b"kept " + story.given[number][0])
                        continue
                    assert number % 3 or number < story.log.oldest
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for work in (cleaning, reading)]
    for thread in threads:
        thread.start()
    story.fill(600, size=300)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    whole = story.log.whole_from
    for _ in range(2):
        found = bodies(story.log)
        for number in range(story.log.oldest, 601):
            if number >= whole or (number % 3 == 0 and number in found):
                assert found[number][0].removeprefix(b"kept ") == story.given[number][0]
        story.killed()


# --- Disks


def test_a_full_disk_leaves_the_log_as_it_was(filled) -> None:
    """Neither adopted nor dropped, not fenced, and no file left over."""
    done = cleaned(filled)
    filled.disk.fill_up()
    assert filled.log.adopt(done) is False
    filled.disk.fill_up()
    assert filled.log.drop([1]) is False
    filled.disk.capacity = None
    assert not [name for name in filled.disk.files if ".1" in name or name.endswith(".tmp")]
    assert bodies(filled.log) == filled.given
    filled.disk.fill_up()
    with pytest.raises(OSError, match="No space left") as full:
        cleaned(filled)
    assert full.value.errno == errno.ENOSPC
    assert not [name for name in filled.disk.files if name.endswith(".tmp")]


def test_a_disk_that_refuses_fences(filled) -> None:
    """An adoption or drop half done is for a new start to see to."""
    done = cleaned(filled)
    filled.disk.fail(3)
    with pytest.raises(LogFailed, match="an adoption failed"):
        filled.log.adopt(done)
    with pytest.raises(LogFailed):
        filled.log.drop([1])
    assert bodies(filled.killed()) in (filled.given, expected(filled, 23))


def test_what_cleaning_costs_and_frees_is_counted(filled) -> None:
    """Bytes of users, bytes of files, and per segment."""
    before = filled.log.statistics()
    assert before.user_bytes == 100 * 100
    assert before.file_bytes > 100 * 512 + 4 * (4096 + 512)
    assert before.write_amplification == before.file_bytes / before.user_bytes
    done = cleaned(filled)
    filled.log.adopt(done)
    filled.log.drop([filled.log.segments()[1].first])
    after = filled.log.statistics()
    assert (after.cleaned_segments, after.cleaned_bytes) == (1, done.file_bytes)
    assert (after.dropped_segments, after.segments) == (1, 4)
    assert after.file_bytes >= before.file_bytes + done.file_bytes
    assert after.bytes < before.bytes
    first, *_, active = filled.log.segments()
    assert (first.first, first.last, first.generation, first.records) == (1, 23, 1, 7)
    assert first.bytes == done.file_bytes == len(filled.file(0))
    assert not active.sealed
    assert filled.killed().statistics().write_amplification == 0

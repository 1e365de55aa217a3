"""The log: numbered batches of records, each durable before anybody is told.

    begin -> BatchBuilder.add ... -> commit -> written -> (sync) -> durable
    read, read_block, candidates, replay        from any thread, up to `written`
    trim, close

Rules:

1. One writer: commit, sync, trim and close are never called at the same time. begin
   and add for later batches may run beside them.
2. Batches are committed in the order they were begun, none left out.
3. After an error of the disk the log is fenced: every verb but close raises LogFailed.
   Nothing is tried twice (the kernel may have dropped what a sync failed to write).
4. A record whose checksum fails costs that record, if the caller has a place for it: `read`
   raises DamagedRecord; `read_block` and `replay` go on if they are given a list, leave bad
   records out and append a Damage for each stretch: file, offset and length (evidence() gives
   the bytes), position and number of the slots lost. A damaged batch header is CorruptError.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

from qbroker.log.active import SEGMENT_BYTES_MIN, prepare_spare, size_for
from qbroker.log.batch import BatchBuilder, Stamp
from qbroker.log.disk import FULL, Disk, File
from qbroker.log.errors import LogError, LogFailed, NoRoom, NoSuchPosition, TrimmedError
from qbroker.log.format import (
    BATCH_BYTES_MAX,
    SECTOR_BYTES,
    SLOT_BITS,
    BatchInfo,
    StoredRecord,
    rounded,
)
from qbroker.log.lookup import READ_BLOCK_BYTES, digest_behind, find_block, find_record
from qbroker.log.meta import NO_CLUSTER, write_meta
from qbroker.log.recovery import Recovered, next_segment, recover
from qbroker.log.salvage import Damage
from qbroker.log.segment import Segment
from qbroker.log.statistics import LogStatistics
from qbroker.log.window import Handles

SEGMENT_BYTES = 64 << 20
SEGMENT_BYTES_MAX = 2 << 30  # offsets in the index have 32 bits
BATCH_BYTES_LIMIT = 1 << 30  # as has the length of a batch; also what a reader must hold


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What may be chosen. Sizes in bytes; `cluster` is an id of 16 bytes, zeros for none."""

    segment_bytes: int = SEGMENT_BYTES
    batch_bytes_max: int = BATCH_BYTES_MAX
    cluster: bytes = NO_CLUSTER

    def __post_init__(self) -> None:
        for name, size, low, high in (
            ("segment_bytes", self.segment_bytes, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
            ("batch_bytes_max", self.batch_bytes_max, SECTOR_BYTES, BATCH_BYTES_LIMIT),
        ):
            if not low <= size <= high:
                raise ValueError(
                    f"{name} is {size}; the format cannot hold that; choose {low} to {high}"
                )


class Log:
    """One directory's log. Made by Log.open.

    `written` is the highest batch handed to the kernel, `durable` the highest on stable
    storage; 0 while there is none. `oldest` is the lowest batch kept. All only grow.
    `clean`: the last stop was a clean one, or there was none.
    """

    __slots__ = (
        "_active",
        "_begun",
        "_disk",
        "_failure",
        "_handles",
        "_last_sync_s",
        "_meta",
        "_segments",
        "_settings",
        "_spare",
        "_torn_bytes",
        "clean",
        "durable",
        "oldest",
        "written",
    )

    def __init__(self, disk: Disk, settings: LogSettings, found: Recovered) -> None:
        active = found.active
        self._disk = disk
        self._settings = settings
        self._meta = found.meta
        self._active = active
        self._segments = [*found.sealed, active.segment]
        self._handles = Handles(disk)
        self._spare: File | None = None
        self._failure: LogFailed | None = None
        self._torn_bytes = found.torn_bytes
        self.clean = found.clean
        self._last_sync_s = 0.0
        self.oldest = found.meta.oldest
        self.written = active.segment.last
        self.durable = self.written
        self._begun = self.written

    @classmethod
    def open(cls, disk: Disk, settings: LogSettings | None = None) -> Log:
        """The directory is locked, recovered (see recovery.py) and ready for batches.

        Everything it holds is durable. Raises LockedError, CorruptError, ForeignError,
        FormatError; LogFailed for what the disk refuses. Reads at most one segment.
        """
        settings = settings or LogSettings()
        try:
            disk.lock()
        except OSError as error:
            raise LogFailed("locking the log's directory", error) from error
        try:
            return cls(disk, settings, recover(disk, settings.segment_bytes, settings.cluster))
        except (OSError, NoRoom) as error:
            disk.unlock()
            cause = error.cause if isinstance(error, NoRoom) else error
            raise LogFailed("opening the log", cause) from error
        except LogError:
            disk.unlock()
            raise

    @property
    def log_id(self) -> bytes:
        """16 random bytes, given when the directory was made."""
        return self._meta.log

    def begin(self) -> BatchBuilder:
        """A builder for the next batch number. May be kept and filled while others commit."""
        self._check()
        self._begun += 1
        return BatchBuilder(self._begun, self._settings.batch_bytes_max)

    def commit(
        self,
        batch: BatchBuilder,
        *,
        sync: bool,
        wall_ms: int,
        epoch: int,
        keys: tuple[int, int] = (0, 0),
    ) -> None:
        """The batch is written; if `sync`, it and all before it are durable.

        An empty batch is written too: it tells recovery what was durable. `keys` is the
        lowest and highest key in it, (0, 0) for none. LogFailed, and the log fenced,
        if the disk refuses: the batch may then be on disk or not. NoRoom if it needs a
        new segment and the disk is full: nothing of it was written, commit it again.
        One write; one fdatasync if asked; a new segment now and then (see prepare_next).
        """
        self._check()
        if batch.number != self.written + 1:
            raise ValueError(f"batch {batch.number} committed after batch {self.written}")
        try:
            length = rounded(batch.bytes)
            if not self._active.has_room(length):
                self._make_room(length)
            stamp = Stamp(self.durable, epoch, wall_ms, keys[0], keys[1])
            self._active.append(batch, stamp)
            self.written = batch.number
            if sync:
                self._sync()
        except OSError as error:
            raise self._fence(f"writing batch {batch.number}", error) from error

    def has_room(self, batch: BatchBuilder) -> bool:
        """Whether ``commit`` of this batch would only write, and make no new segment."""
        return self._active.has_room(rounded(batch.bytes))

    def sync(self) -> None:
        """All that is written is durable. LogFailed."""
        self._check()
        if self.durable < self.written:
            try:
                self._sync()
            except OSError as error:
                raise self._fence("a sync", error) from error

    def prepare_next(self) -> bool:
        """A spare segment waits, so that the next roll allocates nothing; False on a full disk.

        For a thread, beside commit; one call at a time. Cheap if the spare is there.
        It is also the reserve that lets the log go on, and start again, on a full disk.
        """
        self._check()
        if self._spare is not None:
            return True
        try:
            self._spare = prepare_spare(self._disk, self._settings.segment_bytes)
        except OSError as error:
            if error.errno not in FULL:
                raise self._fence("preparing the next segment", error) from error
            return False
        return True

    def read(self, position: int) -> StoredRecord:
        """The record that covers this position, which may be any of its slots; checked.

        Raises TrimmedError, NoSuchPosition, CorruptError; of these DamagedRecord if it
        alone is bad. Two or three small reads, and the record's own bytes.
        """
        number = position >> SLOT_BITS
        segment = self._holding(number, position)
        return find_record(segment, self._file(segment), position)

    def read_block(
        self,
        batch: int,
        min_bytes: int = READ_BLOCK_BYTES,
        damaged: list[Damage] | None = None,
    ) -> list[StoredRecord]:
        """All records of consecutive batches from `batch` on, in order, checked.

        Whole batches, at least one; ends with the batch that reaches `min_bytes`, or
        with the segment. Go on with the last record's batch plus one, or `batch` + 1 if
        the list is empty, as it is when these batches were. Raises like `read`; with a
        list for `damaged`, bad records are left out and described there (see rule 4).
        """
        segment = self._holding(batch, batch << SLOT_BITS)
        return find_block(segment, self._file(segment), batch, min_bytes, damaged)

    def evidence(self, damage: Damage) -> bytes:
        """The bytes as they are on disk now. OSError, also once the file is gone."""
        return self._handles.of(damage.file).read_at(damage.offset, damage.length)

    def digest(self, batch: int) -> bytes:
        """What the next batch is chained to: it stands for all up to there. Raises like `read`."""
        return digest_behind(self._segments, batch, self._holding, self._file)

    def candidates(self, key: int) -> list[range]:
        """Batch numbers that may hold this key, as ranges, oldest first.

        Those whose committed key ranges, folded over 16 KiB of log, include it; so a
        range may hold batches that do not. Walks the entries of matching segments only.
        """
        self._check()
        found: list[range] = []
        for segment in self._segments[:]:
            index = segment.indexed(self._file(segment))
            if index.key_min <= key <= index.key_max:
                found += index.candidates(key, segment.last)
        return found

    def replay(
        self, first: int = 0, damaged: list[Damage] | None = None
    ) -> Iterator[tuple[BatchInfo, list[StoredRecord]]]:
        """All batches from `first` on (0: from the oldest), in order, with their records.

        For the start, before anything is committed. Every digest and checksum is
        verified: CorruptError at the first that disagrees, or `damaged` as in rule 4.
        Memory: 4 MiB, or one batch.
        """
        self._check()
        for segment in self._segments[:]:
            if segment.last >= first:
                yield from segment.replay(self._file(segment), first, damaged)

    def trim(self, before: int) -> int:
        """Whole sealed segments older than batch `before` are gone; returns the oldest kept.

        Reads of what went raise TrimmedError. What is gone is first named in META, so
        a crash in between leaves no gap. LogFailed.
        """
        self._check()
        gone = [s for s in self._segments[:-1] if s.last < before]
        if gone:
            kept = self._segments[len(gone) :]
            self.oldest = kept[0].first
            self._segments = kept
            try:
                self._meta.oldest = self.oldest
                # A full disk may have kept META from counting it; what it counts must stay.
                self._meta.newest = self._active.segment.first
                write_meta(self._disk, self._meta)
                for segment in gone:
                    self._handles.forget(segment.name)
                    self._disk.remove(segment.name)
                self._disk.sync_directory()
            except OSError as error:
                raise self._fence("a trim", error) from error
        return self.oldest

    def close(self) -> None:
        """The log is sealed: everything durable, the stop clean, the lock released.

        A fenced log is only released, unsealed. LogFailed if sealing fails. Twice is once.
        """
        try:
            if self._failure is None:
                self._sync()
                if not self._active.segment.sealed:
                    self._active.seal(self._disk)
                self._failure = LogFailed("a call", OSError(errno.EBADF, "the log is closed"))
        except OSError as error:
            raise self._fence("closing", error) from error
        finally:
            self._disk.unlock()

    def statistics(self) -> LogStatistics:
        """What may be looked at, as of now. Sums over segments; no disk is asked."""
        segments = self._segments[:]
        return LogStatistics(
            len(segments),
            sum(segment.disk_bytes for segment in segments),
            self.oldest,
            self.written,
            self.durable,
            self._torn_bytes,
            self._last_sync_s,
            self._spare is not None,
        )

    @property
    def spare_ready(self) -> bool:
        """Whether the next segment waits (see prepare_next)."""
        return self._spare is not None

    def free_bytes(self) -> int:
        """Room on the disk, for the caller's watermarks. OSError: asking does not fence."""
        return self._disk.free_bytes()

    def _make_room(self, length: int) -> None:
        """The active segment has room for this batch: a new one, sealed behind the old."""
        if self._active.segment.empty:
            self._active.enlarge(length)
            return
        if not self._active.segment.sealed:  # else an earlier try found no room behind it
            self._sync()  # before the seal: a footer says that all before it is durable
            self._active.seal(self._disk)
        least = size_for(length)
        sizes = (least, max(least, self._settings.segment_bytes))
        spare, self._spare = self._spare, None
        try:
            self._active = next_segment(self._disk, self._meta, self._active.segment, sizes, spare)
        except NoRoom:
            self._spare = spare
            raise
        self._segments.append(self._active.segment)

    def _sync(self) -> None:
        """All that is written is durable; OSError. Not asked of the disk if it already is."""
        written = self.written
        if self.durable < written:
            started = perf_counter()
            self._active.file.sync_data()
            self._last_sync_s = perf_counter() - started
            self.durable = written

    def _holding(self, number: int, position: int) -> Segment:
        """The segment of this batch; TrimmedError, NoSuchPosition."""
        self._check()
        segments = self._segments
        if number < self.oldest:
            raise TrimmedError(position, self.oldest) if number else _never(position)
        if number > self.written:
            raise NoSuchPosition(position, f"the newest batch is {self.written}")
        return segments[bisect_right(segments, number, key=_first) - 1]

    def _file(self, segment: Segment) -> File:
        """The segment's file, for reading. Fences if it cannot be opened and was not trimmed."""
        try:
            return self._handles.of(segment.name)
        except OSError as error:
            if segment.first < self.oldest:
                raise TrimmedError(segment.last << SLOT_BITS, self.oldest) from error
            raise self._fence(f"opening {segment.name} for reading", error) from error

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fence(self, doing: str, error: OSError) -> LogFailed:
        """No later call succeeds; returns what to raise."""
        self._failure = LogFailed(doing, error)
        return self._failure


def _first(segment: Segment) -> int:
    return segment.first


def _never(position: int) -> NoSuchPosition:
    return NoSuchPosition(position, "batches are counted from 1")

"""The log: numbered batches of records, each durable before anybody is told.

    begin -> BatchBuilder.add ... -> commit -> written -> (sync) -> durable
    read, read_block, holding (see Reads),
    candidates, replay                          from any thread, up to `written`
    adopt, drop, trim                           from one thread beside commit
    close

Rules:

1. One writer: commit, sync and close are never called at the same time; nor are adopt,
   drop and trim, but these may run in another thread beside commit and sync, as
   prepare_next and begin and add for later batches may. They share the list of files and
   META with a roll (see has_room), under one lock: so a commit that rolls may wait for
   them, some syncs long; one that does not roll never does.
2. Batches are committed in the order they were begun, none left out.
3. After an error of the disk the log is fenced: every verb but close raises LogFailed.
   Nothing is tried twice (the kernel may have dropped what a sync failed to write).
4. A record whose checksum fails costs that record, if the caller has a place for it: `read`
   raises DamagedRecord; `read_block` and `replay` go on if they are given a list, leave bad
   records out and append a Damage for each stretch: file, offset and length (evidence() gives
   the bytes), position and number of the slots lost. A damaged batch header is CorruptError.
5. What is dropped or cleaned away leaves no trace but TrimmedError. Batches from `whole_from`
   on are as they were written; what is older may have gaps and be sparse.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator
from time import perf_counter

from qbroker.log.active import prepare_spare, size_for
from qbroker.log.batch import BatchBuilder, Stamp
from qbroker.log.cleaning import Rewritten
from qbroker.log.disk import FULL, Disk, File
from qbroker.log.errors import LogError, LogFailed, NoRoom, NoSuchPosition, TrimmedError
from qbroker.log.format import (
    FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
    SLOT_BITS,
    BatchInfo,
    StoredRecord,
    rounded,
)
from qbroker.log.lookup import find_digest
from qbroker.log.manifest import Manifest
from qbroker.log.reads import Reads
from qbroker.log.recovery import Recovered, next_segment, recover
from qbroker.log.salvage import Damage
from qbroker.log.segment import Segment
from qbroker.log.settings import LogSettings
from qbroker.log.statistics import (
    Books,
    LogStatistics,
    SegmentStatistics,
    of_segments,
    summed,
)
from qbroker.log.window import Handles

__all__ = ["Log", "LogSettings"]


class Log(Reads):
    """One directory's log. Made by Log.open.

    `written` is the highest batch handed to the kernel, `durable` the highest on stable
    storage; 0 while there is none. `oldest` is the lowest batch kept. All only grow.
    `clean`: the last stop was a clean one, or there was none.
    """

    __slots__ = (
        "_active",
        "_begun",
        "_books",
        "_closed",
        "_disk",
        "_failure",
        "_handles",
        "_manifest",
        "_settings",
        "_spare",
        "clean",
        "durable",
        "written",
    )

    def __init__(self, disk: Disk, settings: LogSettings, found: Recovered) -> None:
        active = found.active
        self._disk = disk
        self._settings = settings
        self._active = active
        self._handles = Handles(disk)
        self._books = Books(found.torn_bytes)
        self._manifest = Manifest(disk, self._handles, found.meta, found.sealed, self._books)
        self._manifest.add(active.segment)
        self._spare: File | None = None
        self._failure: LogFailed | None = None
        self._closed = False
        self.clean = found.clean
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
        return self._manifest.meta.log

    @property
    def oldest(self) -> int:
        """The lowest batch kept, or the next one, if none is."""
        return self._manifest.segments[0].first

    @property
    def whole_from(self) -> int:
        """The lowest batch from which on nothing was dropped or cleaned."""
        return self._manifest.meta.whole_from

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
    ) -> None:
        """The batch is written; if `sync`, it and all before it are durable.

        An empty batch is written too: it tells recovery what was durable. LogFailed, and the
        log fenced, if the disk refuses: the batch may then be on disk or not. NoRoom if it needs a
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
            stamp = Stamp(self.durable, epoch, wall_ms, *batch.keys)
            self._active.append(batch, stamp)
            self.written = batch.number
            self._books.user += batch.body_bytes
            self._books.batches += length
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

    def evidence(self, damage: Damage) -> bytes:
        """The bytes as they are on disk now. OSError, also once the file is gone."""
        return self._handles.of(damage.file).read_at(damage.offset, damage.length)

    def digest(self, batch: int) -> bytes:
        """What the next batch is chained to: it stands for all up to there. Raises like `read`."""
        known = self._manifest.digest_behind(batch)
        return known or find_digest(*self._found(batch << SLOT_BITS), batch)

    def candidates(self, key: int) -> list[range]:
        """Batch numbers that may hold this key, as ranges, oldest first.

        Those whose committed key ranges, folded over 16 KiB of log, include it; so a
        range may hold batches that do not, or that are gone. Walks the entries of
        segments whose key range includes it, and reads those not read yet.
        """
        found: list[range] = []
        for segment, file in self._files(lambda segment: segment.may_hold(key)):
            index = segment.indexed(file)
            found += index.candidates(key, min(segment.last, index.last))
        return found

    def replay(
        self, first: int = 0, damaged: list[Damage] | None = None
    ) -> Iterator[tuple[BatchInfo, list[StoredRecord]]]:
        """All batches from `first` on (0: all there are), in order, with their records.

        For the start, before anything is committed. TrimmedError if `first` is below
        `whole_from`: only with 0 gaps are passed over, and cleaned segments are sparse.
        Every digest and checksum is verified: CorruptError at the first that disagrees,
        or `damaged` as in rule 4. Memory: 4 MiB, or one batch.
        """
        if 0 < first < self.whole_from:
            raise TrimmedError(first << SLOT_BITS, f"the log is whole from {self.whole_from} on")
        for segment, file in self._files(lambda segment: segment.last >= first):
            yield from segment.replay(file, first, damaged)

    def adopt(self, rewritten: Rewritten) -> bool:
        """The rewritten file stands for the segments it was made of; they are gone.

        False, and the log as before, on a full disk. CorruptError, ForeignError or
        StaleError, and the log as before, if the file is not what it should be; LogFailed.
        It is removed then. Reads on their way finish. A rename, META, some syncs.
        """
        return self._cleaned("an adoption", lambda: self._manifest.adopt(rewritten))

    def drop(self, firsts: Collection[int]) -> bool:
        """The segments that begin at these batches are gone, wherever they are.

        Reads of what went raise TrimmedError. False, and nothing gone, on a disk too full
        for META. ValueError for the active segment; those gone already are passed over.
        LogFailed. META names the gap before files go: a crash in between leaves none.
        """
        return self._cleaned("a drop", lambda: self._manifest.drop(firsts))

    def trim(self, before: int) -> int:
        """Whole sealed segments older than batch `before` are gone; returns the oldest kept.

        A drop from the beginning: see there.
        """
        self.drop([s.first for s in self._manifest.segments[:-1] if s.last < before])
        return self.oldest

    def close(self, *, clean: bool = False) -> None:
        """The log is sealed: everything durable, the lock released. Twice is once.

        `clean`: a start that ends before it served passes on what it found. A log that is
        fenced is only released, and raises that if it was to be clean; one that waits for room
        is never clean. LogFailed.
        """
        try:
            if self._failure is None:
                self._sync()
                if not self._active.segment.sealed:
                    self._active.seal(self._disk, clean=clean)
                self._failure = LogFailed("a call", OSError(errno.EBADF, "the log is closed"))
                self._closed = True
            elif clean and not self._closed:
                raise self._failure
        except OSError as error:
            raise self._fence("closing", error) from error
        finally:
            self._disk.unlock()

    def statistics(self) -> LogStatistics:
        """What may be looked at, as of now. Sums over segments; no disk is asked."""
        spare = self._spare is not None
        return summed(self.segments(), self._books, self.written, self.durable, spare_ready=spare)

    def segments(self) -> list[SegmentStatistics]:
        """A row for each segment, oldest first. No disk is asked."""
        return of_segments(self._manifest.segments)

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
            self._active = next_segment(self._disk, self._active.segment, sizes, spare)
        except NoRoom:
            self._spare = spare
            raise
        self._manifest.add(self._active.segment)
        self._books.batches += SEGMENT_HEADER_BYTES + FOOTER_BYTES

    def _sync(self) -> None:
        """All that is written is durable; OSError. Not asked of the disk if it already is."""
        written = self.written
        if self.durable < written:
            started = perf_counter()
            self._active.file.sync_data()
            self._books.last_sync_s = perf_counter() - started
            self.durable = written

    def _cleaned(self, doing: str, change: Callable[[], bool]) -> bool:
        """What the change of the manifest returns; fences if the disk refuses it."""
        self._check()
        try:
            return change()
        except OSError as error:
            raise self._fence(doing, error) from error

    def _found(self, position: int) -> tuple[Segment, File]:
        """The segment that holds this batch, and its file; TrimmedError, NoSuchPosition."""
        self._check()
        number = position >> SLOT_BITS
        if not number:
            raise NoSuchPosition(position, "batches are counted from 1")
        if number > self.written:
            raise NoSuchPosition(position, f"the newest batch is {self.written}")
        try:
            found = self._manifest.found(number)
        except OSError as error:
            raise self._fence(f"opening the file of batch {number} for reading", error) from error
        if found is None:
            raise TrimmedError(position, "its segment was dropped")
        return found

    def _files(self, wanted: Callable[[Segment], bool]) -> Iterator[tuple[Segment, File]]:
        """The segments wanted, oldest first, and their files. Fences if one cannot be opened."""
        self._check()
        try:
            yield from self._manifest.files(wanted)
        except OSError as error:
            raise self._fence("opening a segment for reading", error) from error

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fence(self, doing: str, error: OSError) -> LogFailed:
        """No later call succeeds; returns what to raise."""
        self._failure = LogFailed(doing, error)
        return self._failure

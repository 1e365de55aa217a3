"""A log as another process sees it: read-only, without the lock, as far as it is told.

The writer goes on meanwhile: it appends to its last file, seals it, makes the next, and
removes files nobody needs. A reader is told by the writer's process up to which batch
the log is durable (`upto`), reads up to there and trusts nothing behind: a batch at or
below `upto` that does not verify is damage, never a torn tail.

A file that went away while it was wanted is looked for again in META; one that is open
can be read to its end. Belongs to one thread.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from qbroker.log.disk import Disk, File
from qbroker.log.errors import CorruptError, NoSuchPosition, TrimmedError
from qbroker.log.format import SLOT_BITS, BatchInfo, StoredRecord
from qbroker.log.lookup import READ_BLOCK_BYTES, find_block, find_digest, find_record
from qbroker.log.manifest import check_order, open_segment, segment_behind
from qbroker.log.meta import Meta, read_meta
from qbroker.log.salvage import Damage
from qbroker.log.segment import SUFFIX, Segment, segment_name
from qbroker.log.window import Handles

READER_HANDLES_MAX = 4
"""Files kept open: few, because what is removed takes room until it is closed."""
LOOKS_MAX = 20
"""How often META is read anew because a file it counts had gone, before that is damage."""


class LogReader:
    """See the module. Made by LogReader.open; nothing is changed on disk."""

    __slots__ = ("_disk", "_handles", "_meta", "_segments")

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._handles = Handles(disk, READER_HANDLES_MAX)
        self._meta: Meta = read_meta(disk)
        self._segments: list[Segment] = []

    @classmethod
    def open(cls, disk: Disk) -> LogReader:
        """META, and every segment's header and footer, are read and fit together.

        Raises CorruptError, ForeignError, FormatError, OSError.
        """
        reader = cls(disk)
        reader._look()
        return reader

    @property
    def log_id(self) -> bytes:
        """16 random bytes, given when the directory was made."""
        return self._meta.log

    @property
    def oldest(self) -> int:
        """The lowest batch kept, when META was last read."""
        return self._meta.oldest

    def replay(
        self, first: int, upto: int, damaged: list[Damage] | None = None
    ) -> Iterator[tuple[BatchInfo, list[StoredRecord]]]:
        """All batches from `first` (0: from the oldest) to `upto`, in order, with records.

        Every digest and checksum is verified: CorruptError at the first that disagrees,
        UnreadableError where the disk refuses, TrimmedError if `first` is gone. With a
        list for `damaged`, bad records are left out and described (rule 4 in log.py).
        Goes on behind the last batch of an earlier call and reads nothing before it.
        Memory: 4 MiB, or one batch.
        """
        number = first or self.oldest
        while number <= upto:
            segment, file = self._holding(number)
            if number <= segment.last:
                for info, records in segment.replay(file, number, damaged):
                    if info.number > upto:
                        return
                    yield info, records
            elif not segment.sealed:
                for info, records in segment.follow(file, upto, damaged):
                    if info.number >= number:
                        yield info, records
            else:
                self._segments.append(self._next(segment))
                continue
            number = max(number, segment.last + 1)

    def read(self, position: int) -> StoredRecord:
        """The record that covers this position, which was durable when it was given out.

        Raises TrimmedError, NoSuchPosition, CorruptError. As cheap as Log.read, once
        the batch was met; else what is before it in its file is walked.
        """
        segment, file = self._reaching(position >> SLOT_BITS)
        return find_record(segment, file, position)

    def read_block(
        self,
        batch: int,
        min_bytes: int = READ_BLOCK_BYTES,
        damaged: list[Damage] | None = None,
    ) -> list[StoredRecord]:
        """All records of consecutive batches from `batch` on: see Log.read_block.

        `batch` was durable when it was given out; no later one is looked for.
        """
        segment, file = self._reaching(batch)
        return find_block(segment, file, batch, min_bytes, damaged)

    def digest(self, batch: int) -> bytes:
        """What the batch behind this one is chained to: see Log.digest."""
        following = segment_behind(self._segments, batch)
        if following is not None:
            return following.header.previous
        segment, file = self._reaching(batch)
        return find_digest(segment, file, batch)

    def _reaching(self, number: int) -> tuple[Segment, File]:
        """The segment that holds the batch, walked up to it."""
        if not number:
            raise NoSuchPosition(number, "batches are counted from 1")
        segment, file = self._holding(number)
        while number > segment.last:
            for _ in self.replay(segment.last + 1, number):
                pass
            segment, file = self._holding(number)
        return segment, file

    def _holding(self, number: int) -> tuple[Segment, File]:
        """The segment that holds the batch, or the last one known, and its file."""
        while True:
            if number < self.oldest:
                raise TrimmedError(number << SLOT_BITS, self.oldest)
            segment = self._segments[bisect_right(self._segments, number, key=_first) - 1]
            try:
                return segment, self._handles.of(segment.name)
            except FileNotFoundError:
                self._look()  # ends with files that are there, so each round is one removal

    def _next(self, sealed: Segment) -> Segment:
        """The segment that continues this one: it is there, because it holds durable batches."""
        name = segment_name(sealed.last + 1)
        try:
            following = self._opened(name)
        except FileNotFoundError as error:
            raise _missing(name, sealed.last + 1) from error
        check_order([sealed, following])
        return following

    def _look(self) -> None:
        """META and the ends of all files are read anew; what was walked stays known."""
        for _ in range(LOOKS_MAX):
            self._meta = read_meta(self._disk)
            oldest = segment_name(self._meta.oldest)
            names = [n for n in self._disk.names() if n.endswith(SUFFIX) and n >= oldest]
            # One walked only in part, which has a successor now, is taken as its footer says.
            known = {s.name: s for s in self._segments if s.sealed or s.name == names[-1]}
            try:
                if oldest not in names:
                    raise FileNotFoundError(oldest)
                self._segments = [known.get(name) or self._opened(name) for name in names]
            except FileNotFoundError as error:
                missing = error
            else:
                check_order(self._segments)
                return
        raise _missing(oldest, self._meta.oldest) from missing

    def _opened(self, name: str) -> Segment:
        return open_segment(self._disk.open(name), name, self.log_id)


def _first(segment: Segment) -> int:
    return segment.first


def _missing(name: str, number: int) -> CorruptError:
    return CorruptError(name, 0, number, number, "the file is missing")

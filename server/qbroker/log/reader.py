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
from qbroker.log.lookup import find_digest
from qbroker.log.manifest import check_next, check_order, counted, digest_in, open_segment
from qbroker.log.meta import Meta, read_meta
from qbroker.log.reads import Reads
from qbroker.log.salvage import Damage
from qbroker.log.segment import Segment, segment_name
from qbroker.log.window import Handles

READER_HANDLES_MAX = 4
"""Files kept open: few, because what is removed takes room until it is closed."""


class LogReader(Reads):
    """See the module. Made by LogReader.open; nothing is changed on disk."""

    __slots__ = ("_disk", "_handles", "_meta", "_segments")

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._handles = Handles(disk, READER_HANDLES_MAX)
        self._meta = read_meta(disk)
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
        return self._segments[0].first

    @property
    def whole_from(self) -> int:
        """The lowest batch from which on nothing was dropped or cleaned, by the same look."""
        return self._meta.whole_from

    def sealed(self, upto: int) -> list[Segment]:
        """The sealed segments wholly at or below batch `upto`, oldest first, by a new look.

        For cleaning: what may be rewritten (see rewrite) or dropped. Without the newest that
        META counts: sealed, it may still wait for its successor, and the log would refuse.
        """
        self._look()
        newest = self._meta.newest
        return [s for s in self._segments if s.sealed and s.last <= upto and s.first < newest]

    def replay(
        self, first: int, upto: int, damaged: list[Damage] | None = None
    ) -> Iterator[tuple[BatchInfo, list[StoredRecord]]]:
        """All batches from `first` (0: all there are) to `upto`, in order, with records.

        Every digest and checksum is verified: CorruptError at the first that disagrees,
        UnreadableError where the disk refuses, TrimmedError if one was dropped or its
        segment cleaned; but with 0 gaps are passed over, and cleaned segments sparse. With a
        list for `damaged`, bad records are left out and described (rule 4 in log.py).
        Goes on behind the last batch of an earlier call and reads nothing before it.
        Memory: 4 MiB, or one batch.
        """
        number = first or self.oldest
        while number <= upto:
            segment, file = self._holding(number)
            if first and segment.sparse:
                raise TrimmedError(number << SLOT_BITS, "its segment was cleaned")
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
                self._go_on(segment)
                continue
            number = max(number, segment.last + 1 if first else self._after(segment))

    def digest(self, batch: int) -> bytes:
        """What the batch behind this one is chained to: see Log.digest."""
        known = digest_in(self._meta, self._segments, batch)
        return known or find_digest(*self._found(batch << SLOT_BITS), batch)

    def _found(self, position: int) -> tuple[Segment, File]:
        """See Reads; walked up to the batch, which was durable when it was given out.

        As cheap as Log's, once the batch was met; else what is before it in its file is walked.
        """
        number = position >> SLOT_BITS
        if not number:
            raise NoSuchPosition(position, "batches are counted from 1")
        segment, file = self._holding(number)
        while number > segment.last:
            for _ in self.replay(segment.last + 1, number):
                pass
            segment, file = self._holding(number)
        return segment, file

    def _holding(self, number: int) -> tuple[Segment, File]:
        """The segment that holds the batch, or the last one known, and its file."""
        while True:
            at = max(bisect_right(self._segments, number, key=_first) - 1, 0)
            segment = self._segments[at]
            in_a_gap = number > segment.last and at + 1 < len(self._segments)
            if number < segment.first or in_a_gap:
                raise TrimmedError(number << SLOT_BITS, "its segment was dropped")
            try:
                return segment, self._handles.of(segment.name)
            except FileNotFoundError:
                self._look()  # ends with files that are there, so each round is one removal

    def _after(self, segment: Segment) -> int:
        """The first batch behind the segment, and behind the gap that may follow it."""
        at = bisect_right(self._segments, segment.last, key=_first)
        return self._segments[at].first if at < len(self._segments) else segment.last + 1

    def _go_on(self, sealed: Segment) -> None:
        """The segment behind the last one is known: it is there, for it holds durable batches."""
        name = segment_name(sealed.last + 1)
        try:
            following = self._opened(name)
        except FileNotFoundError as error:
            self._look()
            if self._segments[-1].last <= sealed.last:
                why = "the file is missing"
                raise CorruptError(name, 0, sealed.last + 1, sealed.last + 1, why) from error
            return
        check_next((sealed.span, sealed.name), (following.span, name))
        self._segments.append(following)

    def _look(self) -> None:
        """META and the ends of all files are read anew; what was walked stays known.

        Files and META cannot be read at one stroke: if they do not fit, and META has
        changed since, they are read once more.
        """
        meta = read_meta(self._disk)
        while True:
            try:
                self._segments = self._fitting(meta)
                self._meta = meta
                return
            except (CorruptError, FileNotFoundError):
                before, meta = meta, read_meta(self._disk)
                if meta == before:
                    raise

    def _fitting(self, meta: Meta) -> list[Segment]:
        """The segments META counts, as their ends describe them."""
        names, _ = counted(meta, self._disk.names())
        # One walked only in part, which has a successor now, is taken as its footer says.
        known = {s.name: s for s in self._segments if s.sealed or s.name == names[-1]}
        segments = [known.get(name) or self._opened(name) for name in names]
        check_order(meta, segments)
        return segments

    def _opened(self, name: str) -> Segment:
        return open_segment(self._disk.open(name), name, self.log_id)


def _first(segment: Segment) -> int:
    return segment.first

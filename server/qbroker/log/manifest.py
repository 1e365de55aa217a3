"""Which files make up a log, and that each continues the one before.

On disk META says it (gaps, cleaned segments) together with the files' own headers; in
memory it is the Manifest. Changes are made in the order that a crash cannot hurt: new
files are durable before META names them, old ones go only after META has ceased to. So
whatever META does not count is a leftover.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from operator import add, attrgetter
from typing import TYPE_CHECKING

from qbroker.log.disk import FULL, READ_ONLY, Disk, File
from qbroker.log.errors import CorruptError, ForeignError, FormatError, LogError, StaleError
from qbroker.log.format import (
    FOOTER_BYTES,
    FORMAT,
    SEGMENT_HEADER_BYTES,
    Malformed,
    first_chain,
    segment_format,
    unpack_footer,
    unpack_segment_header,
)
from qbroker.log.meta import Cleaned, Meta, Span, publish_meta, stage_meta
from qbroker.log.segment import Segment, segment_name
from qbroker.log.statistics import Books
from qbroker.log.window import Handles

if TYPE_CHECKING:
    from qbroker.log.cleaning import Rewritten

_NAME = re.compile(r"(\d{20})(?:\.(\d+))?\.qlog")
_first = attrgetter("first")
BEGINNING = Span(0, 0, 0, 0, bytes(16), bytes(16))
"""What the first segment of a log continues."""


class Manifest:
    """The segments of an open log, oldest first, and META that counts them.

    `segments` is replaced, never changed, so readers in any thread need no lock; whoever
    changes it holds `_lock`: a roll, and cleaning beside it. Raises OSError as the disk
    does, and then only a new start knows what META says, unless it is said otherwise.
    """

    __slots__ = ("_books", "_disk", "_handles", "_lock", "meta", "segments")

    def __init__(
        self, disk: Disk, handles: Handles, meta: Meta, segments: list[Segment], books: Books
    ) -> None:
        self._disk = disk
        self._handles = handles
        self._lock = threading.Lock()
        self.meta = meta
        self.segments = segments
        self._books = books

    def found(self, number: int) -> tuple[Segment, File] | None:
        """The segment whose span holds this batch, and its file; None if it was dropped."""
        while True:
            segments = self.segments
            segment = segments[max(bisect_right(segments, number, key=_first) - 1, 0)]
            if not segment.first <= number <= segment.last:
                return None
            file = self._opened(segment)
            if file is not None:
                return segment, file

    def files(self, wanted: Callable[[Segment], bool]) -> Iterator[tuple[Segment, File]]:
        """The segments wanted, oldest first, and their files, whatever is changed meanwhile.

        What is dropped before its turn is passed over; what comes for segments that were
        given already may give them again.
        """
        after, segments = 0, self.segments
        while True:
            for segment in segments:
                if segment.last <= after or not wanted(segment):
                    continue
                file = self._opened(segment)
                if file is None:
                    segments = self.segments
                    break
                after = segment.last
                yield segment, file
            else:
                return

    def _opened(self, segment: Segment) -> File | None:
        """The segment's file, for reading; None if it was replaced or dropped meanwhile."""
        try:
            return self._handles.of(segment.name)
        except OSError:
            if segment in self.segments:
                raise
            return None

    def digest_behind(self, batch: int) -> bytes | None:
        """What the next batch is chained to, where META or a header says it; see digest_in."""
        return digest_in(self.meta, self.segments, batch)

    def add(self, segment: Segment) -> None:
        """The new active segment, whose file is there, is counted.

        On a full disk META goes on counting an older one as the newest: the log must go
        on, and what is lost is a second look, not data.
        """
        with self._lock:
            if self.meta.newest != segment.first:
                self._say(replace(self.meta, newest=segment.first))
            self.segments = [*self.segments, segment]

    def drop(self, firsts: Collection[int]) -> bool:
        """The segments that begin at these batches are gone; False, and none is, on a full disk.

        Those that are gone already are passed over, as is the last if it is sealed and
        waits for a successor. ValueError for the active one.
        """
        with self._lock:
            *before, last = self.segments
            if last.first in firsts and not last.sealed:
                raise ValueError(f"batch {last.first} begins the active segment")
            gone = [segment for segment in before if segment.first in firsts]
            if not gone:
                return True
            kept = [segment for segment in self.segments if segment not in gone]
            gaps = joined([*self.meta.gaps, *(segment.span for segment in gone)])
            if not self._recount(kept, gaps):
                return False
            self._books.dropped += len(gone)
        self._remove(gone)
        return True

    def adopt(self, rewritten: Rewritten) -> bool:
        """The rewritten file stands for its sources; False, and it is removed, on a full disk.

        CorruptError, ForeignError, or StaleError if its sources are not what the log has
        there: it is removed then, too. The sources go once META counts the new file.
        """
        try:
            segment = rewritten.opened(self._disk, self.meta.log)
            with self._lock:
                gone, gaps = self._stood_for(segment, rewritten.sources)
                self._disk.rename(rewritten.name, segment.name)
                self._disk.sync_directory()
                self._books.cleaned += segment.disk_bytes
                at = self.segments.index(gone[0])
                kept = [*self.segments[:at], segment, *self.segments[at + len(gone) :]]
                if not self._recount(kept, gaps):
                    self._disk.remove(segment.name)
                    return False
        except LogError:
            self._disk.remove(rewritten.name)
            raise
        self._remove(gone)
        return True

    def _stood_for(
        self, segment: Segment, sources: Sequence[str]
    ) -> tuple[list[Segment], list[Span]]:
        """The segments this cleaned one stands for, and the gaps that are not within it."""
        span = segment.span
        gone = [s for s in self.segments[:-1] if span.first <= s.first and s.last <= span.last]
        within = [g for g in self.meta.gaps if span.first <= g.first and g.last <= span.last]
        same = [s.name for s in gone] == list(sources)
        if not same or joined([*within, *(s.span for s in gone)]) != [span]:
            raise StaleError(segment.first, segment.last)
        return gone, [gap for gap in self.meta.gaps if gap not in within]

    def _recount(self, kept: list[Segment], gaps: Sequence[Span]) -> bool:
        """META counts these and no others; False, and nothing changed, on a full disk."""
        cleaned = tuple(
            Cleaned(s.span, s.header.generation, s.digest) for s in kept if s.header.generation
        )
        # Also the newest: a full disk may have kept META from counting it so far.
        newest = kept[-1].first
        meta = replace(self.meta, newest=newest, gaps=tuple(gaps), cleaned=cleaned)
        if not self._say(meta):
            return False
        self.segments = kept
        return True

    def _say(self, meta: Meta) -> bool:
        """META says this; False, and it says what it said, on a full disk."""
        try:
            self._books.meta += stage_meta(self._disk, meta)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return False
        publish_meta(self._disk)
        self.meta = meta
        return True

    def _remove(self, gone: Iterable[Segment]) -> None:
        """Files that nothing counts any more are gone; who reads one may finish."""
        for segment in gone:
            self._disk.remove(segment.name)
            self._handles.forget(segment.name)
        self._disk.sync_directory()


def joined(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, those that touch made one."""
    found: list[Span] = []
    for span in sorted(spans, key=_first):
        if found and found[-1].continued_by(span):
            found[-1] = reduce(add, (found[-1], span))
        else:
            found.append(span)
    return found


def counted(meta: Meta, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """As sort_names; CorruptError if a file is missing that META names."""
    kept, leftovers = sort_names(meta, names)
    needed = {segment_name(each.span.first, each.generation) for each in meta.cleaned}
    generations = {each.span.first: each.generation for each in meta.cleaned}
    needed.add(segment_name(meta.newest, generations.get(meta.newest, 0)))
    for name in sorted(needed.difference(kept)):
        first = int(name[:20])
        raise CorruptError(name, 0, first, first, "the file is missing")
    return kept, leftovers


def sort_names(meta: Meta, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of the names in the directory the segments META counts, in order, and the leftovers.

    Leftovers are what a drop or an adoption did not finish removing, or never counted.
    """
    cleaned = {each.span.first: each.generation for each in meta.cleaned}
    spans = sorted([*meta.gaps, *(each.span for each in meta.cleaned)], key=_first)
    kept: list[str] = []
    leftovers: list[str] = []
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        first, generation = int(match[1]), int(match[2] or 0)
        at = bisect_right(spans, first, key=_first) - 1
        released = at >= 0 and first <= spans[at].last
        wanted = cleaned.get(first, 0) == generation if generation else not released
        (kept if wanted else leftovers).append(name)
    return kept, leftovers


def check_order(meta: Meta, segments: Iterable[Segment]) -> None:
    """Each segment, or gap, continues the one before: by number, by batch and by digest.

    And each cleaned one is the very file that META counts. Else CorruptError.
    """
    cleaned = {each.span.first: each for each in meta.cleaned}
    spans = [(BEGINNING, "the beginning")]
    spans += [(gap, "a gap in META") for gap in meta.gaps]
    for segment in segments:
        generation = segment.header.generation
        if generation:
            found = Cleaned(segment.span, generation, segment.digest)
            if cleaned.get(segment.first) != found:
                why = "it is not the cleaned file that META counts"
                raise CorruptError(segment.name, 0, segment.first, segment.last, why)
        spans.append((segment.span, segment.name))
    spans.sort(key=lambda each: each[0].first)
    for before, after in pairwise(spans):
        check_next(before, after)


def check_next(before: tuple[Span, str], after: tuple[Span, str]) -> None:
    """The one behind continues the one before, both with their names; else CorruptError."""
    (span, what), (following, name) = before, after
    if not span.continued_by(following):
        why = f"it does not continue {what}, which ends at batch {span.last}"
        raise CorruptError(name, 0, following.first, following.first, why)


def digest_in(meta: Meta, segments: Sequence[Segment], batch: int) -> bytes | None:
    """The digest of a batch with which a segment or a gap ends, also if it is gone itself."""
    at = bisect_right(segments, batch, key=_first)
    if at < len(segments) and segments[at].first == batch + 1:
        return segments[at].header.previous
    return next((gap.chain for gap in meta.gaps if gap.last == batch), None)


def open_segment(file: File, name: str, log: bytes, stands_for: str = "") -> Segment:
    """The segment as its header and footer describe it; not `sealed` if it has no footer.

    `stands_for` is the name it will have, if that is not `name`. Raises CorruptError,
    FormatError, ForeignError, OSError. Reads both ends.
    """
    match = _NAME.fullmatch(stands_for or name)
    assert match is not None
    first, generation = int(match[1]), int(match[2] or 0)
    size = file.size()
    try:
        block = file.read_at(0, SEGMENT_HEADER_BYTES)
        found = segment_format(block)
        if found != FORMAT and found:
            raise FormatError(name, found, FORMAT)
        header = unpack_segment_header(block)
        if (header.first, header.generation) != (first, generation):
            raise Malformed(
                f"its header says it begins at batch {header.first}, generation {header.generation}"
            )
        if header.log != log:
            raise ForeignError(name, f"log {header.log.hex()}, not {log.hex()}")
        segment = Segment(header)
    except Malformed as error:
        raise CorruptError(name, 0, first, first, str(error)) from error
    try:
        end = file.read_at(size - FOOTER_BYTES, FOOTER_BYTES)
        segment.seal(unpack_footer(end, 0, segment.seed), first_chain(end))
    except Malformed as error:
        if generation:
            raise CorruptError(name, size, first, first, str(error)) from error
    return segment


def check_sealed(disk: Disk, file: File, segment: Segment, *, is_last: bool) -> None:
    """Only the last segment may lack the footer. A sealed one is read-only from now on."""
    if segment.sealed:
        disk.protect(segment.name, READ_ONLY)
    elif not is_last or file.mode() == READ_ONLY:
        # Read-only means sealed: the mode is set only once the footer is durable.
        why = "it was sealed, but no footer ends it"
        raise CorruptError(segment.name, file.size(), segment.first, segment.first, why)

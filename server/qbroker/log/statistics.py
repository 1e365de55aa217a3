"""What may be looked at: numbers about a log and its segments, as of a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qbroker.log.segment import Segment


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """What may be looked at.

    `torn_bytes` were cut at this start; never confirmed. Since this start: `user_bytes`
    in bodies of records, `file_bytes` in all for them, cleaning and META included, and
    `write_amplification`, the latter by the former (0 while there is nothing).
    """

    segments: int
    bytes: int
    oldest: int
    written: int
    durable: int
    torn_bytes: int
    last_sync_s: float
    spare_ready: bool
    cleaned_segments: int
    cleaned_bytes: int
    dropped_segments: int
    user_bytes: int
    file_bytes: int
    write_amplification: float


@dataclass(frozen=True, slots=True)
class SegmentStatistics:
    """One file: its batches, how often it was cleaned, its bytes on disk, its records."""

    first: int
    last: int
    generation: int
    bytes: int
    records: int
    sealed: bool


class Books:
    """What was counted since the start; bytes, but for `dropped` segments.

    `dropped`, `meta` and `cleaned` belong to whoever changes the manifest, under its
    lock, the others to the writer.
    """

    __slots__ = ("batches", "cleaned", "dropped", "last_sync_s", "meta", "torn", "user")

    def __init__(self, torn_bytes: int) -> None:
        self.torn = torn_bytes
        self.user = self.batches = self.meta = self.cleaned = self.dropped = 0
        self.last_sync_s = 0.0

    @property
    def files(self) -> int:
        """All that was written for what users gave."""
        return self.batches + self.meta + self.cleaned


def of_segments(segments: Sequence[Segment]) -> list[SegmentStatistics]:
    """A row for each, oldest first. No disk is asked."""
    return [
        SegmentStatistics(s.first, s.last, s.header.generation, s.disk_bytes, s.records, s.sealed)
        for s in segments
    ]


def summed(
    rows: Sequence[SegmentStatistics],
    books: Books,
    written: int,
    durable: int,
    *,
    spare_ready: bool,
) -> LogStatistics:
    """The whole log, from its segments and what was counted."""
    return LogStatistics(
        segments=len(rows),
        bytes=sum(row.bytes for row in rows),
        oldest=rows[0].first,
        written=written,
        durable=durable,
        torn_bytes=books.torn,
        last_sync_s=books.last_sync_s,
        spare_ready=spare_ready,
        cleaned_segments=sum(row.generation > 0 for row in rows),
        cleaned_bytes=sum(row.bytes for row in rows if row.generation),
        dropped_segments=books.dropped,
        user_bytes=books.user,
        file_bytes=books.files,
        write_amplification=books.files / books.user if books.user else 0.0,
    )

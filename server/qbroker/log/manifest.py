"""Which files make up a log, and that each continues the one before."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise

from qbroker.log.disk import File
from qbroker.log.errors import CorruptError, ForeignError, FormatError
from qbroker.log.format import (
    FOOTER_BYTES,
    FORMAT,
    SEGMENT_HEADER_BYTES,
    Malformed,
    segment_format,
    unpack_footer,
    unpack_segment_header,
)
from qbroker.log.segment import SUFFIX, Segment


def open_segment(file: File, name: str, log: bytes) -> Segment:
    """The segment as its header and footer describe it; not `sealed` if it has no footer.

    Raises CorruptError, FormatError, ForeignError, OSError. Reads both ends.
    """
    first = int(name.removesuffix(SUFFIX))
    size = file.size()
    try:
        block = file.read_at(0, SEGMENT_HEADER_BYTES)
        found = segment_format(block)
        if found > FORMAT:
            raise FormatError(name, found, FORMAT)
        header = unpack_segment_header(block)
        if header.first != first:
            raise Malformed(f"its header says it begins at batch {header.first}")
        if header.log != log:
            raise ForeignError(name, f"log {header.log.hex()}, not {log.hex()}")
        segment = Segment(header)
    except Malformed as error:
        raise CorruptError(name, 0, first, first, str(error)) from error
    try:
        end = file.read_at(size - FOOTER_BYTES, FOOTER_BYTES)
        segment.adopt(unpack_footer(end, 0, segment.seed))
    except Malformed:
        pass
    return segment


def check_order(segments: Iterable[Segment]) -> None:
    """Each segment continues the one before: by number, by batch and by digest."""
    for before, after in pairwise(segments):
        header = after.header
        expected = (before.header.number + 1, before.last + 1, before.chain)
        if (header.number, header.first, header.previous) != expected:
            why = f"it does not continue {before.name}, which ends at batch {before.last}"
            raise CorruptError(after.name, 0, header.first, header.first, why)


def segment_behind(segments: list[Segment], batch: int) -> Segment | None:
    """The segment that begins behind this batch, if one does."""
    at = bisect_right(segments, batch, key=lambda segment: segment.first)
    found = segments[at] if at < len(segments) else None
    return found if found is not None and found.first == batch + 1 else None

"""Records found in a segment by its index, and checked: one, those with a needle, or a block.

Safe in any thread, beside the one writer.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from qbroker.log.disk import File
from qbroker.log.errors import DamagedRecord, NoSuchPosition, TrimmedError
from qbroker.log.format import (
    BATCH_HEADER_BYTES,
    CHAIN_BYTES,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SLOT_BITS,
    SLOTS_MAX,
    BatchInfo,
    Held,
    Malformed,
    StoredRecord,
    unpack_record,
    unpack_records,
)
from qbroker.log.salvage import Damage, next_header, salvaged
from qbroker.log.segment import Segment
from qbroker.log.window import Window

LOOKUP_BYTES = 16 << 10
"""Read at once when one record is looked up: about the distance of two index entries."""
SEARCH_BYTES = 64 << 10
"""Read at once when batches are searched: some of 16 KiB and their headers."""
CLEANED = "nothing needed it any more when its segment was cleaned"


def find_record(segment: Segment, file: File, position: int) -> StoredRecord:
    """The record that covers `position`, checked. Batches it does not hold are the caller's.

    Hops over record headers, so a large batch is not read whole. NoSuchPosition;
    DamagedRecord if it does not verify and its neighbours do; else CorruptError.
    """
    number, slot = position >> SLOT_BITS, position & (SLOTS_MAX - 1)
    window = Window(file, LOOKUP_BYTES)
    offset = SEGMENT_HEADER_BYTES
    try:
        offset, info = _locate(segment, window, number)
        if info is None or info.number != number:
            raise TrimmedError(position, CLEANED)
        if slot >= info.slots:
            raise NoSuchPosition(position, f"its batch has {info.slots} slots")
        try:
            return _covering(segment, window, offset, info, position)
        except Malformed as error:
            return _rescued(segment, window, (offset, info), position, str(error))
    except (Malformed, OSError) as error:
        raise segment.damaged(offset, number, error) from error


def find_block(
    segment: Segment,
    file: File,
    number: int,
    min_bytes: int,
    damaged: list[Damage] | None = None,
) -> list[StoredRecord]:
    """All records of the batches from `number` on: see Reads.read_block."""
    last, end = segment.last, segment.end
    window = Window(file, max(min_bytes, LOOKUP_BYTES))
    found: list[StoredRecord] = []
    offset = SEGMENT_HEADER_BYTES
    try:
        offset, info = _locate(segment, window, number)
        stop = offset + min_bytes
        while info is not None:
            at = window.batch(offset, info, end)
            try:
                found += unpack_records(window.data, at, info, segment.seed, sparse=segment.sparse)
            except Malformed as error:
                if damaged is None:
                    raise
                intact, bad = salvaged(segment, window, offset, info, str(error))
                found += intact
                damaged += bad
            offset += info.length
            number = info.number + 1
            if number > last or offset >= min(stop, end):
                break
            info = _in_place(segment, window.batch_header(offset, segment.seed), number)
        return found
    except (Malformed, OSError) as error:
        raise segment.damaged(offset, number, error) from error


def find_holding(
    segment: Segment, file: File, batches: range, needle: bytes, key: int
) -> Iterator[Held]:
    """The records of these batches in whose bodies `needle` stands: see Reads.holding."""
    window = Window(file, SEARCH_BYTES)
    for part, stretches in segment.indexed(file).parts(batches, key):
        found = _marked(segment, file, part.start, stretches, needle)
        yield from _searched(segment, window, part, needle) if found is None else found


def _marked(
    segment: Segment, file: File, number: int, stretches: list[range] | None, needle: bytes
) -> list[Held] | None:
    """Those of this batch in the stretches that its marks lead to.

    None if it has no marks, or if what stands there makes no sense: then it is read whole.
    """
    found: list[Held] = []
    for stretch in stretches or ():
        try:
            data = file.read_at(stretch.start, len(stretch))
            found += _holding(segment, data, range(len(data)), (number, SLOTS_MAX), needle)
        except Malformed:
            return None
        except OSError as error:
            raise segment.damaged(stretch.start, number, error) from error
    return None if stretches is None else found


def _searched(segment: Segment, window: Window, batches: range, needle: bytes) -> Iterator[Held]:
    """Those of these batches, which are read whole, one by one."""
    number, offset = batches.start, SEGMENT_HEADER_BYTES
    try:
        offset, info = _locate(segment, window, number)
        while info is not None and info.number < batches.stop:
            at = window.batch(offset, info, segment.end)
            places = range(at + BATCH_HEADER_BYTES, at + info.length - CHAIN_BYTES)
            try:
                batch = (info.number, info.records)
                found = _holding(segment, window.data, places, batch, needle)
            except Malformed as error:
                intact, _ = salvaged(segment, window, offset, info, str(error))
                found = [Held(r.position, r.type, r.body) for r in intact if needle in r.body]
            yield from found
            offset += info.length
            number = info.number + 1
            if number >= batches.stop or offset >= segment.end:
                return
            info = _in_place(segment, window.batch_header(offset, segment.seed), number)
    except (Malformed, OSError) as error:
        raise segment.damaged(offset, number, error) from error


def _holding(
    segment: Segment, data: bytes, places: range, batch: tuple[int, int], needle: bytes
) -> list[Held]:
    """The records with `needle` in them that stand in `places`, or Malformed.

    They are of the batch with this number, and so many at most. Searches backwards: that is
    five times as fast, for forwards Python guards against long needles that nearly match.
    Headers are looked at only if there is a hit.
    """
    hit = data.rfind(needle, places.start, places.stop)
    if hit < 0:
        return []
    starts = array("I", _record_places(data, places, *batch))
    found: list[Held] = []
    while hit >= 0:
        start = starts[bisect_right(starts, hit) - 1]
        record = unpack_record(data, start, 0, segment.seed)
        if needle in record.body:  # else it stands across records, or behind them
            found.append(Held(record.position, record.type, record.body))
        hit = data.rfind(needle, places.start, start)
    found.reverse()
    return found


def _record_places(data: bytes, places: range, number: int, count: int) -> Iterator[int]:
    """Where each record of the batch begins in `data`; Malformed if a header makes no sense."""
    here, end = places.start, places.stop
    for _ in range(count):
        if here == end:
            return
        if here + RECORD_HEADER_BYTES > end:
            raise Malformed("a record reaches beyond its batch")
        _, length, where, _, _, _ = RECORD_HEADER.unpack_from(data, here)
        after = here + RECORD_HEADER_BYTES + length
        if after > end or where >> SLOT_BITS != number:
            raise Malformed(f"record header senseless (position {where}, length {length})")
        yield here
        here = after


def find_digest(segment: Segment, file: File, number: int) -> bytes:
    """The digest of this batch, as it stands on disk, unproved. TrimmedError, CorruptError."""
    if number == segment.last:
        return segment.chain
    if segment.sparse:
        raise TrimmedError(number << SLOT_BITS, CLEANED)
    window, offset = Window(file, LOOKUP_BYTES), SEGMENT_HEADER_BYTES
    try:
        offset, info = _locate(segment, window, number)
        assert info is not None
        at = window.at(offset + info.length - CHAIN_BYTES, CHAIN_BYTES)
    except (Malformed, OSError) as error:
        raise segment.damaged(offset, number, error) from error
    return bytes(window.data[at : at + CHAIN_BYTES])


def _locate(segment: Segment, window: Window, number: int) -> tuple[int, BatchInfo | None]:
    """Offset and header of the batch.

    In a cleaned segment of the next one kept, if it is gone; None if there is none. Damaged
    headers on the way there are passed over; CorruptError if the batch's own is damaged.
    """
    expected, offset = segment.indexed(window.file).floor(number)
    while not (segment.sparse and offset >= segment.end):
        try:
            info = _in_place(segment, window.batch_header(offset, segment.seed), expected)
        except (Malformed, OSError) as error:
            found = next_header(segment, window, offset, expected)
            if found is None or found[1].number > number:
                raise segment.damaged(offset, number, error) from error
            offset, info = found
        if info.number >= number:
            return offset, info
        offset += info.length
        expected = info.number + 1
    return offset, None


def _in_place(segment: Segment, info: BatchInfo, number: int) -> BatchInfo:
    """The header, if it may stand where this batch is expected; else Malformed."""
    if info.number != number and not (segment.sparse and number < info.number <= segment.last):
        raise Malformed(f"batch {info.number} stands in the place of {number}")
    return info


def _covering(
    segment: Segment, window: Window, offset: int, info: BatchInfo, position: int
) -> StoredRecord:
    """The record of this batch that covers the position, or Malformed.

    Headers hopped over are not verified; the record found is, position included.
    """
    stop = offset + info.length - CHAIN_BYTES
    offset += BATCH_HEADER_BYTES
    for _ in range(info.records):
        at = window.at(offset, RECORD_HEADER_BYTES)
        if len(window.data) - at < RECORD_HEADER_BYTES:
            break
        _, length, where, _, _, count = RECORD_HEADER.unpack_from(window.data, at)
        after = offset + RECORD_HEADER_BYTES + length
        if after > stop:
            break
        if where <= position < where + count:
            at = window.at(offset, RECORD_HEADER_BYTES + length)
            return unpack_record(window.data, at, info.wall_ms, segment.seed)
        offset = after
    raise Malformed(f"record headers of batch {info.number} do not lead to {position}")


def _rescued(
    segment: Segment, window: Window, batch: tuple[int, BatchInfo], position: int, why: str
) -> StoredRecord:
    """The record all the same, if only a neighbour is damaged; else DamagedRecord.

    Or TrimmedError, once every record is verified and none of them is the one.
    """
    window.batch(*batch, segment.end)
    intact, damaged = salvaged(segment, window, *batch, why)
    for record in intact:
        if record.position <= position < record.position + record.count:
            return record
    for damage in damaged:
        if damage.position <= position < damage.position + damage.count:
            raise DamagedRecord(position, damage)
    raise TrimmedError(position, CLEANED)

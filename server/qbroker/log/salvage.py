"""What is left of a batch in which bytes went bad: its intact records, and what is between.

A record that does not verify hides nothing behind it: the next one is found where it
should begin, or by its position, which only a record of this batch can have, and by its
checksum, which only an intact one has. Behind a damaged header of a batch the next header
is found in the same way: batches begin at sectors, and only a header has its checksum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbroker.log.format import (
    BATCH_HEADER_BYTES,
    BATCH_MAGIC,
    CHAIN_BYTES,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    SECTOR_BYTES,
    SLOT_BITS,
    BatchInfo,
    Malformed,
    StoredRecord,
    unpack_batch_header,
    unpack_record,
)
from qbroker.log.window import Window

if TYPE_CHECKING:
    from qbroker.log.segment import Segment

CHECKSUMS_MAX = 10_000
"""Places tried in one batch that look like a record and are none. Then its rest is given up."""
PAGE_BYTES = 4096
"""What a disk that cannot read a sector refuses at once."""
REFUSED_MAX = 16
"""Pages that the disk may refuse in one search for a header; each may take it seconds."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of a file without an intact record: `length` bytes at `offset`, for evidence.

    What is lost is the records at `position` and in the `count` slots from there on; in
    a cleaned segment some of these may have been empty. With a count of 0 nothing is
    lost: the batch's records are intact, though its digest is not.
    """

    file: str
    offset: int
    length: int
    position: int
    count: int
    why: str


def salvaged(
    segment: Segment, window: Window, offset: int, info: BatchInfo, why: str
) -> tuple[list[StoredRecord], list[Damage]]:
    """The intact records of the batch at `offset`, and the stretches between.

    `why` is what did not verify. Reads every byte of the batch at least once.
    """
    at = window.at(offset, info.length)
    data, file = window.data, segment.name
    found: list[StoredRecord] = []
    damaged: list[Damage] = []
    end = at + info.length - CHAIN_BYTES
    slot, last = info.number << SLOT_BITS, (info.number << SLOT_BITS) + info.slots
    here = at + BATCH_HEADER_BYTES
    records = _records(data, range(here, end), info, segment.seed)
    for start, record in records:
        if start > here:
            lost = record.position - slot
            damaged.append(Damage(file, offset + here - at, start - here, slot, lost, why))
        found.append(record)
        slot = record.position + record.count
        here = start + RECORD_HEADER_BYTES + len(record.body)
    if len(found) + len(damaged) < info.records and slot < last:
        damaged.append(Damage(file, offset + here - at, end - here, slot, last - slot, why))
    if not damaged:
        damaged.append(Damage(file, offset, info.length, info.number << SLOT_BITS, 0, why))
    return found, damaged


def next_header(
    segment: Segment, window: Window, offset: int, number: int
) -> tuple[int, BatchInfo] | None:
    """Where the next batch with an intact header behind `offset` begins, and that header.

    None if there is none; its number is above `number`. Looks at every sector up to there, but
    not at pages that the disk refuses; OSError when these are more than REFUSED_MAX.
    """
    behind = range(offset + SECTOR_BYTES, segment.end)
    for here, info in intact_headers(window, behind, segment.seed, REFUSED_MAX):
        if number < info.number <= segment.last:
            return here, info
    return None


def intact_headers(
    window: Window, places: range, seed: int, refused_max: int = 0
) -> Iterator[tuple[int, BatchInfo]]:
    """Every intact batch header there, wherever a sector begins, and where.

    Pages that the disk refuses are passed over; OSError when these are more than ``refused_max``.
    """
    here, refused = places.start, 0
    while here < places.stop:
        info, step = None, SECTOR_BYTES
        try:
            at = window.at(here, BATCH_HEADER_BYTES)
            if window.data.startswith(BATCH_MAGIC, at):
                info = unpack_batch_header(window.data, at, seed)
        except Malformed:
            pass
        except OSError:
            refused += 1
            if refused > refused_max:
                raise
            step = PAGE_BYTES - here % PAGE_BYTES
        if info:
            yield here, info
        here += step


def _records(
    data: bytes, places: range, info: BatchInfo, seed: int
) -> Iterator[tuple[int, StoredRecord]]:
    """Each intact record in these places of `data`, with where it begins, in order."""
    here, end = places.start, places.stop
    slot, last = info.number << SLOT_BITS, (info.number << SLOT_BITS) + info.slots
    # The upper five bytes of a position are the same for all of a batch.
    mark = (slot >> 24).to_bytes(5, "little")
    tries = CHECKSUMS_MAX
    while here + RECORD_HEADER_BYTES <= end and tries:
        _, length, where, _, _, count = RECORD_HEADER.unpack_from(data, here)
        stop = here + RECORD_HEADER_BYTES + length
        if stop <= end and count and slot <= where and where + count <= last:
            try:
                yield here, unpack_record(data, here, info.wall_ms, seed)
            except Malformed:
                tries -= 1
            else:
                here, slot = stop, where + count
                continue
        at = data.find(mark, here + 12, end)
        here = at - 11 if at >= 0 else end

"""One file of the log: made under a temporary name, appended to, sealed, read.

    roll.tmp or spare.tmp  --header synced, renamed-->  <first batch>.qlog  (0600, active)
                           --footer synced, chmod--->   the same, sealed    (0400)

A segment has its name only once its header is durable, and its successor is made only
once it is sealed. So a directory with two segments proves that the first is complete.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from qbroker.log.batch import BatchBuilder, Stamp, pack_batch
from qbroker.log.disk import READ_ONLY, Disk, File
from qbroker.log.errors import CorruptError, NoSuchPosition, UnreadableError
from qbroker.log.format import (
    BATCH_HEADER_BYTES,
    CHAIN_BYTES,
    FOOTER_BYTES,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    SECTOR_BYTES,
    SEGMENT_HEADER_BYTES,
    SLOT_BITS,
    SLOTS_MAX,
    BatchInfo,
    Footer,
    Malformed,
    SegmentHeader,
    StoredRecord,
    check_batch,
    first_chain,
    pack_footer,
    pack_segment_header,
    unpack_record,
    unpack_records,
)
from qbroker.log.index import BatchIndex
from qbroker.log.window import Window

SEGMENT_BYTES_MIN = SEGMENT_HEADER_BYTES + SECTOR_BYTES + FOOTER_BYTES
"""Room for one batch."""
SUFFIX = ".qlog"
ROLL_NAME = "roll.tmp"
SPARE_NAME = "spare.tmp"
LOOKUP_BYTES = 16 << 10
"""Read at once when one record is looked up: about the distance of two index entries."""
REPLAY_BYTES = 4 << 20
"""Read at once when all is read."""


def segment_name(first: int) -> str:
    """The file's name; sorting names sorts batches."""
    return f"{first:020d}{SUFFIX}"


class Segment:
    """What is known of one file, and how it is read. Reads are safe beside one writer.

    `last` is its last batch (first - 1 if there is none), `end` the offset behind it,
    `chain` its digest, `records` how many there are.
    """

    __slots__ = ("chain", "end", "header", "index", "last", "name", "records", "sealed", "seed")

    def __init__(self, header: SegmentHeader) -> None:
        self.header = header
        self.seed = header.seed
        self.name = segment_name(header.first)
        self.last = header.first - 1
        self.end = SEGMENT_HEADER_BYTES
        self.chain = first_chain(pack_segment_header(header))
        self.records = 0
        self.sealed = False
        self.index: BatchIndex | None = BatchIndex(header.first)

    @property
    def first(self) -> int:
        """The number of its first batch."""
        return self.header.first

    @property
    def empty(self) -> bool:
        """Whether it holds no batch."""
        return self.last < self.header.first

    @property
    def disk_bytes(self) -> int:
        """What it takes on disk, less what is allocated ahead."""
        return self.end + FOOTER_BYTES if self.sealed else self.end

    def extend(self, info: BatchInfo, chain: bytes) -> None:
        """The batch behind the last one belongs to it, and readers can find it."""
        assert self.index is not None, "a sealed segment grows no more"
        self.index.add(info, self.end)
        self.end += info.length
        self.records += info.records
        self.chain = chain
        self.last = info.number  # last of all: readers look here first

    def adopt(self, footer: Footer) -> None:
        """It is as the footer says; the index is built when first needed."""
        self.last = footer.last
        self.end = footer.end
        self.chain = footer.chain
        self.records = footer.records
        self.sealed = True
        self.index = None

    def extend_from(self, window: Window, end: int) -> None:
        """One batch more of what the file holds up to `end` belongs to it; Malformed if none."""
        info, _, chain = self._intact(window, self.end, self.last + 1, self.chain, end)
        self.extend(info, chain)

    def replay(self, file: File, first: int) -> Iterator[tuple[BatchInfo, list[StoredRecord]]]:
        """All its batches, in order; yields those from `first` on.

        Verifies digests, chain and record checksums of every batch, yielded or not,
        and builds the index on the way. CorruptError at the first bad byte.
        """
        window = Window(file, REPLAY_BYTES)
        offset, chain, end = SEGMENT_HEADER_BYTES, first_chain(self._header_block()), self.end
        index = BatchIndex(self.first)
        for number in range(self.first, self.last + 1):
            try:
                info, at, chain = self._intact(window, offset, number, chain, end)
                records = unpack_records(window.data, at, info, self.seed)
            except (Malformed, OSError) as error:
                raise self._damaged(offset, number, error) from error
            index.add(info, offset)
            offset += info.length
            if number >= first:
                yield info, records
        if chain != self.chain:
            raise self._damaged(offset, self.last, Malformed("the footer's digest disagrees"))
        if self.index is None:
            self.index = index

    def read(self, file: File, position: int) -> StoredRecord:
        """The record that covers `position`, checked. Batches it does not hold are the caller's.

        Hops over record headers, so a large batch is not read whole. NoSuchPosition,
        or CorruptError.
        """
        number, slot = position >> SLOT_BITS, position & (SLOTS_MAX - 1)
        window = Window(file, LOOKUP_BYTES)
        offset = SEGMENT_HEADER_BYTES
        try:
            offset, info = self._locate(window, number)
            if slot >= info.slots:
                raise NoSuchPosition(position, f"its batch has {info.slots} slots")
            return self._covering(window, offset, info, position)
        except (Malformed, OSError) as error:
            raise self._damaged(offset, number, error) from error

    def read_block(self, file: File, number: int, min_bytes: int) -> list[StoredRecord]:
        """All records of the batches from `number` on: see Log.read_block."""
        last, end = self.last, self.end
        window = Window(file, max(min_bytes, LOOKUP_BYTES))
        found: list[StoredRecord] = []
        offset = SEGMENT_HEADER_BYTES
        try:
            offset, info = self._locate(window, number)
            stop = offset + min_bytes
            while True:
                at = window.batch(offset, info, end)
                found += unpack_records(window.data, at, info, self.seed)
                offset += info.length
                number += 1
                if number > last or offset >= stop:
                    return found
                info = window.batch_header(offset, self.seed)
                if info.number != number:
                    raise Malformed(f"batch {info.number} stands in the place of {number}")
        except (Malformed, OSError) as error:
            raise self._damaged(offset, number, error) from error

    def indexed(self, file: File) -> BatchIndex:
        """Its index, built from the batch headers if nobody has yet. CorruptError."""
        if self.index is None:
            window = Window(file, REPLAY_BYTES)
            offset = SEGMENT_HEADER_BYTES
            index = BatchIndex(self.first)
            for number in range(self.first, self.last + 1):
                try:
                    info = window.batch_header(offset, self.seed)
                    if info.number != number:
                        raise Malformed(f"batch {info.number} stands in the place of {number}")
                except (Malformed, OSError) as error:
                    raise self._damaged(offset, number, error) from error
                index.add(info, offset)
                offset += info.length
            self.index = index
        return self.index

    def _intact(
        self, window: Window, offset: int, number: int, chain: bytes, end: int
    ) -> tuple[BatchInfo, int, bytes]:
        """The batch `number` at `offset`: header, place in window.data, digest; or Malformed."""
        info = window.batch_header(offset, self.seed)
        if info.number != number:
            raise Malformed(f"batch {info.number} stands in the place of {number}")
        at = window.batch(offset, info, end)
        content = memoryview(window.data)[at : at + info.length]
        return info, at, check_batch(content, self.header.salt, chain)

    def _locate(self, window: Window, number: int) -> tuple[int, BatchInfo]:
        """Offset and header of the batch, which this segment holds."""
        offset = self.indexed(window.file).floor(number)
        while True:
            info = window.batch_header(offset, self.seed)
            if info.number == number:
                return offset, info
            if info.number > number:
                raise Malformed(f"batch {info.number} stands in the place of {number}")
            offset += info.length

    def _covering(
        self, window: Window, offset: int, info: BatchInfo, position: int
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
                return unpack_record(window.data, at, info.wall_ms, self.seed)
            offset = after
        raise Malformed(f"record headers of batch {info.number} do not lead to {position}")

    def _header_block(self) -> bytes:
        return pack_segment_header(self.header)

    def _damaged(self, offset: int, number: int, error: Exception) -> CorruptError:
        kind = UnreadableError if isinstance(error, OSError) else CorruptError
        return kind(self.name, offset, number, number, str(error))


class SegmentWriter:
    """The active segment: the only one with an open file to write to. One thread.

    Raises OSError as the disk does; Log fences then.
    """

    __slots__ = ("file", "segment", "size")

    def __init__(self, file: File, segment: Segment, size: int) -> None:
        self.file = file
        self.segment = segment
        self.size = size

    def has_room(self, length: int) -> bool:
        """Whether a batch of this length fits, and the footer behind it."""
        return self.segment.end + length + FOOTER_BYTES <= self.size

    def enlarge(self, length: int) -> None:
        """There is room for this one batch, larger than segments usually are."""
        self.size = self.segment.end + length + FOOTER_BYTES
        self.file.allocate(self.size)

    def append(self, batch: BatchBuilder, stamp: Stamp) -> None:
        """The batch is with the kernel, and readers can find it. One write."""
        segment = self.segment
        data, chain = pack_batch(batch, stamp, segment.header.salt, segment.seed, segment.chain)
        write_whole(self.file, segment.end, data)
        info = BatchInfo(
            batch.number,
            len(data),
            len(batch.records),
            batch.slots,
            stamp.durable_upto,
            stamp.epoch,
            stamp.wall_ms,
            stamp.key_min,
            stamp.key_max,
        )
        segment.extend(info, chain)

    def seal(self, disk: Disk) -> None:
        """The segment is complete, durable and read-only. All batches must be durable already."""
        segment = self.segment
        index = segment.index
        assert index is not None
        footer = Footer(
            segment.first,
            segment.last,
            segment.records,
            segment.end,
            index.key_min,
            index.key_max,
            segment.chain,
        )
        write_whole(self.file, segment.end, pack_footer(footer, segment.seed))
        self.file.truncate(segment.end + FOOTER_BYTES)
        self.file.sync()
        disk.protect(segment.name, READ_ONLY)
        segment.sealed = True


def write_whole(file: File, offset: int, data: bytes | bytearray) -> None:
    """All of it is with the kernel. A short write is an error: never retried, never continued."""
    taken = file.write_at(offset, data)
    if taken != len(data):
        raise OSError(errno.EIO, f"short write, {taken} of {len(data)} bytes at {offset}")


def prepare_spare(disk: Disk, size: int) -> File:
    """A file of `size` reserved bytes waits under SPARE_NAME; without room, OSError and no file."""
    file = disk.create(SPARE_NAME)
    try:
        file.allocate(size)
        file.sync()
    except OSError:
        disk.remove(SPARE_NAME)
        raise
    return file


def create_segment(
    disk: Disk, header: SegmentHeader, least: int, spare: File | None
) -> SegmentWriter:
    """The segment exists under its name, empty and durable; one never used is replaced.

    Takes the spare if there is one: then nothing is allocated, so it works on a full
    disk. Without one, on a disk too full for header.size, it is smaller, but not below
    `least`. A file sync, a rename, a directory sync.
    """
    file = disk.create(ROLL_NAME) if spare is None else spare
    header.size = allocated(file, 0, least, header.size)
    write_whole(file, 0, pack_segment_header(header))
    file.sync()
    disk.rename(ROLL_NAME if spare is None else SPARE_NAME, segment_name(header.first))
    disk.sync_directory()
    return SegmentWriter(file, Segment(header), header.size)


def allocated(file: File, used: int, least: int, size: int) -> int:
    """Reserves `size` bytes, or what of it the disk has room for; returns how much.

    `used` are in the file already and stay.
    """
    while True:
        try:
            file.allocate(size)
        except OSError as error:
            if error.errno != errno.ENOSPC or size <= least:
                raise
            file.truncate(used)
            size = max(size // 2 // SECTOR_BYTES * SECTOR_BYTES, least)
        else:
            return size


def size_for(length: int) -> int:
    """The least size of a segment that takes a batch of this length."""
    return SEGMENT_HEADER_BYTES + length + FOOTER_BYTES

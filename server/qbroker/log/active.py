"""The segment that is written to: made, appended to, sealed.

    roll.tmp or spare.tmp  --header synced, renamed-->  <first batch>.qlog  (0600, active)
                           --footer synced, chmod--->   the same, sealed    (0400)

A segment has its name only once its header is durable, and its successor is made only
once it is sealed. So a directory with two segments proves that the first is complete.
"""

from __future__ import annotations

from qbroker.log.batch import BatchBuilder, Stamp, pack_batch
from qbroker.log.disk import FULL, READ_ONLY, Disk, File, write_whole
from qbroker.log.errors import NoRoom
from qbroker.log.format import (
    FOOTER_BYTES,
    SECTOR_BYTES,
    SEGMENT_HEADER_BYTES,
    BatchInfo,
    Footer,
    SegmentHeader,
    pack_footer,
    pack_segment_header,
)
from qbroker.log.segment import Segment, segment_name

SEGMENT_BYTES_MIN = SEGMENT_HEADER_BYTES + SECTOR_BYTES + FOOTER_BYTES
"""Room for one batch."""
ROLL_NAME = "roll.tmp"
SPARE_NAME = "spare.tmp"


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
        segment = self.segment
        return not segment.sealed and segment.end + length + FOOTER_BYTES <= self.size

    def enlarge(self, length: int) -> None:
        """There is room for this one batch, larger than segments usually are. NoRoom if not."""
        size = self.segment.end + length + FOOTER_BYTES
        try:
            self.file.allocate(size)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise NoRoom(f"batch {self.segment.first}", error) from error
        self.size = size

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
        segment.extend(info, chain, batch.pieces, batch.end)

    def seal(self, disk: Disk, *, clean: bool = False) -> None:
        """The segment is complete, durable and read-only. All batches must be durable already.

        `clean`: by a clean stop.
        """
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
            segment.number_last,
            segment.content,
            int(clean),
        )
        write_whole(self.file, segment.end, pack_footer(footer, segment.seed))
        self.file.truncate(segment.end + FOOTER_BYTES)
        self.file.sync()
        disk.protect(segment.name, READ_ONLY)
        segment.sealed = True


def prepare_spare(disk: Disk, size: int) -> File:
    """A file of `size` reserved bytes waits under SPARE_NAME; without room, OSError and no file.

    One that an earlier life has left is taken, whatever it got to.
    """
    is_left = SPARE_NAME in disk.names()
    file = disk.open(SPARE_NAME, write=True) if is_left else disk.create(SPARE_NAME)
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
    `least`. NoRoom if even that cannot be had: nothing was changed then. A file sync, a
    rename, a directory sync.
    """
    try:
        file = disk.create(ROLL_NAME) if spare is None else spare
        header.size = allocated(file, 0, least, header.size)
    except OSError as error:
        if error.errno not in FULL:
            raise
        if ROLL_NAME in disk.names():
            disk.remove(ROLL_NAME)
        raise NoRoom(f"the segment of batch {header.first}", error) from error
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
            if error.errno not in FULL or size <= least:
                raise
            file.truncate(used)
            size = max(size // 2 // SECTOR_BYTES * SECTOR_BYTES, least)
        else:
            return size


def size_for(length: int) -> int:
    """The least size of a segment that takes a batch of this length."""
    return SEGMENT_HEADER_BYTES + length + FOOTER_BYTES

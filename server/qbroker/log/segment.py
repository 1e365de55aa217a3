"""One file of the log: what is known of it, and how it is walked and read."""

from __future__ import annotations

from collections.abc import Iterator

from qbroker.log.disk import File
from qbroker.log.errors import CorruptError, NoSuchPosition, UnreadableError
from qbroker.log.format import (
    BATCH_HEADER_BYTES,
    CHAIN_BYTES,
    FOOTER_BYTES,
    FOOTER_MAGIC,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
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
    pack_segment_header,
    unpack_footer,
    unpack_record,
    unpack_records,
)
from qbroker.log.index import BatchIndex
from qbroker.log.window import Window

SUFFIX = ".qlog"
LOOKUP_BYTES = 16 << 10
"""Read at once when one record is looked up: about the distance of two index entries."""
REPLAY_BYTES = 4 << 20
"""Read at once when all is read."""
FOLLOW_BYTES = 256 << 10
"""Read at once behind a writer: what comes at a time is little."""


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
        """Its batches from `first` on, in order, with their records.

        Verifies digests and chain of every batch, yielded or not, and builds the index
        on the way. CorruptError at the first bad byte.
        """
        window = Window(file, REPLAY_BYTES)
        offset, chain, end = SEGMENT_HEADER_BYTES, first_chain(self._header_block()), self.end
        index = BatchIndex(self.first)
        for number in range(self.first, self.last + 1):
            try:
                info, at, chain = self._intact(window, offset, number, chain, end)
                wanted = number >= first
                records = unpack_records(window.data, at, info, self.seed) if wanted else []
            except (Malformed, OSError) as error:
                raise self._damaged(offset, number, error) from error
            index.add(info, offset)
            offset += info.length
            if wanted:
                yield info, records
        if chain != self.chain:
            raise self._damaged(offset, self.last, Malformed("the footer's digest disagrees"))
        if self.index is None:
            self.index = index

    def follow(self, file: File, upto: int) -> Iterator[tuple[BatchInfo, list[StoredRecord]]]:
        """The batches behind the last one known, up to `upto`: they belong to it now.

        For a file that another process appends to; `upto` is what that one says is
        durable. Ends early, `sealed`, at a footer: batch last + 1 begins the next file.
        CorruptError if a batch at or below `upto` does not verify.
        """
        window, number = Window(file, FOLLOW_BYTES), self.last + 1
        try:
            size = file.size()
            while number <= upto and not self._ended(window):
                info, at, chain = self._intact(window, self.end, number, self.chain, size)
                records = unpack_records(window.data, at, info, self.seed)
                self.extend(info, chain)
                yield info, records
                number += 1
        except (Malformed, OSError) as error:
            raise self._damaged(self.end, number, error) from error

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

    def _ended(self, window: Window) -> bool:
        """Whether the footer stands behind the last batch known; then it is sealed."""
        at = window.at(self.end, FOOTER_BYTES)
        if not window.data.startswith(FOOTER_MAGIC, at):
            return False
        footer = unpack_footer(window.data, at, self.seed)
        if (footer.last, footer.end, footer.chain) != (self.last, self.end, self.chain):
            raise Malformed("the footer is that of other batches")
        self.sealed = True
        return True

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

"""One file of the log: what is known of it, and how it is walked and read."""

from __future__ import annotations

from collections.abc import Iterator

from qbroker.log.disk import File
from qbroker.log.errors import CorruptError, UnreadableError
from qbroker.log.format import (
    FOOTER_BYTES,
    FOOTER_MAGIC,
    SEGMENT_HEADER_BYTES,
    BatchInfo,
    Footer,
    Malformed,
    SegmentHeader,
    StoredRecord,
    first_chain,
    pack_segment_header,
    unpack_footer,
)
from qbroker.log.index import BatchIndex
from qbroker.log.salvage import Damage
from qbroker.log.walk import Walk
from qbroker.log.window import Window

SUFFIX = ".qlog"
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

    def replay(
        self, file: File, first: int, damaged: list[Damage] | None = None
    ) -> Iterator[tuple[BatchInfo, list[StoredRecord]]]:
        """Its batches from `first` on, in order, with their records: see Log.replay.

        Verifies digests and chain of every batch, yielded or not, and builds the index
        on the way. CorruptError at the first bad byte that `damaged` cannot take.
        """
        walk = Walk(self, file, REPLAY_BYTES, damaged)
        index, end = BatchIndex(self.first), self.end
        while walk.offset < end:
            try:
                info = walk.step(end)
                wanted = info.number >= first
                records = walk.records(info) if wanted else []
            except (Malformed, OSError) as error:
                raise self.damaged(walk.offset, walk.number, error) from error
            index.add(info, walk.offset)
            walk.on(info)
            if wanted:
                yield info, records
        if walk.chain != self.chain and not damaged:
            raise self.damaged(walk.offset, self.last, Malformed("the footer's digest disagrees"))
        if self.index is None:
            self.index = index

    def follow(
        self, file: File, upto: int, damaged: list[Damage] | None = None
    ) -> Iterator[tuple[BatchInfo, list[StoredRecord]]]:
        """The batches behind the last one known, up to `upto`: they belong to it now.

        For a file that another process appends to; `upto` is what that one says is
        durable. Ends early, `sealed`, at a footer: batch last + 1 begins the next file.
        CorruptError if a batch at or below `upto` does not verify.
        """
        walk = Walk(self, file, FOLLOW_BYTES, damaged)
        walk.skip(self.end, self.last + 1, self.chain)
        try:
            size = file.size()
            while walk.number <= upto and not self._ended(walk.window):
                info = walk.step(size)
                records = walk.records(info)
                walk.on(info)
                self.extend(info, walk.chain)
                yield info, records
        except (Malformed, OSError) as error:
            raise self.damaged(walk.offset, walk.number, error) from error

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
                    raise self.damaged(offset, number, error) from error
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

    def damaged(self, offset: int, number: int, error: Exception) -> CorruptError:
        """What to raise for this batch of it: bytes that lie, or a disk that refused."""
        kind = UnreadableError if isinstance(error, OSError) else CorruptError
        return kind(self.name, offset, number, number, str(error))

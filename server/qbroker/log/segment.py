"""One file of the log: what is known of it, and how it is walked and read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from qbroker.log.marks import NO_KEY, Piece
from qbroker.log.meta import Span
from qbroker.log.salvage import PAGE_BYTES, Damage, next_header
from qbroker.log.walk import Walk
from qbroker.log.window import Window

SUFFIX = ".qlog"
REPLAY_BYTES = 4 << 20
"""Read at once when all is read."""
HOP_BYTES = 128 << 10
"""Who wants headers alone hops over batches as large as this."""
FOLLOW_BYTES = 256 << 10
"""Read at once behind a writer: what comes at a time is little."""


def segment_name(first: int, generation: int = 0) -> str:
    """The file's name; sorting names sorts batches. A cleaned one has its generation in it."""
    return f"{first:020d}.{generation}{SUFFIX}" if generation else f"{first:020d}{SUFFIX}"


class Segment:
    """What is known of one file, and how it is read. Reads are safe beside one writer.

    It covers batches up to `last` (first - 1 if there is none) and segments up to
    `number_last`; its batches end at `end`. `chain` is the log's digest at `last`, which
    the next segment continues, `content` the digest of its own last batch: the same, as
    long as nothing was cleaned. `records` is how many there are. `keys`, `digest`
    and `clean` are known of a sealed one that was opened: range of keys, the footer's
    digest, whether a clean stop sealed it.
    """

    __slots__ = (
        "chain",
        "clean",
        "content",
        "digest",
        "end",
        "header",
        "index",
        "keys",
        "last",
        "name",
        "number_last",
        "records",
        "sealed",
        "seed",
    )

    def __init__(self, header: SegmentHeader) -> None:
        self.header = header
        self.seed = header.seed
        self.name = segment_name(header.first, header.generation)
        self.last = header.first - 1
        self.number_last = header.number
        self.end = SEGMENT_HEADER_BYTES
        self.chain = self.content = first_chain(pack_segment_header(header))
        self.records = 0
        self.keys = (NO_KEY, 0)
        self.digest = b""
        self.sealed = self.clean = False
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
    def sparse(self) -> bool:
        """Whether it was cleaned: batches and slots may be missing."""
        return self.header.generation > 0

    @property
    def span(self) -> Span:
        """The stretch of the log that it is."""
        h = self.header
        return Span(h.first, self.last, h.number, self.number_last, h.previous, self.chain)

    @property
    def disk_bytes(self) -> int:
        """What it takes on disk, less what is allocated ahead."""
        return self.end + FOOTER_BYTES if self.sealed else self.end

    def extend(
        self, info: BatchInfo, chain: bytes, pieces: Sequence[Piece] = (), end: int = 0
    ) -> None:
        """The batch behind the last one belongs to it, and readers can find it.

        For `pieces` and `end` see BatchIndex.add.
        """
        assert self.index is not None, "a sealed segment grows no more"
        self.index.add(info, self.end, pieces, end)
        self.end += info.length
        self.records += info.records
        self.chain = self.content = chain
        self.last = info.number  # last of all: readers look here first

    def seal(self, footer: Footer, digest: bytes) -> None:
        """It is as the footer says; the index is built when first needed."""
        self.last = footer.last
        self.number_last = footer.number_last
        self.end = footer.end
        self.chain = footer.chain
        self.content = footer.content
        self.records = footer.records
        self.keys = (footer.key_min, footer.key_max)
        self.digest = digest
        self.clean = bool(footer.clean)
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
        if walk.chain != self.content and not damaged:
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

    def may_hold(self, key: int) -> bool:
        """Whether the key is in the range of its keys. Never reads."""
        index = self.index
        low, high = (index.key_min, index.key_max) if index else self.keys
        return low <= key <= high

    def indexed(self, file: File) -> BatchIndex:
        """Its index, built from the batch headers if nobody has yet.

        A damaged header hides its own batch alone: what is there has an entry, which may hold
        any key, and the next intact batch has one. UnreadableError if the disk refuses more
        than `next_header` puts up with.
        """
        if self.index is None:
            walk = Walk(self, file, PAGE_BYTES)
            index = BatchIndex(self.first)
            while walk.offset < self.end:
                try:
                    info = walk.peek()
                except (Malformed, OSError):
                    walk.window.chunk_bytes = REPLAY_BYTES
                    self._pass(walk, index)
                else:
                    walk.window.chunk_bytes = (
                        PAGE_BYTES if info.length >= HOP_BYTES else REPLAY_BYTES
                    )
                    index.add(info, walk.offset)
                    walk.on(info)
            self.index = index
        return self.index

    def _pass(self, walk: Walk, index: BatchIndex) -> None:
        """The walk is behind the damaged header at its place, and the index knows both."""
        offset, number = walk.offset, walk.number
        index.begin(number, offset, self.keys)
        index.widen(self.keys)
        try:
            found = next_header(self, walk.window, offset, number)
        except OSError as error:
            raise self.damaged(offset, number, error) from error
        if found is None:
            walk.skip(self.end, self.last + 1, b"")
            index.last = self.last
            return
        here, info = found
        index.begin(info.number, here, (NO_KEY, 0))
        index.add(info, here)
        walk.skip(here, info.number, b"")
        walk.on(info)

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

"""A walk through one segment, batch by batch, each verified before it is believed.

The one place where batches are verified: a start, a reader beside the writer, cleaning
and repair all walk like this.

    walk = Walk(segment, file, REPLAY_BYTES)
    info = walk.step(end)           the batch at walk.offset; Malformed if it is not intact
    records = walk.records(info)    its records
    walk.on(info)                   to the next one
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbroker.log.disk import File
from qbroker.log.format import (
    BATCH_HEADER_BYTES,
    CHAIN_BYTES,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    BatchInfo,
    Malformed,
    StoredRecord,
    chained,
    check_batch,
    first_chain,
    pack_segment_header,
    unpack_records,
)
from qbroker.log.salvage import Damage, salvaged
from qbroker.log.window import Window

if TYPE_CHECKING:
    from qbroker.log.segment import Segment


class Walk:
    """See the module. `number` and `chain` are those the batch at `offset` must have;
    in a cleaned segment its number may be higher.

    With a list for `damaged`, records that do not verify are described there and left
    out, and the walk goes on, as long as the batch's header is intact.
    """

    __slots__ = (
        "_at",
        "_digest",
        "_salvaged",
        "chain",
        "damaged",
        "number",
        "offset",
        "segment",
        "window",
    )

    def __init__(
        self, segment: Segment, file: File, chunk_bytes: int, damaged: list[Damage] | None = None
    ) -> None:
        self.segment = segment
        self.window = Window(file, chunk_bytes)
        self.damaged = damaged
        self._at = 0
        self._digest = b""
        self._salvaged: list[StoredRecord] | None = None
        self.skip(
            SEGMENT_HEADER_BYTES,
            segment.first,
            first_chain(pack_segment_header(segment.header)),
        )

    def skip(self, offset: int, number: int, chain: bytes) -> None:
        """The walk goes on there."""
        self.offset = offset
        self.number = number
        self.chain = chain

    def peek(self) -> BatchInfo:
        """The header of the batch at `offset`, which stands in its place; Malformed, OSError."""
        info = self.window.batch_header(self.offset, self.segment.seed)
        cleaned_out = self.segment.sparse and self.number < info.number <= self.segment.last
        if info.number != self.number and not cleaned_out:
            raise Malformed(f"batch {info.number} stands in the place of {self.number}")
        return info

    def step(self, end: int) -> BatchInfo:
        """The batch at `offset`, which ends at or before `end`; Malformed, OSError.

        Its header and digest are intact and it stands in its place.
        """
        info = self.peek()
        self._at = self.window.batch(self.offset, info, end)
        self._salvaged = None
        content = memoryview(self.window.data)[self._at : self._at + info.length]
        try:
            self._digest = check_batch(content, self.segment.header.salt, self.chain)
        except Malformed as error:
            if self.damaged is None:
                raise
            self._salvaged = self._salvage(info, str(error))
            self._digest = self._next_chain(content)
        return info

    def records(self, info: BatchInfo) -> list[StoredRecord]:
        """The records of the batch that `step` gave; Malformed."""
        if self._salvaged is not None:
            return self._salvaged
        try:
            data, seed = self.window.data, self.segment.seed
            return unpack_records(data, self._at, info, seed, sparse=self.segment.sparse)
        except Malformed as error:
            if self.damaged is None:
                raise
            return self._salvage(info, str(error))

    def on(self, info: BatchInfo) -> None:
        """The next step is to the batch behind this one."""
        self.skip(self.offset + info.length, info.number + 1, self._digest)

    def _salvage(self, info: BatchInfo, why: str) -> list[StoredRecord]:
        """The intact records of a batch; the others go to `damaged`."""
        assert self.damaged is not None
        found, damage = salvaged(self.segment, self.window, self.offset, info, why)
        self.damaged += damage
        return found

    def _next_chain(self, content: memoryview) -> bytes:
        """The digest that the next batch is chained to, behind one that does not verify.

        The one that stands there, unless all else is as it was: then that is what went bad.
        """
        assert self._salvaged is not None
        assert self.damaged
        used = sum(RECORD_HEADER_BYTES + len(record.body) for record in self._salvaged)
        padding = bytes(content[BATCH_HEADER_BYTES + used : -CHAIN_BYTES])
        if self.damaged[-1].count or padding.strip(b"\0"):
            return bytes(content[-CHAIN_BYTES:])
        return chained(content[:-CHAIN_BYTES], self.segment.header.salt, self.chain)

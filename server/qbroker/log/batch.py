"""The batch being collected, and how it becomes bytes.

Parts of bodies are kept as they come and joined once, so collecting costs a tuple a
record, and packing one checksum a record, one join and one digest a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from qbroker.log.errors import TooLargeError
from qbroker.log.format import (
    BATCH_BYTES_MAX,
    BATCH_FIELDS,
    BATCH_HEADER_BYTES,
    BATCH_MAGIC,
    BATCH_OVERHEAD_BYTES,
    CHAIN_BYTES,
    COUNT_MAX,
    RECORD_BYTES_MAX,
    RECORD_FIELDS,
    RECORD_HEADER_BYTES,
    SLOT_BITS,
    SLOTS_MAX,
    StoredRecord,
    chained,
    rounded,
)
from qbroker.log.marks import SPACING_BYTES, Piece


class BatchBuilder:
    """The batch being collected: volatile until Log.commit has returned.

    `number` is its batch number, `slots` the slots taken, `bytes` what its content
    needs on disk before rounding up to whole sectors. `pieces` say which keys stand where.
    Belongs to one thread at a time.
    """

    __slots__ = ("bytes", "bytes_max", "number", "pieces", "records", "slots")

    def __init__(self, number: int, bytes_max: int = BATCH_BYTES_MAX) -> None:
        self.number = number
        self.slots = 0
        self.bytes: int = BATCH_OVERHEAD_BYTES
        self.bytes_max = bytes_max
        self.records: list[tuple[int, int, int, int, int, Sequence[bytes]]] = []
        self.pieces = [Piece(BATCH_HEADER_BYTES)]

    @property
    def body_bytes(self) -> int:
        """Bytes of the bodies alone."""
        return self.bytes - BATCH_OVERHEAD_BYTES - RECORD_HEADER_BYTES * len(self.records)

    @property
    def end(self) -> int:
        """Where the records end, from the batch's beginning."""
        return self.bytes - CHAIN_BYTES

    @property
    def keys(self) -> tuple[int, int]:
        """The lowest and highest key of all records, (0, 0) for none."""
        key_max = max(piece.key_max for piece in self.pieces)
        return (min(piece.key_min for piece in self.pieces), key_max) if key_max else (0, 0)

    @property
    def empty(self) -> bool:
        """Whether nothing was added. An empty batch may be committed: it carries durable_upto."""
        return not self.records

    def fits(self, body_bytes: int, count: int = 1) -> bool:
        """Whether a record of this size may still be added.

        One record alone may be larger than a batch should be; a second one may not.
        """
        return not self.records or (
            self.bytes + RECORD_HEADER_BYTES + body_bytes <= self.bytes_max
            and self.slots + count <= SLOTS_MAX
        )

    def add(
        self,
        type: int,  # noqa: A002  # the format's own word
        body: bytes | Sequence[bytes],
        count: int = 1,
        flags: int = 0,
        keys: tuple[int, int] = (0, 0),
    ) -> int:
        """The record is in this batch; returns its position, which is that of its first slot.

        `body` may be parts; they are kept as they are and joined once, in commit, so
        they must not change until then. `keys` are the lowest and highest by which it is to be
        found, (0, 0) for none. TooLargeError, and nothing added, if the body
        exceeds RECORD_BYTES_MAX or the record does not fit (see `fits`).
        """
        parts = (body,) if isinstance(body, bytes) else body
        length = sum(map(len, parts))
        if length > RECORD_BYTES_MAX:
            raise TooLargeError("a record", length, RECORD_BYTES_MAX)
        if not 1 <= type <= 255 or not 0 <= flags <= 255 or not 1 <= count <= COUNT_MAX:
            raise ValueError(f"record type {type}, flags {flags} or count {count} out of range")
        if not self.fits(length, count):
            raise TooLargeError("a batch", self.bytes + length, self.bytes_max)
        slot = self.slots
        self._note_keys(keys)
        self.records.append((type, flags, count, slot, length, parts))
        self.slots = slot + count
        self.bytes += RECORD_HEADER_BYTES + length
        return self.number << SLOT_BITS | slot

    def _note_keys(self, keys: tuple[int, int]) -> None:
        """The next record belongs to the last piece, or begins one."""
        piece = self.pieces[-1]
        if self.end - piece.offset >= SPACING_BYTES:
            piece = Piece(self.end)
            self.pieces.append(piece)
        if keys[1]:
            piece.key_min = min(piece.key_min, keys[0])
            piece.key_max = max(piece.key_max, keys[1])

    def keep(self, record: StoredRecord, type: int, parts: Sequence[bytes]) -> None:  # noqa: A002
        """A record of the batch that this one stands for is in it, with this type and body.

        Position, count and flags stay. In order of positions; the slots are set by whoever
        cleans. TooLargeError, and nothing added.
        """
        length = sum(map(len, parts))
        if length > RECORD_BYTES_MAX:
            raise TooLargeError("a record", length, RECORD_BYTES_MAX)
        if not 1 <= type <= 255:
            raise ValueError(f"record type {type} out of range")
        slot = record.position & (SLOTS_MAX - 1)
        self.records.append((type, record.flags, record.count, slot, length, parts))
        self.bytes += RECORD_HEADER_BYTES + length


@dataclass(slots=True)
class Stamp:
    """What commit says about a batch: times in epoch ms, the writer's epoch, key range."""

    durable_upto: int
    epoch: int
    wall_ms: int
    key_min: int
    key_max: int


def pack_batch(
    batch: BatchBuilder, stamp: Stamp, salt: int, seed: int, chain: bytes
) -> tuple[bytearray, bytes]:
    """The batch as it goes to disk, and its digest, to which the next batch is chained.

    One pack and one checksum a record, one join and one digest a batch.
    """
    base = batch.number << SLOT_BITS
    length = rounded(batch.bytes)
    pieces: list[bytes] = [b""]
    for type_, flags, count, slot, size, parts in batch.records:
        fields = RECORD_FIELDS.pack(size, base | slot, type_, flags, count)
        crc = crc32(fields, seed)
        for part in parts:
            crc = crc32(part, crc)
        pieces.append(crc.to_bytes(4, "little"))
        pieces.append(fields)
        pieces.extend(parts)
    fields = BATCH_FIELDS.pack(
        batch.number,
        length,
        len(batch.records),
        batch.slots,
        0,
        stamp.durable_upto,
        stamp.epoch,
        stamp.wall_ms,
        stamp.key_min,
        stamp.key_max,
    )
    pieces[0] = BATCH_MAGIC + crc32(fields, seed).to_bytes(4, "little") + fields
    pieces.append(bytes(length - batch.bytes + CHAIN_BYTES))
    data = bytearray().join(pieces)
    with memoryview(data) as view:
        digest = chained(view[:-CHAIN_BYTES], salt, chain)
        view[-CHAIN_BYTES:] = digest
    return data, digest

"""The bytes of the log: layouts, and batches and records to and from them.

All numbers are little-endian. A *batch* is what is written and synced together; its
length on disk is a multiple of SECTOR_BYTES, so that no later write touches a sector
which holds confirmed data. The same diagrams stand in LOG.md.

Checks are layered. The record CRC (seeded by the segment's random salt) guards each
single read. The batch header has its own CRC, so that a scan can find batches behind
a damaged one. The 16-byte digest that ends a batch covers all of it and is keyed by
the digest before: a batch that is stale, swapped or from another file cannot verify.

Nothing here knows whether bad bytes are a torn tail or corruption: functions raise
Malformed, and recovery.py judges.

Checklist for a change of the format: raise FORMAT, keep the old reader under its old
name, add golden bytes to tests/log/test_format.py, say so in CHANGELOG.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from struct import Struct
from typing import NamedTuple
from zlib import crc32

FORMAT = 2
SECTOR_BYTES = 512
SLOT_BITS = 20
SLOTS_MAX = 1 << SLOT_BITS
COUNT_MAX = 65_535
RECORD_BYTES_MAX = 64 << 20
"""Bytes of one record's body. A hard limit of the format's readers, not a setting."""
BATCH_BYTES_MAX = 8 << 20
"""Bytes of one batch, unless its only record is larger. Default; see LogSettings."""


class Malformed(Exception):  # noqa: N818  # never leaves the log room
    """Bytes are not what their place says they are. The text is the reason, for a person."""


# Segment header: the first 4 KiB of a file; what follows the fields is zero.
#
#   0        8        12     16            32          48       56      64
#   | magic  | format | crc  | cluster id  | log id    | number | first | previous 16 |
#   80       88       96           104                                           4096
#   | salt   | size   | generation | zeros                                          |
#
# number: 1, 2, 3 ... for ever. first: the first batch's number, also the file's name.
# previous: the last digest of the segment before. salt: random, in every checksum.
# size: bytes allocated when made. generation: 0 as it was written; else how often what is
# here was cleaned. crc: over all 4096 bytes but itself.
SEGMENT_MAGIC = b"QBLOGSEG"
SEGMENT_HEADER_BYTES = 4096
SEGMENT_HEADER = Struct("<8sII16s16sQQ16sQQQ")


@dataclass(slots=True)
class SegmentHeader:
    """What a segment says of itself. Written once, before the file has its name."""

    cluster: bytes
    log: bytes
    number: int
    first: int
    previous: bytes
    salt: int
    size: int
    generation: int = 0

    @property
    def seed(self) -> int:
        """The salt as a start value for CRCs."""
        return crc32(self.salt.to_bytes(8, "little"))


def pack_segment_header(header: SegmentHeader) -> bytes:
    """The 4096 bytes that open a segment."""

    def block(crc: int) -> bytes:
        fields = SEGMENT_HEADER.pack(
            SEGMENT_MAGIC,
            FORMAT,
            crc,
            header.cluster,
            header.log,
            header.number,
            header.first,
            header.previous,
            header.salt,
            header.size,
            header.generation,
        )
        return fields.ljust(SEGMENT_HEADER_BYTES, b"\0")

    return block(crc32(block(0)))


def segment_format(block: bytes) -> int:
    """The format number of a segment, readable whatever came after version 1.

    Raises Malformed if this is no segment at all.
    """
    if len(block) < SEGMENT_HEADER_BYTES or not block.startswith(SEGMENT_MAGIC):
        raise Malformed("no segment header")
    return int.from_bytes(block[8:12], "little")


def unpack_segment_header(block: bytes) -> SegmentHeader:
    """The header in these 4096 bytes; Malformed if a bit of them is wrong."""
    _, _, crc, *fields = SEGMENT_HEADER.unpack_from(block)
    header = SegmentHeader(*fields)
    if segment_format(block) != FORMAT or pack_segment_header(header) != block:
        raise Malformed(f"segment header checksum {crc:08x} disagrees")
    return header


def first_chain(block: bytes) -> bytes:
    """The digest a segment's first batch is chained to: it stands for the whole header."""
    return blake2b(block, digest_size=CHAIN_BYTES).digest()


# Batch: header, records, zeros up to a sector less 16, digest.
#
#   0       4      8        16       20        24      28       32
#   | magic | crc  | number | length | records | slots | zero   | durable_upto |
#   40      48        56        64        72                        length-16
#   | epoch | wall_ms | key_min | key_max | records ... | zeros     | digest 16 |
#
# crc: seeded by the salt, over the header behind it. length: of all of it, a multiple of
# 512. durable_upto: highest batch known durable when this one was written: the proof by
# which recovery tells a torn tail from corruption. keys: an opaque range, 0/0 is none.
BATCH_MAGIC = b"QBAT"
BATCH_HEADER = Struct("<4sIQIIIIQQQQQ")
BATCH_HEADER_BYTES = BATCH_HEADER.size
BATCH_FIELDS = Struct("<QIIIIQQQQQ")
CHAIN_BYTES = 16
BATCH_OVERHEAD_BYTES = BATCH_HEADER_BYTES + CHAIN_BYTES


# Record: header and body, one behind the other, in the order they were added.
#
#   0      4             8          16     17      18      20
#   | crc  | body length | position | type | flags | count | body ... |
#
# crc: seeded by the salt, over everything behind it. position: batch number << 20 | slot.
# type: 1 to 255; 0 is invalid, so that empty space never looks like a record. count:
# slots this record takes, at least one.
RECORD_HEADER = Struct("<IIQBBH")
RECORD_HEADER_BYTES = RECORD_HEADER.size
RECORD_FIELDS = Struct("<IQBBH")


# Footer: one sector behind the last batch of a sealed segment. It is written only after
# all before it is durable, so behind a valid footer any bad byte is corruption.
#
#   0       4      8       16     24        32    40        48        56        72
#   | magic | crc  | first | last | records | end | key_min | key_max | chain 16 |
#   72            80           96      104                                   512
#   | number_last | content 16 | clean | zeros                                 |
#
# end: where the footer begins. chain: the log's digest at batch `last`, which the next
# segment continues. An empty segment has last = first - 1. number_last: the number of the
# last segment in it. content: the digest of the last batch in this file. Only cleaning
# makes chain and content, number and number_last differ. clean: 1 if a clean stop sealed it, 0 if
# a roll, a recovery or anything else did. crc: seeded, over all behind it.
FOOTER_MAGIC = b"QEND"
FOOTER = Struct("<4sIQQQQQQ16sQ16sQ")
FOOTER_FIELDS = Struct("<QQQQQQ16sQ16sQ")
FOOTER_BYTES = SECTOR_BYTES


@dataclass(slots=True)
class BatchInfo:
    """A batch's header. `length` is its bytes on disk; wall_ms is epoch milliseconds."""

    number: int
    length: int
    records: int
    slots: int
    durable_upto: int
    epoch: int
    wall_ms: int
    key_min: int
    key_max: int


@dataclass(slots=True)
class StoredRecord:
    """A record as it was added, checked. `wall_ms` is its batch's.

    Nobody assigns to it. Not frozen, because building one is what a replay does ten
    million times, and frozen costs four times as much.
    """

    position: int
    type: int
    flags: int
    count: int
    body: bytes
    wall_ms: int


class Held(NamedTuple):
    """A record found by what stands in it, checked: what is known without its batch's header."""

    position: int
    type: int
    body: bytes


@dataclass(slots=True)
class Footer:
    """The last word of a sealed segment."""

    first: int
    last: int
    records: int
    end: int
    key_min: int
    key_max: int
    chain: bytes
    number_last: int
    content: bytes
    clean: int = 0
    """1: nothing that the writer knew is missing from the log up to here."""


def rounded(length: int) -> int:
    """`length` bytes, up to whole sectors."""
    return -(-length // SECTOR_BYTES) * SECTOR_BYTES


def chained(content: memoryview, salt: int, chain: bytes) -> bytes:
    """The 16-byte digest of a batch's content, behind the batch whose digest is `chain`."""
    return blake2b(
        content, digest_size=CHAIN_BYTES, key=chain, salt=salt.to_bytes(8, "little")
    ).digest()


def unpack_batch_header(data: bytes, at: int, seed: int) -> BatchInfo:
    """The batch header at `at`; Malformed if there is none or a bit of it is wrong.

    Says nothing about the records behind it.
    """
    if at + BATCH_HEADER_BYTES > len(data):
        raise Malformed("the file ends inside a batch header")
    magic, crc, number, length, records, slots, zero, durable, epoch, wall_ms, low, high = (
        BATCH_HEADER.unpack_from(data, at)
    )
    if magic != BATCH_MAGIC:
        raise Malformed(f"no batch begins here, the bytes are {magic!r}")
    if crc32(memoryview(data)[at + 8 : at + BATCH_HEADER_BYTES], seed) != crc:
        raise Malformed("batch header checksum disagrees")
    if zero or length < SECTOR_BYTES or length % SECTOR_BYTES:
        raise Malformed(f"batch header is well signed but senseless (length {length})")
    return BatchInfo(number, length, records, slots, durable, epoch, wall_ms, low, high)


def check_batch(content: memoryview, salt: int, chain: bytes) -> bytes:
    """The digest of this whole batch, once it was found to verify; else Malformed."""
    digest = chained(content[:-CHAIN_BYTES], salt, chain)
    if digest != content[-CHAIN_BYTES:]:
        raise Malformed("batch digest disagrees")
    return digest


def unpack_records(
    data: bytes, at: int, info: BatchInfo, seed: int, *, sparse: bool = False
) -> list[StoredRecord]:
    """All records of the batch whose header is at `at`, every checksum verified.

    Malformed if one disagrees. `sparse`: it was cleaned, slots may be empty. One object
    a record.
    """
    end = at + info.length - CHAIN_BYTES
    at += BATCH_HEADER_BYTES
    position = info.number << SLOT_BITS
    last = position + info.slots
    wall_ms = info.wall_ms
    found: list[StoredRecord] = []
    view = memoryview(data)
    for _ in range(info.records):
        if at + RECORD_HEADER_BYTES > end:
            raise Malformed("a record reaches beyond its batch")
        crc, length, where, type_, flags, count = RECORD_HEADER.unpack_from(data, at)
        body = at + RECORD_HEADER_BYTES
        stop = body + length
        if stop > end or (where != position and not (sparse and position < where < last)):
            raise Malformed(f"record header senseless (position {where}, length {length})")
        if crc32(view[at + 4 : stop], seed) != crc or not type_:
            raise Malformed(f"checksum of the record at position {where} disagrees")
        found.append(StoredRecord(where, type_, flags, count, data[body:stop], wall_ms))
        position = where + count
        at = stop
    return found


def unpack_record(data: bytes, at: int, wall_ms: int, seed: int) -> StoredRecord:
    """The one record at `at`, whole in `data`, its checksum verified; else Malformed."""
    crc, length, where, type_, flags, count = RECORD_HEADER.unpack_from(data, at)
    body = at + RECORD_HEADER_BYTES
    if crc32(memoryview(data)[at + 4 : body + length], seed) != crc or not type_:
        raise Malformed(f"checksum of the record at position {where} disagrees")
    return StoredRecord(where, type_, flags, count, data[body : body + length], wall_ms)


def pack_footer(footer: Footer, seed: int) -> bytes:
    """The sector that seals a segment."""
    fields = FOOTER_FIELDS.pack(
        footer.first,
        footer.last,
        footer.records,
        footer.end,
        footer.key_min,
        footer.key_max,
        footer.chain,
        footer.number_last,
        footer.content,
        footer.clean,
    ).ljust(FOOTER_BYTES - 8, b"\0")
    return FOOTER_MAGIC + crc32(fields, seed).to_bytes(4, "little") + fields


def unpack_footer(data: bytes, at: int, seed: int) -> Footer:
    """The footer at `at`; Malformed if there is none or a bit of it is wrong."""
    block = data[at : at + FOOTER_BYTES]
    if len(block) < FOOTER_BYTES or not block.startswith(FOOTER_MAGIC):
        raise Malformed("no footer here")
    if crc32(block[8:], seed) != int.from_bytes(block[4:8], "little"):
        raise Malformed("footer checksum disagrees")
    return Footer(*FOOTER_FIELDS.unpack_from(block, 8))

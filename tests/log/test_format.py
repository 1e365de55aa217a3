"""The bytes on disk, held against golden ones: a change here is a new format."""

from __future__ import annotations

from zlib import crc32

import pytest

from qbroker.log.batch import BatchBuilder, Stamp, pack_batch
from qbroker.log.errors import TooLargeError
from qbroker.log.format import (
    BATCH_HEADER_BYTES,
    CHAIN_BYTES,
    COUNT_MAX,
    RECORD_BYTES_MAX,
    SECTOR_BYTES,
    SLOTS_MAX,
    Footer,
    Malformed,
    SegmentHeader,
    StoredRecord,
    chained,
    check_batch,
    first_chain,
    pack_footer,
    pack_segment_header,
    unpack_batch_header,
    unpack_footer,
    unpack_record,
    unpack_records,
    unpack_segment_header,
)

HEADER = SegmentHeader(
    cluster=bytes(range(16)),
    log=bytes(range(16, 32)),
    number=2,
    first=7,
    previous=bytes(range(32, 48)),
    salt=0x1122334455667788,
    size=64 << 20,
    generation=9,
)
STAMP = Stamp(durable_upto=6, epoch=5, wall_ms=1_700_000_000_000, key_min=10, key_max=20)


def example() -> tuple[bytes, bytes]:
    batch = BatchBuilder(7)
    batch.add(1, b"hello", count=3, flags=0x80)
    batch.add(255, [b"wor", b"", b"ld"])
    data, digest = pack_batch(batch, STAMP, HEADER.salt, HEADER.seed, bytes(16))
    return bytes(data), digest


def test_a_segment_header_is_these_bytes() -> None:
    """A header written by any version 2 can be read for ever."""
    block = pack_segment_header(HEADER)
    assert len(block) == 4096
    assert block[:104].hex() == GOLDEN_SEGMENT
    assert not block[104:].strip(b"\0")
    assert first_chain(block).hex() == GOLDEN_FIRST_CHAIN
    assert unpack_segment_header(block) == HEADER


def test_a_batch_is_these_bytes() -> None:
    """A batch written by any version 2 can be read for ever."""
    data, digest = example()
    assert len(data) == SECTOR_BYTES
    assert data[:122].hex() == GOLDEN_BATCH
    assert not data[122:-CHAIN_BYTES].strip(b"\0")
    assert data[-CHAIN_BYTES:] == digest
    assert digest.hex() == GOLDEN_DIGEST


def test_what_was_packed_is_read_back() -> None:
    """Header, digest and records of a batch give back what was put in."""
    data, digest = example()
    info = unpack_batch_header(data, 0, HEADER.seed)
    assert (info.number, info.length, info.records, info.slots) == (7, 512, 2, 4)
    assert (info.durable_upto, info.epoch, info.wall_ms) == (6, 5, 1_700_000_000_000)
    assert (info.key_min, info.key_max) == (10, 20)
    assert check_batch(memoryview(data), HEADER.salt, bytes(16)) == digest
    assert unpack_records(data, 0, info, HEADER.seed) == [
        StoredRecord(7 << 20, 1, 0x80, 3, b"hello", info.wall_ms),
        StoredRecord(7 << 20 | 3, 255, 0, 1, b"world", info.wall_ms),
    ]


def test_a_footer_is_these_bytes() -> None:
    """A footer written by any version 2 can be read for ever."""
    footer = Footer(7, 9, 12, 8192, 10, 20, bytes(range(16)), 3, bytes(range(16, 32)), 1)
    block = pack_footer(footer, HEADER.seed)
    assert len(block) == SECTOR_BYTES
    assert block[:104].hex() == GOLDEN_FOOTER
    assert unpack_footer(b"x" + block, 1, HEADER.seed) == footer


@pytest.mark.parametrize("block", [pack_segment_header(HEADER), b""])
def test_a_flipped_bit_of_a_segment_header_is_seen(block: bytes) -> None:
    """Every byte of the 4096 is guarded, the unused ones too; so is their number."""
    with pytest.raises(Malformed):
        unpack_segment_header(block[:-1] + b"\1" if block else bytes(4096))
    for at in range(min(len(block), 128)):
        damaged = bytearray(block)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(Malformed):
            unpack_segment_header(bytes(damaged))


def test_a_flipped_bit_of_a_batch_is_seen() -> None:
    """Header, records, padding and digest: no bit of a batch is unguarded."""
    data, _ = example()
    for at in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(Malformed):
            check_batch(memoryview(damaged), HEADER.salt, bytes(16))
        if at < BATCH_HEADER_BYTES * 8:
            with pytest.raises(Malformed):
                unpack_batch_header(bytes(damaged), 0, HEADER.seed)


def test_a_flipped_bit_of_a_record_is_seen_by_its_own_checksum() -> None:
    """Where the digest is not looked at, the record's CRC guards all of the record."""
    data, _ = example()
    info = unpack_batch_header(data, 0, HEADER.seed)
    for at in range(BATCH_HEADER_BYTES * 8, 122 * 8):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(Malformed):
            unpack_records(bytes(damaged), 0, info, HEADER.seed)


def test_a_flipped_bit_of_a_footer_is_seen() -> None:
    """All of a footer's sector is guarded."""
    block = pack_footer(Footer(7, 9, 12, 8192, 10, 20, bytes(16), 3, bytes(16)), HEADER.seed)
    for at in range(len(block)):
        damaged = bytearray(block)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(Malformed):
            unpack_footer(bytes(damaged), 0, HEADER.seed)


def test_another_segments_salt_does_not_fit() -> None:
    """Bytes left over from another file, or copied into a body, never pass for a batch."""
    data, _ = example()
    other = SegmentHeader(bytes(16), bytes(16), 1, 1, bytes(16), 1, 0)
    with pytest.raises(Malformed, match="header checksum"):
        unpack_batch_header(data, 0, other.seed)
    info = unpack_batch_header(data, 0, HEADER.seed)
    with pytest.raises(Malformed, match="checksum of the record"):
        unpack_records(data, 0, info, other.seed)
    with pytest.raises(Malformed, match="checksum of the record"):
        unpack_record(data, BATCH_HEADER_BYTES, 0, other.seed)


def test_a_well_signed_header_without_sense_is_refused() -> None:
    """A length that is no whole number of sectors is never followed."""
    batch = BatchBuilder(7)
    batch.bytes += 1
    for broken in (0, 100, 513):
        fields = bytearray(example()[0])
        fields[16:20] = broken.to_bytes(4, "little")
        signed = resigned(fields)
        with pytest.raises(Malformed, match="senseless"):
            unpack_batch_header(signed, 0, HEADER.seed)


def test_a_record_count_that_lies_is_refused() -> None:
    """More records than the batch has room for are not looked for behind its end."""
    data, _ = example()
    info = unpack_batch_header(data, 0, HEADER.seed)
    info.records = 3
    with pytest.raises(Malformed, match="senseless"):
        unpack_records(data, 0, info, HEADER.seed)
    batch = BatchBuilder(7)
    batch.add(1, bytes(SECTOR_BYTES - batch.bytes - 20))
    full, _ = pack_batch(batch, STAMP, HEADER.salt, HEADER.seed, bytes(16))
    info = unpack_batch_header(bytes(full), 0, HEADER.seed)
    info.records = 2
    with pytest.raises(Malformed, match="reaches beyond"):
        unpack_records(bytes(full), 0, info, HEADER.seed)


def test_the_chain_tells_neighbours() -> None:
    """The same bytes behind another batch, or in another segment, have another digest."""
    content = memoryview(b"x" * 100)
    digests = {chained(content, 1, bytes(16)), chained(content, 1, b"\1" * 16)}
    assert len(digests | {chained(content, 2, bytes(16))}) == 3


def test_a_batch_hands_out_consecutive_slots() -> None:
    """Positions are batch number and slot; a record with a count takes that many."""
    batch = BatchBuilder(9)
    assert batch.empty
    assert [batch.add(1, b"a"), batch.add(1, b"b", count=10), batch.add(1, b"c")] == [
        9 << 20,
        9 << 20 | 1,
        9 << 20 | 11,
    ]
    assert (batch.slots, batch.bytes, batch.empty) == (12, 88 + 3 * 21, False)


def test_limits_are_named_and_nothing_is_added() -> None:
    """What does not fit is refused with the numbers, and the batch is as before."""
    batch = BatchBuilder(1, bytes_max=1000)
    with pytest.raises(TooLargeError, match=f"limit of {RECORD_BYTES_MAX}"):
        batch.add(1, [b"x" * (RECORD_BYTES_MAX // 2)] * 3)
    assert batch.fits(5000)
    batch.add(1, bytes(900))
    assert not batch.fits(5000)
    with pytest.raises(TooLargeError, match="limit of 1000"):
        batch.add(1, bytes(5))
    for wrong in ({"type": 0}, {"type": 256}, {"flags": 256}, {"count": 0}, {"count": 65_536}):
        with pytest.raises(ValueError, match="out of range"):
            batch.add(**{"type": 1, "body": b""} | wrong)
    assert batch.slots == 1


def test_a_batch_has_a_million_slots() -> None:
    """Slots run out before positions of two batches could meet."""
    batch = BatchBuilder(1)
    while batch.fits(1, COUNT_MAX):
        batch.add(1, b"x", count=COUNT_MAX)
    assert SLOTS_MAX - COUNT_MAX < batch.slots <= SLOTS_MAX


def test_a_record_of_type_zero_is_never_valid() -> None:
    """Empty space cannot look like a record, even with a right checksum."""
    batch = BatchBuilder(7)
    batch.records.append((0, 0, 1, 0, 0, ()))
    batch.bytes += 20
    data, _ = pack_batch(batch, STAMP, HEADER.salt, HEADER.seed, bytes(16))
    info = unpack_batch_header(bytes(data), 0, HEADER.seed)
    with pytest.raises(Malformed):
        unpack_records(bytes(data), 0, info, HEADER.seed)
    with pytest.raises(Malformed):
        unpack_record(bytes(data), BATCH_HEADER_BYTES, 0, HEADER.seed)


def resigned(data: bytearray) -> bytes:
    data[4:8] = crc32(data[8:BATCH_HEADER_BYTES], HEADER.seed).to_bytes(4, "little")
    return bytes(data)


GOLDEN_SEGMENT = (
    "51424c4f4753454702000000b49cc97d000102030405060708090a0b0c0d0e0f101112131415161718191a"
    "1b1c1d1e1f02000000000000000700000000000000202122232425262728292a2b2c2d2e2f887766554433"
    "221100000004000000000900000000000000"
)
GOLDEN_FIRST_CHAIN = "6b1d09ccb6d170d2085ff3730e49ff50"
GOLDEN_BATCH = (
    "51424154cacc0b61070000000000000000020000020000000400000000000000060000000000000005000000"
    "000000000068e5cf8b0100000a000000000000001400000000000000a89814cb050000000000700000000000"
    "0180030068656c6c6f12f8790e050000000300700000000000ff000100776f726c64"
)
GOLDEN_DIGEST = "34c9920aa32ed0b8bb258a381ef93d6b"
GOLDEN_FOOTER = (
    "51454e4449bdc909070000000000000009000000000000000c0000000000000000200000000000000a000000"
    "000000001400000000000000000102030405060708090a0b0c0d0e0f03000000000000001011121314151617"
    "18191a1b1c1d1e1f0100000000000000"
)

"""New task ids: UUIDv7 from the broker's clock, one or a thousand at a time.

Random bytes are kept for the next ids; a forked child forgets its parent's.
"""

import os
from collections.abc import Callable, Iterator

from qprotocol.ids import mint

VERSION_AND_VARIANT = 0x7 << 76 | 0x2 << 62
IDS_FIRST, IDS_MORE = 32, 512
"""Ids of a stream minted at once: few first, for short batches."""
RANDOM = (1 << 80) - 1 ^ 0xF << 76 ^ 0x3 << 62
"""The 74 bits of an id's last 80 that are random."""


NOISE_IDS = 128
"""Ids whose random bytes are asked of the kernel at once."""
_noise: list[bytes] = []


def mint_one(now_ms: int) -> bytes:
    """A new id's 16 bytes.

    Seldom a system call: with several threads each one would hand the interpreter to another.
    """
    try:
        random_80 = _noise.pop()
    except IndexError:
        fresh = os.urandom(10 * NOISE_IDS)
        random_80, *others = (fresh[at : at + 10] for at in range(0, len(fresh), 10))
        _noise.extend(others)
    return mint(now_ms, int.from_bytes(random_80))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_noise.clear)


def mint_many(now_ms: int, count: int) -> bytes:
    """``count`` new ids, 16 bytes each, end to end.

    One AND and one OR over all of them as a single number: 0.1 µs an id.
    """
    fixed = (now_ms & 0xFFFF_FFFF_FFFF) << 80 | VERSION_AND_VARIANT
    ones = int.from_bytes(fixed.to_bytes(16) * count)
    mask = int.from_bytes(RANDOM.to_bytes(16) * count)
    noise = int.from_bytes(os.urandom(16 * count))
    return (noise & mask | ones).to_bytes(16 * count)


def minted(now_ms: Callable[[], int]) -> Iterator[bytes]:
    """New ids without end. Those of one block share their moment."""
    count = IDS_FIRST
    while True:
        block = mint_many(now_ms(), count)
        for at in range(0, len(block), 16):
            yield block[at : at + 16]
        count = IDS_MORE

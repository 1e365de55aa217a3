"""What a runner was delivered and has not begun: the runner's side of its slot.

The messages themselves are in this process's memory, their tokens in the slot's ring, in the
same order. Both change together, under the slot's lock: the runner takes from the front, its
process's network side adds at the end, and the parent recalls from the end (slots.py).
"""

import time
from array import array
from collections import deque
from typing import NamedTuple

from qprotocol import wire
from qprotocol.frames import Deliver
from qprotocol.message import walk
from qworker.slots import (
    CONFIRMED,
    GRANTS_AT,
    HEAD_BYTES,
    HEAD_SIZE,
    LIMIT,
    NO_LIMIT,
    POSITIONS_AT,
    RECEIVED,
    RING,
    STARTED_NS,
    TAKEN,
    Slot,
    Token,
)


class Parcel(NamedTuple):
    """One delivered message, not unpacked yet: bytes ``start`` to ``end`` of a frame's raw."""

    raw: bytes
    start: int
    end: int
    position: int
    grant: int
    deliveries: int
    failures: int
    crashes: int

    @property
    def token(self) -> Token:
        return self.position, self.grant


class Hand:
    """The parcels in hand, first in, first out."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.parcels: deque[Parcel] = deque()

    def __len__(self) -> int:
        return len(self.parcels)

    def receive(self, frame: Deliver) -> int:
        """The frame's messages are in hand and may be taken or recalled. How many there are.

        Raises ValueError if the frame's raw section is not as wire.py says.
        """
        parcels, positions = unpack_delivery(frame)
        slot, words, count = self.slot, self.slot.words, len(parcels)
        with slot.lock:
            self._drop_recalled()
            start = words[RECEIVED]
            if start - words[TAKEN] + count > RING:
                raise ValueError(f"{count} deliveries more than any credit allowed")
            at = start % RING
            first = min(count, RING - at)
            for begin, part in ((at, positions[:first]), (0, positions[first:])):
                end = begin + len(part)
                words[POSITIONS_AT + begin : POSITIONS_AT + end] = memoryview(part)
                grants = array("Q", (frame.grant,)) * len(part)
                words[GRANTS_AT + begin : GRANTS_AT + end] = memoryview(grants)
                slot.ends[begin:end] = bytes(len(part))
            words[RECEIVED] = start + count
            self.parcels.extend(parcels)
        return count

    def take(self) -> Parcel | None:
        """The next parcel, which counts as begun from now on; None if all were recalled.

        Only when there is one in hand. 0.5 µs and no system call.
        """
        slot, words = self.slot, self.slot.words
        lock = slot.lock
        lock.acquire()
        taken = words[TAKEN]
        if taken >= words[LIMIT] or not self.parcels:
            self._drop_recalled()
            lock.release()
            return None
        parcel = self.parcels.popleft()
        raw, start, end = parcel[:3]
        size = min(end - start, HEAD_BYTES)
        slot.head[:size] = raw[start : start + size]
        words[HEAD_SIZE] = size
        words[STARTED_NS] = time.monotonic_ns()
        words[TAKEN] = taken + 1
        lock.release()
        return parcel

    def give_back(self) -> list[Token]:
        """Nothing is in hand any more; the tokens that were, for the caller to release."""
        with self.slot.lock:
            self._drop_recalled()
            self.slot.words[RECEIVED] = self.slot.words[TAKEN]
            tokens = [parcel.token for parcel in self.parcels]
            self.parcels.clear()
        return tokens

    def outstanding(self) -> list[Token]:
        """Every token that the broker may still hold for this runner, oldest first."""
        with self.slot.lock:
            self._drop_recalled()
            words = self.slot.words
            start = max(words[CONFIRMED], words[RECEIVED] - RING, 0)
            return self.slot.tokens(start, words[RECEIVED])

    def _drop_recalled(self) -> None:
        """What the parent recalled is gone from the end, and the limit with it."""
        words = self.slot.words
        limit = words[LIMIT]
        if limit == NO_LIMIT:
            return
        words[LIMIT] = NO_LIMIT
        for _ in range(words[RECEIVED] - limit):
            self.parcels.pop()
        words[RECEIVED] = limit


def unpack_delivery(frame: Deliver) -> tuple[list[Parcel], "array[int]"]:
    """The parcels of a Deliver frame, and their positions. Raises ValueError if malformed."""
    raw, at = frame.raw, 0
    if len(raw) < frame.runs * wire.RUN.size + frame.touched * wire.TOUCHED.size:
        raise ValueError("a Deliver frame is shorter than its tables")
    positions = array("Q")
    for _ in range(frame.runs):
        first, count = wire.RUN.unpack_from(raw, at)
        at += wire.RUN.size
        positions.extend(range(first, first + min(count, frame.count)))
    counters: dict[int, tuple[int, int, int]] = {}
    for _ in range(frame.touched):
        index, deliveries, failures, crashes = wire.TOUCHED.unpack_from(raw, at)
        counters[index] = (deliveries, failures, crashes)
        at += wire.TOUCHED.size
    spans = list(walk(raw, at))
    if not len(spans) == len(positions) == frame.count:
        raise ValueError(
            f"a Deliver frame of {frame.count} messages has {len(positions)} positions "
            f"and {len(spans)} bodies"
        )
    grant, new = frame.grant, (1, 0, 0)
    if not counters:
        parcels = [
            Parcel(raw, start, end, position, grant, 1, 0, 0)
            for (start, end), position in zip(spans, positions, strict=True)
        ]
    else:
        parcels = [
            Parcel(raw, *span, position, grant, *counters.get(index, new))
            for index, (span, position) in enumerate(zip(spans, positions, strict=True))
        ]
    return parcels, positions

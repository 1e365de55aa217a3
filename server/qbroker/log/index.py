"""Where a segment's batches are: one entry for at least every 16 KiB of file.

An entry is the first batch behind it, its offset, and the range of keys of all
batches up to the next entry: 24 bytes. Ten million batches of one small message need
some 7 MB. A cache: rebuilt from batch headers, never written to disk.

One thread adds, any number look up. `numbers` is extended last, so an entry is
complete before it can be found.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right

from qbroker.log.format import BatchInfo

SPACING_BYTES = 16 << 10
NO_KEY = (1 << 64) - 1


class BatchIndex:
    """The sparse index of one segment whose first batch is `first`."""

    __slots__ = (
        "first",
        "key_max",
        "key_maxima",
        "key_min",
        "key_minima",
        "last",
        "numbers",
        "offsets",
    )

    def __init__(self, first: int) -> None:
        self.first = first
        self.last = first - 1
        self.numbers = array("I")  # less `first`: four bytes are enough for one segment
        self.offsets = array("I")
        self.key_minima = array("Q")
        self.key_maxima = array("Q")
        self.key_min = NO_KEY  # of the whole segment; above key_max while there is none
        self.key_max = 0

    def add(self, info: BatchInfo, offset: int) -> None:
        """The batch at `offset` can be found. In order, each once."""
        low, high = info.key_min, info.key_max
        self.last = info.number
        if high:
            self.key_min = min(self.key_min, low)
            self.key_max = max(self.key_max, high)
        if self.offsets and offset - self.offsets[-1] < SPACING_BYTES:
            if high:
                self.key_minima[-1] = min(self.key_minima[-1], low)
                self.key_maxima[-1] = max(self.key_maxima[-1], high)
            return
        self.begin(info.number, offset, (low if high else NO_KEY, high))

    def begin(self, number: int, offset: int, keys: tuple[int, int]) -> None:
        """An entry of its own, with the keys of what is at `offset`, lowest and highest."""
        self.offsets.append(offset)
        self.key_minima.append(keys[0])
        self.key_maxima.append(keys[1])
        self.numbers.append(number - self.first)

    def widen(self, keys: tuple[int, int]) -> None:
        """The segment has at least this range of keys."""
        self.key_min = min(self.key_min, keys[0])
        self.key_max = max(self.key_max, keys[1])

    def floor(self, number: int) -> tuple[int, int]:
        """Number and offset of the last entry at or before batch `number`, else of the first."""
        at = max(bisect_right(self.numbers, number - self.first) - 1, 0)
        return self.first + self.numbers[at], self.offsets[at]

    def candidates(self, key: int, last: int) -> list[range]:
        """Batch numbers that may hold `key`, as ranges, oldest first; `last` ends the segment.

        Walks all entries of the segment: 4,096 of them in 64 MiB.
        """
        found: list[range] = []
        count = len(self.numbers)
        for at in range(count):
            if self.key_minima[at] <= key <= self.key_maxima[at]:
                start = self.first + self.numbers[at]
                stop = self.first + self.numbers[at + 1] if at + 1 < count else last + 1
                if found and found[-1].stop == start:
                    found[-1] = range(found[-1].start, stop)
                else:
                    found.append(range(start, stop))
        return found

"""Where a segment's batches are: one entry for at least every 16 KiB of file.

An entry is the first batch behind it, its offset, and the range of keys of all
batches up to the next entry: 24 bytes. Ten million batches of one small message need
some 7 MB. A large batch has an entry for itself, and marks inside. A cache: rebuilt from
batch headers, but for the marks; never written to disk.

One thread adds, any number look up. `numbers` is extended last, so an entry is
complete before it can be found.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from qbroker.log.format import BATCH_HEADER_BYTES, BatchInfo
from qbroker.log.marks import NO_KEY, SPACING_BYTES, Marks, Piece


class BatchIndex:
    """The sparse index of one segment whose first batch is `first`."""

    __slots__ = (
        "first",
        "key_max",
        "key_maxima",
        "key_min",
        "key_minima",
        "last",
        "marks",
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
        self.marks = Marks()

    def add(self, info: BatchInfo, offset: int, pieces: Sequence[Piece] = (), end: int = 0) -> None:
        """The batch at `offset` can be found. In order, each once.

        Of the one that writes it, the pieces and where the last of them ends are known, too.
        """
        low, high = info.key_min, info.key_max
        self.last = info.number
        if high:
            self.key_min = min(self.key_min, low)
            self.key_max = max(self.key_max, high)
        if len(pieces) > 1 and high:  # over SPACING_BYTES: the next one has its own entry, too
            self.marks.note(offset, pieces, end, low)
            self.begin(info.number, offset, (low, high))
            return
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
        at = self._floor(number)
        return self.first + self.numbers[at], self.offsets[at]

    def parts(self, batches: range, key: int) -> Iterator[tuple[range, list[range] | None]]:
        """These batches, entry by entry, and where in the file records with the key may be.

        None: anywhere in them.
        """
        at, start = self._floor(batches.start), batches.start
        while start < batches.stop:
            first = self.offsets[at] + BATCH_HEADER_BYTES
            stretches = self.marks.stretches(first, key, self.key_minima[at])
            at += 1
            stop = self.first + self.numbers[at] if at < len(self.numbers) else batches.stop
            yield range(start, min(stop, batches.stop)), stretches
            start = stop

    def _floor(self, number: int) -> int:
        return max(bisect_right(self.numbers, number - self.first) - 1, 0)

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

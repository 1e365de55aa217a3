"""Where to look inside large batches: a mark for at least every 16 KiB, at a record.

A mark is where the record begins in the file, and the range of keys from there to the next
mark: 8 bytes. Keys are kept as their distance from the batch's lowest one, the same for all
that are 65,535 or more above it: then more is read than need be, and nothing is missed.

Batches that were written in this life of the broker have them; of others only the header's
range of keys is known, and they are read whole.

One thread adds, any number look up: see BatchIndex.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

SPACING_BYTES = 16 << 10
"""Entries of an index, and marks, are at least so far apart."""
NO_KEY = (1 << 64) - 1
_FAR = (1 << 16) - 1
_END = (1, 0)
"""In the place of a range of keys: the batch's records end here."""


@dataclass(slots=True)
class Piece:
    """Records of one batch, from `offset` (from the batch's beginning) to the next piece."""

    offset: int
    key_min: int = NO_KEY  # above key_max while there is none
    key_max: int = 0


class Marks:
    """The marks of one segment, by their place in the file."""

    __slots__ = ("maxima", "minima", "offsets")

    def __init__(self) -> None:
        self.minima = array("H")
        self.maxima = array("H")
        self.offsets = array("I")

    def note(self, offset: int, pieces: Iterable[Piece], end: int, key_min: int) -> None:
        """The batch at `offset`, whose records end `end` bytes behind that, has these pieces."""
        for piece in pieces:
            low, high = _distance(piece.key_min, key_min), _distance(piece.key_max, key_min)
            self._add(offset + piece.offset, low, high)
        self._add(offset + end, *_END)

    def _add(self, offset: int, low: int, high: int) -> None:
        self.minima.append(low)
        self.maxima.append(high)
        self.offsets.append(offset)

    def stretches(self, first: int, key: int, key_min: int) -> list[range] | None:
        """Where in the file records with this key may be, in the batch whose first record is
        at `first`; neighbours as one. None if the batch has no marks.
        """
        at = bisect_left(self.offsets, first)
        if at == len(self.offsets) or self.offsets[at] != first:
            return None
        distance, found = _distance(key, key_min), list[range]()
        while (keys := (self.minima[at], self.maxima[at])) != _END:
            start, stop = self.offsets[at], self.offsets[at + 1]
            if keys[0] <= distance <= keys[1]:
                if found and found[-1].stop == start:
                    start = found.pop().start
                found.append(range(start, stop))
            at += 1
        return found


def _distance(key: int, key_min: int) -> int:
    """Of a key from the batch's lowest one, as marks have it: larger keys are never nearer."""
    return min(max(key - key_min, 0), _FAR)

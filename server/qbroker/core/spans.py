"""A sorted set of positions in which neighbours are one span: 16 bytes a span.

Spans lie in blocks of bounded length, so that adding and taking out cost about the same
however many there are.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator

BLOCK_SPANS = 512
"""Spans in a block; one more, and it is cut in halves."""


class Spans:
    """Positions, lowest first. Durable as what its owner is; blocks are nobody's business."""

    __slots__ = ("_ends", "_firsts", "_lows")

    def __init__(self) -> None:
        self._firsts: list[array[int]] = []
        """A block's spans begin here ..."""
        self._ends: list[array[int]] = []
        """... and end before here."""
        self._lows: list[int] = []
        """The first position of each block."""

    def __bool__(self) -> bool:
        """Whether there is a position."""
        return bool(self._lows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(first, end) of each span, lowest first."""
        for firsts, ends in zip(self._firsts, self._ends, strict=True):
            yield from zip(firsts, ends, strict=True)

    def __contains__(self, position: int) -> bool:
        block, index = self._before(position)
        return index >= 0 and position < self._ends[block][index]

    def first(self) -> int:
        """The lowest position. Only when there is one."""
        return self._lows[0]

    def add(self, first: int, end: int) -> None:
        """Take in ``range(first, end)``, none of which is in."""
        if not self._lows:
            self._firsts, self._ends = [array("Q", (first,))], [array("Q", (end,))]
            self._lows = [first]
            return
        block, index = self._before(first)
        firsts, ends = self._firsts[block], self._ends[block]
        joins_next = index + 1 < len(firsts) and firsts[index + 1] == end
        if index >= 0 and ends[index] == first:
            ends[index] = ends[index + 1] if joins_next else end
            if joins_next:
                del firsts[index + 1], ends[index + 1]
            return
        if joins_next:
            firsts[index + 1] = first
        else:
            firsts.insert(index + 1, first)
            ends.insert(index + 1, end)
        self._lows[block] = firsts[0]
        if len(firsts) > BLOCK_SPANS:
            self._halve(block)

    def cut(self, first: int, end: int) -> int:
        """Take ``first`` out and its neighbours below ``end``; where that stopped.

        That is ``first`` itself if it is not in.
        """
        block, index = self._before(first)
        if index < 0 or first >= self._ends[block][index]:
            return first
        firsts, ends = self._firsts[block], self._ends[block]
        began, ended = firsts[index], ends[index]
        end = min(end, ended)
        if began == first:
            if end < ended:
                firsts[index] = end
            else:
                del firsts[index], ends[index]
        else:
            ends[index] = first
            if end < ended:
                firsts.insert(index + 1, end)
                ends.insert(index + 1, ended)
        if firsts:
            self._lows[block] = firsts[0]
        else:
            del self._firsts[block], self._ends[block], self._lows[block]
        return end

    def take(self, limit: int, before: int) -> tuple[int, int]:
        """The lowest position and its neighbours out, as (first, count).

        At most ``limit``, and only the lowest itself if it is not below ``before``.
        """
        first = self._lows[0]
        end = self.cut(first, min(first + limit, max(before, first + 1)))
        return first, end - first

    def _before(self, position: int) -> tuple[int, int]:
        """Block and index of the last span that begins at or before ``position``; -1 if none."""
        block = bisect_right(self._lows, position) - 1
        if block < 0:
            return 0, -1
        return block, bisect_right(self._firsts[block], position) - 1

    def _halve(self, block: int) -> None:
        half = BLOCK_SPANS // 2
        for column in (self._firsts, self._ends):
            whole = column[block]
            column[block : block + 1] = [whole[:half], whole[half:]]
        self._lows.insert(block + 1, self._firsts[block + 1][0])

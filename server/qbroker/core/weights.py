"""How large the messages of a queue are: kept only where there is a limit to their bytes.

Four bytes a message, in the pieces in which they came; a piece goes with its last message.
"""

from array import array
from bisect import bisect_right, insort
from collections.abc import Iterator

_NOTHING = array("I")


class Weights:
    """Sizes by position. What came before the limit has none, and counts as nothing."""

    __slots__ = ("_firsts", "_pieces", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        """Of all messages whose size is known."""
        self._firsts: list[int] = []
        self._pieces: dict[int, array[int]] = {}
        """First position to the sizes of neighbours; 0 is gone."""

    def add(self, first: int, sizes: "array[int]") -> None:
        """Neighbours from ``first`` on have these sizes."""
        self.drop(first, len(sizes))
        self.bytes += sum(sizes)
        start, piece = self._piece(first)
        if first - start < len(piece):  # it was here before, with neighbours that still are
            piece[first - start : first - start + len(sizes)] = sizes
        else:
            insort(self._firsts, first)
            self._pieces[first] = sizes

    def drop(self, first: int, count: int = 1) -> int:
        """These are not in the queue any more; how many bytes they had."""
        dropped = 0
        for position in range(first, first + count):
            start, piece = self._piece(position)
            if position - start >= len(piece):
                continue
            dropped += piece[position - start]
            piece[position - start] = 0
            if not any(piece):
                del self._pieces[start], self._firsts[bisect_right(self._firsts, start) - 1]
        self.bytes -= dropped
        return dropped

    def of(self, position: int) -> int:
        """The size of the message there; 0 if nobody knows."""
        start, piece = self._piece(position)
        return piece[position - start] if position - start < len(piece) else 0

    def _piece(self, position: int) -> "tuple[int, array[int]]":
        """The piece that has the position, if one has, and where it begins."""
        index = bisect_right(self._firsts, position) - 1
        start = self._firsts[index] if index >= 0 else position
        return start, self._pieces.get(start, _NOTHING)

    def known(self) -> Iterator[int]:
        """The positions whose size is known."""
        for first in self._firsts:
            for index, size in enumerate(self._pieces[first]):
                if size:
                    yield first + index

    def saved(self) -> "tuple[list[int], list[array[int]]]":
        """The first position of each piece, and the pieces as columns."""
        return list(self._firsts), [array("Q", self._pieces[first]) for first in self._firsts]

    @classmethod
    def restored(cls, firsts: list[int], columns: "list[array[int]]") -> "Weights":
        """The same sizes."""
        weights = cls()
        for first, column in zip(firsts, columns, strict=True):
            weights.add(first, array("I", column))
        return weights

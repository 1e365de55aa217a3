"""A run: the FIFO of one lane at one priority. 8 bytes a message; bodies are in the log.

A run of one message is one small object and one small array: all else is made when it is needed,
for there may be a run for each of a million keys.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qbroker.core.spans import Spans

if TYPE_CHECKING:
    from qbroker.core.lanes import Lane

CHUNK_POSITIONS = 4096
"""Positions a chunk; a full one is never changed again."""
END = 2**64
"""Behind every position."""

# What a run has that holds little: one for all, and never changed.
_NO_CHUNK = array("Q")
_NO_SPANS = Spans()
_NO_POSITIONS: set[int] = set()


class Run:
    """A FIFO of positions, with returned ones in front. All of it is durable but ``key``."""

    __slots__ = (
        "chunk",
        "given",
        "head",
        "key",
        "lane",
        "life",
        "more",
        "priority",
        "size",
        "skipped",
    )

    def __init__(self, lane: "Lane", priority: int) -> None:
        self.lane = lane
        self.life = lane.queue.life
        """The life of its queue that it belongs to: after a purge it is dead."""
        self.priority = priority
        self.size = 0
        """Messages that wait here, skipped ones left out."""
        self.chunk: array[int] = _NO_CHUNK
        """Ascending; a position lower than the last starts a new one. Empty if all are."""
        self.head = 0
        """Where in the chunk the first is that was not taken."""
        self.more: deque[array[int]] | None = None
        """The chunks behind it, if there are any."""
        self.given = _NO_SPANS
        """Handed out before and given back; they go first."""
        self.skipped = _NO_POSITIONS
        """Entries still in a chunk that were taken out of order."""
        self.key = -1
        """The head under which its queue has it listed; -1 if it has not."""

    def __lt__(self, other: "Run") -> bool:
        """For heaps, where a run may be listed twice under one head."""
        return self.number < other.number

    @property
    def number(self) -> int:
        """By which records and timers know it."""
        return self.lane.number << 8 | self.priority + 128

    @property
    def chunks(self) -> "list[array[int]]":
        """All of them. Costs a step each."""
        return [self.chunk, *(self.more or ())] if self.chunk else []

    @property
    def is_purged(self) -> bool:
        """Whether what was in it is over."""
        return self.life != self.lane.queue.life

    @property
    def current(self) -> "Run":
        """The run of the same lane and priority in which messages wait now."""
        return self if self.life == self.lane.queue.life else self.lane.run(self.priority)

    def extend(self, first: int, count: int) -> None:
        """Put ``count`` consecutive positions at the end."""
        self.put(range(first, first + count))

    def put(self, positions: Sequence[int]) -> None:
        """Put some ascending positions at the end."""
        if self.skipped:
            for position in self.skipped.intersection(positions):
                self._strike(position)
        last = self.more[-1] if self.more else self.chunk
        if last and len(last) < CHUNK_POSITIONS and last[-1] < positions[0]:
            last.extend(positions)
        else:
            self._append(array("Q", positions if len(positions) > 1 else (positions[0],)))
        self.size += len(positions)

    def adopt(self, positions: "array[int]") -> None:
        """Put an ascending array of positions at the end, without a copy."""
        self._append(positions)
        self.size += len(positions)

    def _append(self, chunk: "array[int]") -> None:
        if not self.chunk:
            self.chunk = chunk
        elif self.more:
            self.more.append(chunk)
        else:
            self.more = deque((chunk,))

    def give_back(self, first: int, count: int) -> None:
        """Put neighbours in front; one that was taken out of order is back in its place."""
        self.size += count
        end = first + count
        if self.skipped:
            for position in range(first, end):
                if position in self.skipped:
                    self.skipped.discard(position)
                    if first < position:
                        self._give(first, position)
                    first = position + 1
        if first < end:
            self._give(first, end)

    def _give(self, first: int, end: int) -> None:
        if not self.given:
            self.given = Spans()
        self.given.add(first, end)

    def turn(self) -> int:
        """The position by which its turn comes among runs. Only when ``size`` is above 0.

        It is the one that leaves next, or the one in line behind what was given back, if that is
        older: what goes first may have replaced an older message, and holds nobody up.
        """
        if self.given is not _NO_SPANS and self.given:
            return min(self.given.first(), self._in_line())
        if self.skipped:
            self._drop_skipped()
        return self.chunk[self.head]

    def _in_line(self) -> int:
        """The first that was not given back, or END."""
        if self.skipped:
            self._drop_skipped()
        return self.chunk[self.head] if self.chunk else END

    def take(self, limit: int, before: int = END) -> list[tuple[int, int]]:
        """Up to ``limit`` positions out, as (first, count) runs; stops at one above ``before``.

        At least one comes out if there is one. Stops early at a chunk's or a span's end: call
        again.
        """
        if self.given is not _NO_SPANS and self.given:
            span = self.given.take(limit, before)
            self.size -= span[1]
            if not self.given:
                self.given = _NO_SPANS
            return [span]
        if self.skipped:
            self._drop_skipped()
        chunk, head = self.chunk, self.head
        if self.size == 1 and not self.skipped:
            self.size = 0
            self._advance(head + 1)
            return [(chunk[head], 1)]
        end = min(len(chunk), head + limit)
        if chunk[end - 1] > before:
            end = max(head + 1, bisect_left(chunk, before, head, end))
        out = self._compact(chunk, head, end)
        self.size -= sum(count for _, count in out)
        self._advance(end)
        if self.skipped is not _NO_POSITIONS:
            self._drop_skipped()
        return out

    def _compact(self, chunk: "array[int]", head: int, end: int) -> list[tuple[int, int]]:
        first, last = chunk[head], chunk[end - 1]
        if last - first == end - head - 1 and not self.skipped:
            return [(first, end - head)]
        out: list[tuple[int, int]] = []
        for position in chunk[head:end]:
            if position in self.skipped:
                self.skipped.discard(position)
            elif out and out[-1][0] + out[-1][1] == position:
                out[-1] = (out[-1][0], out[-1][1] + 1)
            else:
                out.append((position, 1))
        return out

    def remove(self, first: int, count: int) -> None:
        """Take exactly these positions out, wherever they are: what ``take`` did, replayed."""
        self.size -= count
        end = first + count
        while first < end:
            stop = self.given.cut(first, end)
            if stop == first:
                stop = first + 1 if self.given else end
                self._pass_over(first, stop)
            first = stop
        if not self.given:
            self.given = _NO_SPANS

    def _pass_over(self, first: int, end: int) -> None:
        """Take neighbours out of the chunks."""
        chunk, after = self.chunk, self.head + end - first
        at_head = len(chunk) >= after and chunk[self.head] == first and chunk[after - 1] == end - 1
        if at_head and not self.skipped:
            self._advance(after)
        else:
            if not self.skipped:
                self.skipped = set()
            self.skipped.update(range(first, end))
            self._drop_skipped()

    def saved(self) -> "tuple[list[tuple[int, int]], list[int], list[array[int]]]":
        """Spans given back, what is skipped, and the chunks without what has been taken."""
        chunks = self.chunks
        if self.head:
            chunks[0] = chunks[0][self.head :]
        return list(self.given), sorted(self.skipped), chunks

    def restore(
        self, given: list[tuple[int, int]], skipped: list[int], chunks: "list[array[int]]"
    ) -> None:
        """Into a new run: what ``saved`` gave. Chunks are taken over, not copied."""
        for chunk in chunks:
            self.adopt(chunk)
        for first, end in given:
            self._give(first, end)
            self.size += end - first
        if skipped:
            self.skipped = set(skipped)
            self.size -= len(skipped)

    def __contains__(self, position: int) -> bool:
        if position in self.given:
            return True
        return position not in self.skipped and self._find(position) is not None

    def _find(self, position: int) -> tuple[int, int] | None:
        """Which chunk has it, and where in that."""
        for number, chunk in enumerate(self.chunks):
            if chunk[0] <= position <= chunk[-1]:
                index = bisect_left(chunk, position, 0 if number else self.head)
                if index < len(chunk) and chunk[index] == position:
                    return number, index
        return None

    def _strike(self, position: int) -> None:
        """What was skipped comes in anew: its old entry, which is never the head, is gone."""
        found = self._find(position)
        assert found, f"{position} is skipped, and in no chunk"
        number, index = found
        self.skipped.discard(position)
        chunks = self.chunks
        chunks[number] = chunks[number][:index] + chunks[number][index + 1 :]
        self.chunk = chunks[0]
        self.more = deque(filter(None, chunks[1:])) or None

    def turns(self) -> Iterator[tuple[int, int]]:
        """(turn, position) in the order they would leave."""
        in_line = self._in_line() if self.given else END
        for first, end in self.given:
            for position in range(first, end):
                yield min(position, in_line), position
        for chunk in self.chunks:
            start = self.head if chunk is self.chunk else 0
            for position in chunk[start:]:
                if position not in self.skipped:
                    yield position, position

    def __iter__(self) -> Iterator[int]:
        """Positions in the order they would leave."""
        return (position for _, position in self.turns())

    def _drop_skipped(self) -> None:
        skipped = self.skipped
        while self.chunk and skipped and self.chunk[self.head] in skipped:
            skipped.discard(self.chunk[self.head])
            self._advance(self.head + 1)
        if not skipped:
            self.skipped = _NO_POSITIONS

    def _advance(self, head: int) -> None:
        if head == len(self.chunk):
            self.chunk = self.more.popleft() if self.more else _NO_CHUNK
            if not self.more:
                self.more = None
            head = 0
        self.head = head

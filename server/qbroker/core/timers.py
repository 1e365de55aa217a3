"""Delayed messages in the order they come due: 20 bytes each, however far away.

Time is cut into buckets of 4 seconds. Only the bucket that is next is kept sorted.
"""

from array import array
from bisect import bisect_left, bisect_right, insort
from heapq import heappop, heappush

BUCKET_BITS = 12
"""A bucket is 4,096 ms wide."""


class Bucket:
    """Entries that come due in the same 4 seconds, unsorted."""

    __slots__ = ("dues", "positions", "runs")

    def __init__(self) -> None:
        self.dues = array("Q")
        self.positions = array("Q")
        self.runs = array("Q")

    def add(self, due_ms: int, position: int, run: int) -> None:
        """Take in an entry."""
        self.dues.append(due_ms)
        self.positions.append(position)
        self.runs.append(run)

    def entries(self) -> list[tuple[int, int, int]]:
        """(due, position, run number)."""
        return list(zip(self.dues, self.positions, self.runs, strict=True))


class Timers:
    """(due_ms, position, run number) entries; the total order is theirs as tuples."""

    def __init__(self) -> None:
        self.size = 0
        self._current: list[tuple[int, int, int]] = []
        """Sorted; what is before ``_head`` has been taken."""
        self._head = 0
        self._open = 0
        """Buckets below this number are in ``_current``."""
        self._buckets: dict[int, Bucket] = {}
        self._order: list[int] = []

    def push(self, due_ms: int, position: int, run: int) -> None:
        """Remember that ``position`` becomes ready at ``due_ms``."""
        self.size += 1
        number = due_ms >> BUCKET_BITS
        if number < self._open:
            insort(self._current, (due_ms, position, run), lo=self._head)
            return
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = Bucket()
            heappush(self._order, number)
        bucket.add(due_ms, position, run)

    def next_ms(self) -> int:
        """When something may be due; 0 is never. Far off it is the start of a bucket."""
        if self._head < len(self._current):
            return self._current[self._head][0]
        return max(1, self._order[0] << BUCKET_BITS) if self._order else 0

    def due(self, wall_ms: int, limit: int) -> int:
        """How many entries, at most ``limit``, are due by ``wall_ms``. Takes none."""
        self._open_until(wall_ms)
        last = bisect_right(self._current, (wall_ms, _LAST, _LAST), lo=self._head)
        return min(limit, last - self._head)

    def pop(self, wall_ms: int, count: int) -> list[tuple[int, int, int]]:
        """Take the first ``count`` entries; ``due`` said that they are due by ``wall_ms``."""
        self._open_until(wall_ms)
        out = self._current[self._head : self._head + count]
        self._head += count
        self.size -= count
        if self._head * 2 > len(self._current):
            del self._current[: self._head]
            self._head = 0
        return out

    def holds(self, due_ms: int, position: int, run: int) -> bool:
        """Whether that entry is in. Costs a look at the 4 seconds around ``due_ms``."""
        bucket = self._buckets.get(due_ms >> BUCKET_BITS)
        if bucket is not None:
            return position in bucket.positions
        index = bisect_left(self._current, (due_ms, position, run), lo=self._head)
        return index < len(self._current) and self._current[index] == (due_ms, position, run)

    def drop(self, runs: set[int]) -> set[int]:
        """Take out all entries of these runs; their positions. Looks at every entry."""
        positions: set[int] = set()
        for number, bucket in list(self._buckets.items()):
            if runs.isdisjoint(bucket.runs):
                continue
            if runs.issuperset(bucket.runs):
                positions.update(bucket.positions)
                self._buckets[number] = Bucket()
                continue
            entries = bucket.entries()
            positions.update(position for _, position, run in entries if run in runs)
            kept = Bucket()
            for due_ms, position, run in entries:
                if run not in runs:
                    kept.add(due_ms, position, run)
            self._buckets[number] = kept
        opened = self._current[self._head :]
        positions.update(position for _, position, run in opened if run in runs)
        self._current, self._head = [entry for entry in opened if entry[2] not in runs], 0
        self.size = len(self._current) + sum(len(b.dues) for b in self._buckets.values())
        return positions

    def saved(self) -> "tuple[list[int], list[array[int]]]":
        """The number of each bucket, and three columns of each: dues, positions, runs.

        What is left of opened buckets comes last, without a number.
        """
        columns = []
        for bucket in self._buckets.values():
            columns += [bucket.dues, bucket.positions, bucket.runs]
        rest = self._current[self._head :]
        columns += [array("Q", each) for each in zip(*rest, strict=True)]
        return list(self._buckets), columns

    @classmethod
    def restored(cls, numbers: list[int], columns: "list[array[int]]") -> "Timers":
        """The same entries. Costs a step a bucket, and one for each that was in an opened one."""
        timers = cls()
        for index, number in enumerate(numbers):
            bucket = timers._buckets[number] = Bucket()
            bucket.dues, bucket.positions, bucket.runs = columns[3 * index : 3 * index + 3]
            timers.size += len(bucket.dues)
        timers._order = sorted(numbers)
        for entry in zip(*columns[3 * len(numbers) :], strict=True):
            timers.push(*entry)
        return timers

    def _open_until(self, wall_ms: int) -> None:
        last = wall_ms >> BUCKET_BITS
        opened = False
        while self._order and self._order[0] <= last:
            bucket = self._buckets.pop(heappop(self._order))
            self._current += bucket.entries()
            opened = True
        if opened:
            del self._current[: self._head]
            self._head = 0
            self._current.sort()
        self._open = max(self._open, last + 1)


_LAST = 2**64

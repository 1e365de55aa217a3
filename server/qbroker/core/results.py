"""What became of finished tasks, by the position of their message, and who waits for it.

An entry is an index: the bytes are in the log, at ``record``. Entries live until the archive
has them, their time is over, they are forgotten on demand, or the limit drops the oldest.

A million may wait for the archive, so entries are kept packed: a third of the memory that
objects take, and the collector of garbage, which would stop a turn to walk those, has none.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import islice, takewhile
from struct import Struct
from typing import Any, TypeVar

from qbroker.core.generations import Generations
from qprotocol.states import State

DEADLINES_SPARE = 1_000
"""Deadlines of waiters that are done already, kept before they are cleared away."""


@dataclass(slots=True)
class Finished:
    """What became of a task; in answers also how far an unfinished one is."""

    state: State
    record: int
    """Where the result or failure is in the log; 0 if nothing was kept."""
    content: int
    finished_ms: int
    run_ms: int
    keep_until_ms: int
    failures: int = 0
    reason: str = ""
    name: bytes = b""
    """The id, if its caller chose it: the log has no index of those."""
    settled: int = 0
    """The record that finished it; 0 while it is under way."""

    @property
    def unfinished(self) -> bool:
        """Whether the task is known and something will still become of it."""
        return self.state is not State.UNKNOWN and not self.state.finished

    def pack(self) -> bytes:
        """The entry as it is kept."""
        reason = self.reason.encode()
        fixed = _PACKED.pack(
            *(self.settled, self.keep_until_ms, self.record, self.finished_ms),
            *(self.run_ms, self.failures, len(reason), self.state, self.content),
        )
        return fixed + reason + self.name if reason or self.name else fixed

    @classmethod
    def unpack(cls, raw: bytes) -> "Finished":
        """The entry that ``pack`` made these bytes of."""
        settled, until, record, finished, run, failures, n_reason, state, content = (
            _PACKED.unpack_from(raw)
        )
        middle = _PACKED.size + n_reason
        reason = raw[_PACKED.size : middle].decode()
        rest = until, failures, reason, raw[middle:], settled
        return cls(State(state), record, content, finished, run, *rest)


_PACKED = Struct("<4Q3I2B")
"""settled, keep_until_ms, record, finished_ms; run_ms, failures, length of the reason; state,
content. The reason follows, then the name."""
_NUMBERS = (
    *("state", "record", "content", "finished_ms", "run_ms", "keep_until_ms", "failures"),
    "settled",
)
"""Fields of Finished that are columns of a snapshot, in their order."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the archive says of a task."""

    position: int
    entry: Finished
    kept: bytes
    """Its result or packed failure."""


@dataclass(slots=True)
class Found:
    """What the engine read for a Lookup."""

    messages: dict[int, bytes] = field(default_factory=dict)
    """Positions to packed messages; empty bytes if gone."""
    asked: bool = False
    """Whether the archive was asked, too."""
    remembered: Remembered | None = None
    """What it said; None if it knows nothing."""
    before: int | None = None
    """The first position that is younger than the moment that was asked for."""
    trouble: str = ""
    """Why it could not answer, or the log could not be read, in a sentence."""
    damage: str = ""
    """What is damaged on disk where the log would have it, if nothing else is known of it."""


@dataclass(slots=True, eq=False)
class Waiter:
    """A Watch that waits for the end of a task. Volatile."""

    connection: int
    correlation: int
    id: str
    position: int
    until_ms: int
    """Monotonic."""
    done: bool = False


@dataclass(slots=True)
class Results:
    """Finished tasks, oldest first, and the waiters of unfinished ones."""

    limit: int
    finished: Generations[bytes] = field(default_factory=Generations)
    """Packed; see ``entries``."""
    dropped: int = 0
    """Entries the limit cost since the start."""
    names: dict[bytes, int] = field(default_factory=dict)
    """Chosen ids of entries, to their positions."""
    forgotten: dict[int, int] = field(default_factory=dict)
    """Forgotten on demand, to the record that says so: the archive may not know yet."""
    archived: int = 0
    """Volatile: what was settled up to this position is in the archive."""
    waiters: dict[int, list[Waiter]] = field(default_factory=dict)
    _deadlines: list[tuple[int, int, Waiter]] = field(default_factory=list)
    """A heap of (until, count, waiter); those that are done are passed over."""
    _count: int = 0
    _waiting: int = 0

    def store(self, position: int, entry: Finished) -> int:
        """Keep ``entry`` under the message's position. The position the limit cost, or 0."""
        self.drop(position)
        self.finished.add(position, entry.pack())
        if entry.name:
            self.names[entry.name] = position
        if len(self.finished) <= self.limit:
            return 0
        self.dropped += 1
        oldest = next(iter(self.finished))
        self.drop(oldest)
        return oldest

    def drop(self, position: int) -> None:
        """The entry is gone, if there was one."""
        raw = self.finished.pop(position)
        if raw and self.names:
            name = Finished.unpack(raw).name
            if self.names.get(name) == position:
                del self.names[name]

    def get(self, position: int, wall_ms: int) -> Finished | None:
        """What became of the message, if it is finished and still remembered."""
        raw = self.finished.get(position)
        return Finished.unpack(raw) if raw and until_of(raw) > wall_ms else None

    def entries(self) -> Iterator[tuple[int, Finished]]:
        """Positions and entries, oldest first. They must not change meanwhile."""
        return ((position, Finished.unpack(raw)) for position, raw in self.finished.items())

    def prune(self, wall_ms: int, limit: int) -> list[int]:
        """Drop entries whose time is over, at most ``limit``, oldest first; their positions."""
        over: list[int] = []
        for position, raw in self.finished.items():
            if until_of(raw) > wall_ms or len(over) == limit:
                break
            over.append(position)
        for position in over:
            self.drop(position)
        return over

    def saved(self) -> "tuple[list[Any], list[array[int]]]":
        """A column a number of the entries, oldest first; their texts by row; what has no row."""
        entries = [Finished.unpack(raw) for raw in self.finished.values()]
        reasons = {row: each.reason for row, each in enumerate(entries) if each.reason}
        names = {row: each.name for row, each in enumerate(entries) if each.name}
        columns = [
            array("Q", self.finished),
            *(array("Q", [getattr(each, name) for each in entries]) for name in _NUMBERS),
        ]
        return [reasons, names, self.names, self.forgotten], columns

    @classmethod
    def restored(cls, limit: int, values: list[Any], columns: "list[array[int]]") -> "Results":
        """The same entries; nobody waits."""
        reasons, names, positions, forgotten = values
        results = cls(limit, names=positions, forgotten=forgotten)
        for row, (position, state, *numbers, settled) in enumerate(zip(*columns, strict=True)):
            entry = Finished(State(state), *numbers)
            entry.reason, entry.name = reasons.get(row, ""), names.get(row, b"")
            entry.settled = settled
            results.finished.add(position, entry.pack())
        return results

    def releasable(self, limit: int) -> int:
        """The record up to which entries may go, about ``limit`` at most; 0 if none may."""
        upto = self.archived
        if not self.holds(upto):
            return 0  # most turns: without a walk over so many
        settled = map(settled_of, self.finished.values())
        for records in (settled, iter(self.forgotten.values())):
            upto = min(upto, next(islice(records, limit - 1, None), upto))
        return upto if self.holds(upto) else 0

    def holds(self, upto: int) -> bool:
        """Whether there is anything that the archive knows up to the record ``upto``."""
        first = next(iter(self.finished.values()), None)
        gone = next(iter(self.forgotten.values()), upto + 1)
        return gone <= upto or (first is not None and settled_of(first) <= upto)

    def release(self, upto: int) -> list[int]:
        """The archive is asked from now on for what was settled up to ``upto``; the positions."""
        over = first_ones(self.finished.items(), lambda raw: settled_of(raw) <= upto)
        for position in over:
            self.drop(position)
        for position in first_ones(self.forgotten.items(), lambda record: record <= upto):
            del self.forgotten[position]
        return over

    def wait(self, waiter: Waiter) -> None:
        """Tell ``waiter`` when its message is finished or its time is over."""
        self.waiters.setdefault(waiter.position, []).append(waiter)
        self._count += 1
        self._waiting += 1
        heappush(self._deadlines, (waiter.until_ms, self._count, waiter))
        if len(self._deadlines) > 2 * self._waiting + DEADLINES_SPARE:
            # Most waiters are told long before their time: those must not stay for an hour.
            self._deadlines = [entry for entry in self._deadlines if not entry[2].done]
            heapify(self._deadlines)

    def woken(self, position: int) -> list[Waiter]:
        """The waiters of a message that is finished now; they wait no more."""
        found = self.waiters.pop(position, [])
        for waiter in found:
            waiter.done = True
        self._waiting -= len(found)
        return found

    def move(self, position: int, after: int) -> None:
        """The message has a new position; who waits for it goes on waiting."""
        for waiter in self.waiters.pop(position, []):
            waiter.position = after
            self.waiters.setdefault(after, []).append(waiter)

    def late(self, mono_ms: int) -> list[Waiter]:
        """The waiters whose time is over; they wait no more."""
        out = []
        while self._deadlines and self._deadlines[0][0] <= mono_ms:
            waiter = heappop(self._deadlines)[2]
            if not waiter.done:
                self._drop(waiter)
                out.append(waiter)
        return out

    def next_ms(self) -> int:
        """Monotonic time of the next waiter's end; 0 is never."""
        return self._deadlines[0][0] if self._deadlines else 0

    def leave(self, connection: int) -> None:
        """Forget the waiters of a connection that is gone."""
        for waiters in list(self.waiters.values()):
            for waiter in [w for w in waiters if w.connection == connection]:
                self._drop(waiter)

    def _drop(self, waiter: Waiter) -> None:
        waiter.done = True
        self._waiting -= 1
        left = self.waiters[waiter.position]
        left.remove(waiter)
        if not left:
            del self.waiters[waiter.position]


def settled_of(raw: bytes) -> int:
    """Of a packed entry."""
    return int.from_bytes(raw[:8], "little")


def until_of(raw: bytes) -> int:
    """Its ``keep_until_ms``."""
    return int.from_bytes(raw[8:16], "little")


T = TypeVar("T")


def first_ones(items: Iterable[tuple[int, T]], fits: Callable[[T], bool]) -> list[int]:
    """The keys of the items up to the first that does not fit."""
    return [key for key, _ in takewhile(lambda item: fits(item[1]), items)]

"""What the archivist knows beside the rows: queues, lanes, open grants, tries, names.

All of it is in the archive's file, changed in the transaction that covers the records it
came from. So after a crash it is what it was at the last batch that the rows tell of.

    grants   who was handed which messages, and when; gone when the last of them is back
    tries    messages that failed before, or took another's place; gone with the message
    names    texts by number: rows name tasks, queues and workers by these
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Queue:
    """A queue's name, and of what it wants history."""

    name: str
    history: str


@dataclass(slots=True)
class Lane:
    """A lane: of which queue, for which task; empty for plain messages."""

    queue: int
    task: str


@dataclass(slots=True)
class Grant:
    """Messages that were handed out together."""

    worker: int | None
    granted_ms: int
    left: int
    entries: list[tuple[int, int, int]]
    """(lane, first position, how many)"""
    back: set[int] = field(default_factory=set)
    """Those that wait again, or are somebody else's: named here, and not held any more."""

    def lane_of(self, position: int) -> int:
        """The lane the message was taken from; -1 if it is not of this grant."""
        for lane, first, count in self.entries:
            if first <= position < first + count:
                return lane
        return -1


@dataclass(slots=True)
class Tries:
    """What became of a message before."""

    failures: int
    published_ms: int
    """0: when its own record was written."""
    lane: int
    """Where it waits, or was handed out from."""


@dataclass(slots=True)
class Known:
    """All of it, and what has changed since the last transaction."""

    queues: dict[int, Queue] = field(default_factory=dict)
    lanes: dict[int, Lane] = field(default_factory=dict)
    grants: dict[int, Grant] = field(default_factory=dict)
    tries: dict[int, Tries] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    last_name: int = 0
    """The highest number ever given."""
    new_queues: set[int] = field(default_factory=set)
    new_lanes: set[int] = field(default_factory=set)
    new_names: list[tuple[int, str]] = field(default_factory=list)
    changed_grants: set[int] = field(default_factory=set)
    changed_tries: set[int] = field(default_factory=set)

    def number(self, text: str) -> int:
        """The number that stands for a text, given now if it has none."""
        found = self.names.get(text)
        if found is None:
            self.last_name = found = self.last_name + 1
            self.names[text] = found
            self.new_names.append((found, text))
        return found

    def __post_init__(self) -> None:
        self.last_name = max(self.names.values(), default=0)

    # Grants.

    def open_grant(self, number: int, grant: Grant) -> None:
        """It is open; what is claimed piece by piece comes together again."""
        known = self.grants.get(number)
        if known:
            known.entries += grant.entries
            known.left += grant.left
            for _, first, count in grant.entries:
                known.back.difference_update(range(first, first + count))
        else:
            self.grants[number] = grant
        self.changed_grants.add(number)

    def end(self, number: int, count: int, back: int = 0) -> Grant | None:
        """So many messages of the grant are over, or one is ``back`` and waits again.

        It is dropped with the last. None if it is unknown.
        """
        grant = self.grants.get(number)
        if grant is not None:
            grant.left -= count
            self.changed_grants.add(number)
            if back:
                grant.back.add(back)
            if grant.left <= 0:
                del self.grants[number]
        return grant

    def holders(self, positions: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Each position that is handed out, and the grant that has it. Walks all open grants."""
        wanted = set(positions)
        for number, grant in list(self.grants.items()):
            for _, first, count in grant.entries:
                few = wanted if len(wanted) < count else range(first, first + count)
                held = [p for p in few if first <= p < first + count and p in wanted]
                held = [position for position in held if position not in grant.back]
                wanted.difference_update(held)
                yield from ((position, number) for position in held)

    # Tries.

    def tried(self, position: int, lane: int) -> Tries:
        """The message's entry, made if it is new, to be changed."""
        self.changed_tries.add(position)
        found = self.tries.get(position)
        if found is None:
            found = self.tries[position] = Tries(0, 0, lane)
        found.lane = lane
        return found

    def forget(self, position: int) -> Tries | None:
        """The message is over; what was known of it."""
        found = self.tries.pop(position, None)
        if found:
            self.changed_tries.add(position)
        return found

    def purge(self, queue: int) -> None:
        """What waits in the queue is over; what is handed out is not."""
        in_queue = {number for number, lane in self.lanes.items() if lane.queue == queue}
        over = {position for position, tries in self.tries.items() if tries.lane in in_queue}
        for position in over - {position for position, _ in self.holders(over)}:
            self.forget(position)

    def saved(self) -> None:
        """All changes are in the file."""
        for changes in (self.new_queues, self.new_lanes, self.changed_grants, self.changed_tries):
            changes.clear()
        self.new_names.clear()


def pack_grant(number: int, grant: Grant) -> tuple[int, int | None, int, int, bytes, bytes]:
    """The grant as a row of its table."""
    entries = array("Q", [value for entry in grant.entries for value in entry])
    back = array("Q", sorted(grant.back))
    packed = entries.tobytes(), back.tobytes()
    return number, grant.worker, grant.granted_ms, grant.left, *packed


def unpack_grant(worker: int | None, granted_ms: int, left: int, raw: bytes, back: bytes) -> Grant:
    """The other way round."""
    numbers = array("Q", raw)
    entries = list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
    return Grant(worker, granted_ms, left, entries, set(array("Q", back)))

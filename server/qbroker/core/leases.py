"""Who holds what: grants, the members they were given to, and the sessions above them.

    session (a worker; lives by its parent's heartbeats)
      member 0 (the parent), 1, 2 ... (its children)
        grants, each of some messages
    a plain consumer is a member without a session: it lives as long as its connection

A token is (position, grant number). It is good while ``leases[position]`` is that grant.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qbroker.core.gates import credit
from qbroker.core.queueorder import Contest
from qbroker.core.runs import Run
from qprotocol import wire


def by_run(pieces: Sequence[tuple[Run, int, int]]) -> Iterable[tuple[Run, int]]:
    """How many messages of each run are in the pieces, which are (run, first, count)."""
    if len(pieces) == 1:
        return ((pieces[0][0], pieces[0][2]),)
    counts: dict[Run, int] = {}
    for run, _, count in pieces:
        counts[run] = counts.get(run, 0) + count
    return counts.items()


def lend(pieces: Sequence[tuple[Run, int, int]]) -> None:
    """These are leased, as far as lanes and queues count that."""
    for run, count in by_run(pieces):
        lane, queue = run.lane, run.lane.queue
        lane.leased += count
        lane.shelf.leased += count
        queue.leased += count
        queue.counts["delivered"] += count


def get_back(pieces: Sequence[tuple[Run, int, int]]) -> None:
    """These are not leased any more, as far as lanes, queues, gates and tenants count that."""
    for run, count in by_run(pieces):
        lane, queue = run.lane, run.lane.queue
        lane.leased -= count
        lane.shelf.leased -= count
        queue.leased -= count
        if queue.gated:
            credit(lane, count)
        if queue.shares:
            queue.shares.ended(lane.fair, count)


def epoch_and_count(grant: int) -> tuple[int, int]:
    """The boot in which a grant was given, and which one of that boot's it was."""
    return grant >> wire.EPOCH_SHIFT, grant & (1 << wire.EPOCH_SHIFT) - 1


class Grant:
    """Messages leased together to one member."""

    __slots__ = ("consumer", "early", "entries", "member", "number", "remaining", "started")

    def __init__(self, number: int, member: "Member", consumer: "Consumer | None") -> None:
        # Durable: set by apply.
        self.number = number
        self.member = member
        self.entries: list[tuple[int, int, Run]] = []
        """(first position, count, run), lowest first: where a message goes back to."""
        self.remaining = 0
        self.started: set[int] = set()
        """Known to run: if the worker is lost, these count as crashes."""
        self.early: set[int] = set()
        """Those of ``started`` that may never run again."""
        # Volatile: the subscription whose credit they use.
        self.consumer = consumer

    def add(self, run: Run, first: int, count: int) -> None:
        """These are leased; they may have been before, and given back."""
        entries = self.entries
        self.remaining += count
        if not entries or first >= entries[-1][0] + entries[-1][1]:
            entries.append((first, count, run))
            return
        index = self._before(first)
        if index < 0 or first >= sum(entries[index][:2]):
            entries.insert(index + 1, (first, count, run))

    @property
    def queue_number(self) -> int:
        """The queue that all of them are of."""
        return self.entries[0][2].lane.queue.number

    def run_of(self, position: int) -> Run:
        """The run that ``position`` was taken from."""
        first, count, run = self.entries[self._before(position)]
        assert first <= position < first + count, f"{position} is not in grant {self.number}"
        return run

    def split(self, first: int, count: int) -> list[tuple[Run, int, int]]:
        """Neighbours by the runs that they were taken from, as (run, first, count)."""
        start, length, run = self.entries[self._before(first)]
        if first + count <= start + length:
            return [(run, first, count)]
        out, end = [], first + count
        for start, length, run in self.entries[self._before(first) :]:
            if start >= end:
                break
            stop = min(end, start + length)
            out.append((run, first, stop - first))
            first = stop
        return out

    def positions(self) -> Iterator[int]:
        """Every position that was granted, settled or not."""
        for first, count, _ in self.entries:
            yield from range(first, first + count)

    def _before(self, position: int) -> int:
        return bisect_right(self.entries, (position, _ENTRIES_MAX)) - 1


class Member:
    """One holder of leases: a worker's parent, one of its children, or a plain consumer."""

    __slots__ = ("adrift", "connection", "grants", "number", "session", "untold")

    def __init__(self, session: "Session | None", number: int) -> None:
        self.session = session
        self.number = number
        self.grants: dict[int, Grant] = {}
        # Volatile: the connection number, 0 if there is none now.
        self.connection = 0
        self.adrift: dict[int, list[Grant]] | None = None
        """By queue number, grants of queues that none of its subscriptions listens to; None if
        nobody has looked since one of those ended."""
        self.untold: dict[tuple[int, int], tuple[bool, int]] = {}
        """Tokens of what was cancelled while it was away: (terminate, grace_ms). It is told when
        it comes back."""


class Session:
    """A worker: its members, and when it was last heard of."""

    __slots__ = ("alive_until_ms", "id", "members", "over")

    def __init__(self, session_id: bytes) -> None:
        self.id = session_id
        self.members: dict[int, Member] = {}
        # Volatile.
        self.alive_until_ms = 0
        """Monotonic; after that its leases go back. 0 until the first turn after a start."""
        self.over = False
        """It said goodbye or is lost; its leases are being given back."""

    def member(self, number: int) -> Member:
        """The member with that number, made on first use."""
        found = self.members.get(number)
        if found is None:
            found = self.members[number] = Member(self, number)
        return found


@dataclass(slots=True)
class Leaving:
    """What is still to be given back of one member. All volatile."""

    lost: bool
    """It did not say goodbye: what it had begun counts as a crash."""
    kept: Collection[int]
    """Positions that it keeps."""
    tokens: Iterator[tuple[Grant, int]]
    """What it held when it left, as far as nobody has looked at it since."""


class Consumer:
    """A subscription: some queues, and how much of them may be out. All volatile."""

    __slots__ = (
        "connection",
        "contest",
        "credit",
        "known",
        "member",
        "number",
        "queues",
        "unsettled",
        "writable",
    )

    def __init__(
        self,
        connection: int,
        number: int,
        member: Member,
        queues: list[int],
        credit: int,
        *,
        known: frozenset[str] | None = None,
        contest: Contest | None = None,
    ) -> None:
        self.connection = connection
        self.number = number
        self.member = member
        self.queues = queues
        self.credit = credit
        self.known = known
        """The tasks that it runs; None is all, and plain messages."""
        self.contest = contest
        """Its queues that may have something for it; None if it has one queue."""
        self.unsettled = 0
        self.writable = True

    @property
    def room(self) -> int:
        """Messages that may be handed out now."""
        return self.credit - self.unsettled if self.writable else 0

    @property
    def next_queue(self) -> int:
        """The queue that it is handed messages of next; -1 if none has any for it."""
        if self.contest:
            return self.contest.first
        return self.queues[0] if self.queues else -1


class Attempts(NamedTuple):
    """The counters of a message that was handed out before. Untouched messages have none.

    Durable. A value: messages that went the same way share one, so those that were only handed
    out and given back cost an entry in a table and no more.
    """

    deliveries: int = 1
    failures: int = 0
    """Read by the retry policy."""
    crashes: int = 0
    """A worker died running it; read by the poison limit."""
    error: int = 0
    """The position of the record that holds its last error; 0 is none."""
    reason: str = ""
    """Why it is a dead letter."""
    run: Run | None = None
    """Where it waits, ready or for its due time."""
    waits: bool = False
    """In the timers, not in its run."""
    claims_from: int = 0
    """Grants below this cannot be claimed any more: a lease by it or a later one has ended."""

    def counters(self) -> tuple[int, int, int]:
        """Deliveries, failures and crashes, as far as 16 bits can say."""
        return min(self.deliveries, _MOST), min(self.failures, _MOST), min(self.crashes, _MOST)


_MOST = 0xFFFF
_ENTRIES_MAX = 2**64
UNTOUCHED = Attempts()
UNSEEN = UNTOUCHED._replace(deliveries=0)
"""Of a message that has counters, though nobody was ever given it."""

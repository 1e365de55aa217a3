"""Who holds what: grants, the members they were given to, and the sessions above them.

    session (a worker; lives by its parent's heartbeats)
      member 0 (the parent), 1, 2 ... (its children)
        grants, each of some messages
    a plain consumer is a member without a session: it lives as long as its connection

A token is (position, grant number). It is good while ``leases[position]`` is that grant.
"""

from collections.abc import Iterator

from qbroker.core.queues import Run
from qprotocol import wire


def epoch_and_count(grant: int) -> tuple[int, int]:
    """The boot in which a grant was given, and which one of that boot's it was."""
    return grant >> wire.EPOCH_SHIFT, grant & (1 << wire.EPOCH_SHIFT) - 1


class Grant:
    """Messages leased together to one member."""

    __slots__ = ("consumer", "early", "entries", "member", "number", "remaining", "started")

    def __init__(
        self,
        number: int,
        member: "Member",
        entries: list[tuple[Run, int, int]],
        consumer: "Consumer | None",
    ) -> None:
        # Durable: set by apply.
        self.number = number
        self.member = member
        self.entries = entries
        """(run, first position, count): where a message goes back to."""
        self.remaining = sum(count for _, _, count in entries)
        self.started: set[int] = set()
        """Known to run: if the worker is lost, these count as crashes."""
        self.early: set[int] = set()
        """Those of ``started`` that may never run again."""
        # Volatile: the subscription whose credit they use.
        self.consumer = consumer

    def run_of(self, position: int) -> Run:
        """The run that ``position`` was taken from."""
        for run, first, count in self.entries:
            if first <= position < first + count:
                return run
        raise AssertionError(f"position {position} is not in grant {self.number}")

    def positions(self) -> Iterator[int]:
        """Every position that was granted, settled or not."""
        for _, first, count in self.entries:
            yield from range(first, first + count)


class Member:
    """One holder of leases: a worker's parent, one of its children, or a plain consumer."""

    __slots__ = ("connection", "grants", "number", "session")

    def __init__(self, session: "Session | None", number: int) -> None:
        self.session = session
        self.number = number
        self.grants: dict[int, Grant] = {}
        # Volatile: the connection number, 0 if there is none now.
        self.connection = 0


class Session:
    """A worker: its members, and when it was last heard of."""

    __slots__ = ("alive_until_ms", "id", "members")

    def __init__(self, session_id: bytes) -> None:
        self.id = session_id
        self.members: dict[int, Member] = {}
        # Volatile.
        self.alive_until_ms = 0
        """Monotonic; after that its leases go back. 0 until the first turn after a start."""

    def member(self, number: int) -> Member:
        """The member with that number, made on first use."""
        found = self.members.get(number)
        if found is None:
            found = self.members[number] = Member(self, number)
        return found


class Consumer:
    """A subscription: some queues, and how much of them may be out. All volatile."""

    __slots__ = ("connection", "credit", "member", "number", "queues", "unsettled", "writable")

    def __init__(
        self, connection: int, number: int, member: Member, queues: list[int], credit: int
    ) -> None:
        self.connection = connection
        self.number = number
        self.member = member
        self.queues = queues
        self.credit = credit
        self.unsettled = 0
        self.writable = True

    @property
    def room(self) -> int:
        """Messages that may be handed out now."""
        return self.credit - self.unsettled if self.writable else 0


class Attempts:
    """The counters of a message that was handed out before. Untouched messages have none."""

    __slots__ = ("crashes", "deliveries", "error", "failures", "reason", "run", "waits")

    def __init__(self) -> None:
        self.deliveries = 1
        self.failures = 0
        """Read by the retry policy."""
        self.crashes = 0
        """A worker died running it; read by the poison limit."""
        self.error = 0
        """The position of the record that holds its last error; 0 is none."""
        self.reason = ""
        """Why it is a dead letter."""
        self.run: Run | None = None
        """Where it waits, ready or for its due time."""
        self.waits = False
        """In the timers, not in its run."""

    def counters(self) -> tuple[int, int, int]:
        """Deliveries, failures and crashes, as far as 16 bits can say."""
        return min(self.deliveries, _MOST), min(self.failures, _MOST), min(self.crashes, _MOST)


_MOST = 0xFFFF

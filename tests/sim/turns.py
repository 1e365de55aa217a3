"""What is promised of who goes next, held against all that was handed out, in the end.

    strict   nothing of a queue goes to a consumer while one that it named before has anything
    oldest   of messages of several priorities each so manyth to go is the oldest that waits
    fair     of tenants that wait each is handed its share: whoever comes late passes the others

Grants are numbered in the order in which they were decided, so it does not matter how long a
delivery was on its way. A message waits for certain from when its publish was confirmed, in the
same life of the broker, until the grant by which it went for the first time.

What a message took is the same for all here, for workers do not say it: shares are numbers of
messages.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qprotocol.lanekeys import LaneKeys
from sim.limits import BLURS
from sim.swarm import Swarm
from sim.world import Mark, Violation

if TYPE_CHECKING:
    from sim.oracle import Known, Lease, Oracle

UNSEEN = frozenset(
    (
        *("pause", "moves", "cancels of many", "purge", "delete", "single consumer", "lengths"),
        *("dead letters", "workflows"),
    )
)
"""Features by which a queue hands nothing out, or what waits is another's, and nobody is told."""
MURKY = frozenset(("bad sectors", "rot"))
"""Faults by which what was handed out may be held for long, or for ever."""
UNEVEN = frozenset(
    ("priorities", "known tasks", "limits", "ordering keys", "release", "replacement", "retries")
)
"""Features by which a share is not a number of messages of one queue."""
AHEAD = 16
"""Messages that a tenant may have saved up."""
SPARE = 2
"""Messages more: one is handed out while the other is decided."""


@dataclass(eq=False, slots=True)
class Given:
    """One message that went to somebody."""

    grant: int
    lease: Lease
    taker: Any


class Turns:
    """The history of grants. Of what a seed does not use nothing is asked."""

    def __init__(self, oracle: Oracle, swarm: Swarm) -> None:
        self.oracle = oracle
        self.swarm = swarm
        is_plain = not swarm.features & UNSEEN and not swarm.faults & (BLURS | MURKY)
        self.is_strict = is_plain and swarm.consume.get("order") == "strict"
        self.is_counted = is_plain and swarm.calm
        self.shares = self.is_counted and swarm.has("fair keys") and not swarm.features & UNEVEN
        self.ages = self.is_counted and not swarm.features & {"known tasks", "fair keys"}
        self.ages = self.ages and swarm.has("priorities")
        self.declared: set[str] = set()
        """Queues that have their options, and had them when something first came."""
        self.since: dict[Known, Mark] = {}
        self.given: dict[str, list[Given]] = {}
        """By queue."""

    # What is seen.

    def confirmed(self, known: Known, mark: Mark) -> None:
        """It waits, if nobody has it."""
        self.since.setdefault(known, mark)

    def handed(self, taker: Any, leases: list[Lease]) -> None:
        """The taker has these of the queues that it named."""
        for lease in leases:
            given = Given(lease.grant, lease, taker)
            self.given.setdefault(lease.known.message.queue, []).append(given)

    # What must have been.

    def check(self) -> None:
        """Raises Violation."""
        if not (self.is_strict or self.shares or self.ages):
            return
        for rows in self.given.values():
            rows.sort(key=lambda each: each.grant)
        for queue, rows in self.given.items():
            for row in rows:
                if self._waited(row.lease):
                    if self.is_strict:
                        self._check_strict(queue, row)
                    if self.ages:
                        self._check_oldest(queue, row)
                    if self.shares:
                        self._check_share(queue, row)

    def _waited(self, lease: Lease) -> bool:
        """Whether all that kept it waiting is whose turn it was."""
        known = lease.known
        since = self.since.get(known)
        is_first = lease.counters is None and not known.ghosts and lease is known.leases[0]
        is_plain = known.plain_order and not known.relaxed
        limits = self.oracle.limits
        is_free = limits is None or limits.keeps_queue_order(known)
        return bool(since and since.life == lease.mark.life and is_first and is_plain and is_free)

    def _passed(self, queue: str, row: Given) -> Iterator[Given]:
        """What was handed out of the queue while it waited, the latest first."""
        known, life = row.lease.known, row.lease.mark.life
        since = self.since[known].now + self.oracle.slack_us
        rows = self.given.get(queue, [])
        at = bisect_left(rows, row.grant, key=lambda each: each.grant)
        for other in reversed(rows[:at]):
            mark = other.lease.mark
            if mark.life != life or mark.now <= since:
                return
            yield other

    def _check_strict(self, queue: str, row: Given) -> None:
        known = row.lease.known
        for other_queue in [each for each in self.given if each != queue]:
            for other in self._passed(other_queue, row):
                taker = other.taker
                if not {queue, other_queue} <= set(taker.queues):
                    continue
                knows = not taker.tasks or known.message.task in taker.tasks
                is_below = taker.queues.index(queue) < taker.queues.index(other_queue)
                if is_below and knows:
                    raise Violation(
                        f"{taker.name} is given {other.lease.known}, and {known} waited in "
                        "a queue that goes before"
                    )
                self.oracle.world.sometimes["a queue waited for another"] += not is_below

    def _check_oldest(self, queue: str, row: Given) -> None:
        options = self.swarm.queues[queue]
        every = int(options["oldest_every"])
        if queue not in self.declared or not every:
            return
        at = row.lease.position
        places = [other.lease.position for other in self._passed(queue, row)]
        older = sum(place < at for place in places)
        younger = len(places) - older
        most = every * (older + SPARE)
        self.oracle.world.sometimes["younger ones went first"] += younger
        if younger > most:
            raise Violation(
                f"{row.lease.known}: {younger} younger ones went before, and {older} older ones: "
                f"one of {every} is the oldest, so that is {most} at most"
            )

    def _check_share(self, queue: str, row: Given) -> None:
        mine = self._tenant(row.lease)
        went: dict[str, int] = {}
        for other in self._passed(queue, row):
            tenant = self._tenant(other.lease)
            went[tenant] = went.get(tenant, 0) + 1
        # One that was made on first use has all alike.
        weight = self._weight(queue, mine) if queue in self.declared else 1
        own = (went.pop(mine, 0) + 1) / weight
        busy = max(self.swarm.credit, 50 if self.swarm.has("credit changes") else 0)
        for tenant, count in went.items():
            most = self._weight(queue, tenant) * (own + AHEAD + SPARE) + busy
            self.oracle.world.sometimes["a tenant shared with another"] += 1
            if count > most:
                raise Violation(
                    f"{row.lease.known} of {mine!r} waited for {count} of {tenant!r}: {most:.0f} "
                    "is its share, and what was saved up"
                )

    def _tenant(self, lease: Lease) -> str:
        return LaneKeys.unpack(lease.known.message.keys).fair

    def _weight(self, queue: str, tenant: str) -> int:
        """What the queue's options say."""
        said = str(self.swarm.queues[queue].get("fair_weights", ""))
        weights = dict(each.split("=") for each in said.split(",") if each)
        return int(weights.get(tenant, 1))

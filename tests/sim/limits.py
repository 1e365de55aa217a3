"""What limits and ordering keys promise, held against what was handed out.

    slots    of a limit_key so much weight is out at once, and no more
    pace     of a task so many begin in a time, over restarts, too
    order    of an ordering key one is out at a time, in order; a retry keeps its key

Only what is certain is held against the broker: a lease counts while nothing has happened for
which its holder may have lost it, and a rule from the moment at which it was confirmed.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from qprotocol.lanekeys import LaneKeys
from qprotocol.limitrules import LimitRule
from sim.swarm import Swarm
from sim.world import MS, Mark, Violation

if TYPE_CHECKING:
    from sim.oracle import Known, Lease, Oracle

PACED = "t.two"
"""The task that has a rate."""
WAITS = ("failed, and runs again", "released")
"""Settlements after which a message is certain to wait for another run."""
BLURS = frozenset(
    ("hung sync", "freeze", "wall jump", "disk full", "eio", "short write", "long turns")
)
"""Faults after which what was handed out at one time may be sent at any other."""


def lane_keys(rng: Random, swarm: Swarm) -> LaneKeys:
    """What a new message says, as far as the seed's features go."""
    limit = rng.choice(("k1", "k2")) if swarm.has("limits") and rng.random() < 0.3 else ""
    weight = rng.choice((1, 1, 2)) if limit else 1
    if not limit and swarm.has("passing keys") and rng.random() < 0.6:
        limit = f"p{rng.randrange(1_000)}"
    ordering = ""
    if swarm.has("ordering keys") and rng.random() < 0.3:
        ordering = rng.choice(("o1", "o2", "o3"))
    fair = rng.choice(("", "big", "big", "big", "big", "small")) if swarm.has("fair keys") else ""
    return LaneKeys(limit, ordering, fair, weight)


def rules(rng: Random) -> dict[str, LimitRule]:
    """Those of a seed, by name."""
    return {
        "slots": LimitRule(per_key=True, concurrency=rng.choice((2, 2, 3))),
        "pace": LimitRule(task=PACED, rate=1, window_ms=rng.choice((1_000, 4_000)), burst=2),
    }


@dataclass
class InForce:
    """A rule, and when it was confirmed."""

    rule: LimitRule
    mark: Mark


class Limits:
    """The books of limits and orders."""

    def __init__(self, oracle: Oracle, swarm: Swarm) -> None:
        self.oracle = oracle
        self.is_sharp = not BLURS & swarm.faults
        """Whether what is seen is seen about when it was decided."""
        self.has_rules = swarm.has("limits")
        self.is_lasting = swarm.config["fsync"] == "always"
        """Whether rules that were confirmed outlive a power cut."""
        self.slots: InForce | None = None
        self.pace: InForce | None = None
        self.out: dict[tuple[str, ...], list[Lease]] = {}
        """("limit", key) or (queue, ordering key) to what may be out."""
        self.begun: list[tuple[int, int]] = []
        """When the paced task was handed out, in us, and how much."""
        self.waits: dict[tuple[str, ...], tuple[Lease, Mark]] = {}
        """(queue, ordering key) to who holds it though it is not out."""

    def said(self, name: str, rule: LimitRule | None, mark: Mark) -> None:
        """The rule was confirmed, or is about to be dropped."""
        found = InForce(rule, mark) if rule else None
        if name == "slots":
            self.slots = found
        else:
            self.pace, self.begun = found, []

    def power_lost(self) -> None:
        """What was only written may be gone."""
        if not self.is_lasting:
            self.slots = self.pace = None

    def keeps_queue_order(self, known: Known) -> bool:
        """Whether nothing but its queue's order says when it goes."""
        is_paced = self.has_rules and known.message.task == PACED
        return not known.message.keys and not is_paced

    def delivered(self, leases: list[Lease], mark: Mark) -> None:
        """These were handed out, and not as dead letters."""
        for lease in leases:
            wants = LaneKeys.unpack(lease.known.message.keys)
            if wants.limit and self.slots:
                self._check_slots(self.slots, lease, wants, mark)
            if wants.ordering:
                self._check_ordering(lease, wants.ordering, mark)
            if lease.known.message.task == PACED and self.pace:
                self._check_pace(self.pace, lease, wants.weight, mark)

    def _held(self, key: tuple[str, ...], new: Lease) -> list[Lease]:
        """What is out for certain beside the new one; nothing if that may be over already.

        One that is cancelled may still be on its way when its slot is given to another.
        """
        held = [each for each in self.out.get(key, ()) if self.oracle.is_held(each)]
        self.out[key] = [*held, new]
        is_sure = self.oracle.is_held(new)
        return [each for each in held if is_sure and each.known is not new.known]

    def _check_slots(self, slots: InForce, lease: Lease, wants: LaneKeys, mark: Mark) -> None:
        held = self._held(("limit", wants.limit), lease)
        if not self._is_under(slots, lease):
            return
        mine = [each for each in held if self._is_under(slots, each)]
        weights = [LaneKeys.unpack(each.known.message.keys).weight for each in (*mine, lease)]
        if sum(weights) > slots.rule.concurrency:
            others = ", ".join(str(each.known) for each in mine)
            raise Violation(f"{lease.known} goes over the slots of {wants.limit}: out are {others}")
        self.oracle.world.sometimes["a slot was taken"] += 1

    def _is_under(self, found: InForce, lease: Lease) -> bool:
        """Whether the rule was in force when that was decided, which may have waited to be sent."""
        return lease.mark.now > found.mark.now + self.oracle.slack_us

    def _check_pace(self, pace: InForce, lease: Lease, weight: int, mark: Mark) -> None:
        if not self.is_sharp or lease.known.relaxed or not self._is_under(pace, lease):
            return
        self.begun.append((mark.now, weight))
        rule, total = pace.rule, 0
        for at, taken in reversed(self.begun):
            total += taken
            span_us = mark.now - at + self.oracle.slack_us
            if total > rule.burst + rule.rate * span_us / (rule.window_ms * MS):
                raise Violation(f"{lease.known} is over the rate: {total} in {span_us} us")
        self.oracle.world.sometimes["a token was spent"] += 1

    def _check_ordering(self, lease: Lease, ordering: str, mark: Mark) -> None:
        known = lease.known
        if known.elsewhere:
            return  # a key is one queue's, and nobody says which one it is in
        key = known.message.queue, ordering
        for other in self._held(key, lease):
            raise Violation(f"{known} is handed out while {other.known} has its ordering key")
        before, since = self.waits.pop(key, (lease, mark))
        late = mark.now > since.now + self.oracle.slack_us
        if before.known is not known and late and self._still_waits(before):
            raise Violation(f"{known} overtakes {before.known}, which waits for its next run")

    def _still_waits(self, lease: Lease) -> bool:
        """Whether nothing can have ended a message since it was given back."""
        known, oracle = lease.known, self.oracle
        is_left_alone = not known.over and not known.message.expires_ms and not known.relaxed
        is_left_alone = is_left_alone and not known.elsewhere
        asked = known.cancel_asked or known.purge_asked or known.may_overflow or known.may_rot
        asked = asked or oracle.burials.few  # it may have died instead
        is_newest = all(each.grant <= lease.grant for each in known.leases)
        return is_left_alone and not asked and is_newest and not oracle.rotted

    def settled(self, lease: Lease, why: str, mark: Mark) -> None:
        """It was accepted."""
        ordering = LaneKeys.unpack(lease.known.message.keys).ordering
        if ordering and why in WAITS:
            self.oracle.world.sometimes["a retry keeps its ordering key"] += 1
            self.waits[lease.known.message.queue, ordering] = lease, mark

"""Every limit rule by name, who is under it, and the gates that count. Durable.

A name may have two rules: an operator's, and one that a worker declared in code. The operator's
is in force while there is one. Its gates stand where they are met least often: at a queue, at the
shelf of a task in a queue, or, per key, at a lane.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Any

from qbroker.core.buckets import ROOM_MAX, Bucket, LimitClock
from qbroker.core.gates import Gate, Place, attach
from qbroker.core.lanes import Lane
from qbroker.core.moment import Now
from qbroker.core.queues import Queue
from qbroker.core.shelves import Shelf
from qprotocol.lanekeys import LaneKeys
from qprotocol.limitrules import CODE, OPERATOR, LimitRule

_NO_TURNS: dict[int, int] = {}
"""Of a gate that has let nobody through; never changed."""


class LimitGate(Gate):
    """A bucket, and the places whose messages it counts."""

    __slots__ = ("bucket", "key", "limit", "places", "rule", "served", "turn")
    reason = "limit"

    def __init__(self, limit: "Limit", key: str, rule: LimitRule) -> None:
        super().__init__()
        self.limit = limit
        self.key = key
        self.rule: LimitRule | None = rule
        """None once it is dropped: there is room for whoever is still parked here."""
        self.bucket = Bucket()
        self.places = 0
        """How many have this gate."""
        self.turn = 0
        self.served = _NO_TURNS
        """Of one that several places have, for several queues: queue number to the turn of its
        last message. Volatile.
        """

    def held(self) -> int:
        """Messages that wait here. Costs a step a lane."""
        lanes = {
            x[-1] for by_heft in self._lanes.values() for heap in by_heft.values() for x in heap
        }
        found = sum(lane.waiting for lane in lanes if lane.parked is self)
        for place in self._whole:
            if place.parked is self:
                found += place.open if isinstance(place, Shelf) else place.queue.ready
        return found

    def room(self, lane: Lane, now: Now) -> int:
        """As many as there are slots and tokens for. Now is by the limits' clock."""
        if self.rule is None:
            return ROOM_MAX
        return self.bucket.room(self.rule, lane.weight, now.wall_ms)

    def is_shut(self, now: Now) -> bool:
        """Whether there is none for the lightest."""
        return self.rule is not None and not self.bucket.room(self.rule, 1, now.wall_ms)

    def opens_ms(self, lane: Lane, now: Now) -> int:
        """When the tokens are there, if it is those that lack."""
        assert self.rule, "a rule that was dropped lacks nothing"
        wait_ms = self.bucket.opens_ms(self.rule, lane.weight) - now.wall_ms
        return now.mono_ms + wait_ms if wait_ms > 0 else 0

    def why(self, lane: Lane, now: Now) -> dict[str, Any]:
        """Which limit it is, of which key, and how much of it is taken."""
        assert self.rule, "a rule that was dropped keeps nobody"
        told: dict[str, Any] = {"limit": self.limit.name, "key": self.key}
        if self.rule.concurrency:
            told |= {"slots": self.rule.concurrency, "slots_used": self.bucket.used}
        if lane.weight > 1:
            told["weight"] = lane.weight
        return super().why(lane, now) | told

    def heft(self, lane: Lane) -> int:
        """Its weight."""
        return lane.weight

    def rank(self, lane: Lane) -> tuple[int, int]:
        """By priority, then in turns: who was served and found no more room is the last."""
        self.turn += 1
        return lane.rank()[0], self.turn

    def open(self) -> None:
        """There may be room again: for the queue first that was served longest ago."""
        if not self._whole and not self._lanes:
            return
        queues = {place.queue for place in self._whole} | {shelf.queue for shelf in self._lanes}
        super().open()
        if len(queues) > 1:
            for queue in sorted(queues, key=self._served):
                queue.stir_last()

    def _served(self, queue: Queue) -> tuple[int, int]:
        return self.served.get(queue.number, 0), queue.number

    def charge(self, lane: Lane, count: int, wall_ms: int) -> None:
        """Slots are taken; tokens too, but not by a claim, which has no time."""
        if self.places > 1 and self.rule and not self.rule.queue:
            self.turn += 1
            if self.served is _NO_TURNS:
                self.served = {}
            self.served[lane.queue.number] = self.turn
        weight = count * lane.weight
        self.bucket.lends(weight)
        if wall_ms and self.rule:
            self.bucket.spends(self.rule, weight, wall_ms)

    def credit(self, lane: Lane, count: int) -> None:
        """Slots are free again."""
        self.bucket.gets_back(count * lane.weight)
        self.open()

    def follows(self, rule: LimitRule, at_ms: int) -> None:
        """The rule has changed, and counts the same messages as before."""
        assert self.rule
        self.bucket.follows(self.rule, rule, at_ms)
        self.rule = rule
        self.open()

    def is_dropped(self) -> None:
        """It counts no more."""
        self.rule = None
        self.open()


class Limit:
    """A name, its rules, and the gates of the one in force."""

    __slots__ = ("code", "gates", "name", "operator")

    def __init__(self, name: str) -> None:
        self.name = name
        self.operator: LimitRule | None = None
        self.code: LimitRule | None = None
        self.gates: dict[str, LimitGate] = {}
        """By limit_key; of a rule that is not per key there is one, under the empty key."""

    @property
    def in_force(self) -> LimitRule | None:
        """The rule that counts; none once both are dropped."""
        return self.operator or self.code

    @property
    def rule(self) -> LimitRule:
        """The rule in force, which there is."""
        found = self.in_force
        assert found, f"limit {self.name} has no rule"
        return found

    @property
    def origin(self) -> str:
        """Who said the rule in force."""
        return OPERATOR if self.operator else CODE

    def said_by(self, origin: str) -> LimitRule | None:
        """The rule of that origin, in force or not."""
        return self.operator if origin == OPERATOR else self.code

    def gate(self, key: str) -> LimitGate:
        """The gate for that key, made on first use."""
        found = self.gates.get(key)
        if found is None:
            found = self.gates[key] = LimitGate(self, key, self.rule)
        return found

    def join(self, place: Place, key: str) -> None:
        """The place is under the rule from now on; what it has out is counted."""
        gate = self.gate(key)
        gate.places += 1
        gate.bucket.lends(weight_out(place))
        attach(place, (*place.gates, gate))


class Limits:
    """The book of rules."""

    __slots__ = ("_by_scope", "_fading", "by_name", "clock")

    def __init__(self) -> None:
        self.by_name: dict[str, Limit] = {}
        self.clock = LimitClock()
        self._by_scope: dict[tuple[str, str], list[Limit]] = {}
        """(queue, task), either empty for all, to the rules in force that cover that."""
        self._fading: list[tuple[int, str, str]] = []
        """A heap of (when it is full, name, key) of gates that no place has. Volatile."""

    def say(self, name: str, origin: str, rule: LimitRule | None) -> Limit:
        """A rule is set, or dropped. The gates are as they were."""
        limit = self.by_name.get(name)
        if limit is None:
            limit = self.by_name[name] = Limit(name)
        before = limit.in_force
        if before:
            self._by_scope[before.queue, before.task].remove(limit)
        if origin == OPERATOR:
            limit.operator = rule
        else:
            limit.code = rule
        after = limit.in_force
        if after:
            self._by_scope.setdefault((after.queue, after.task), []).append(limit)
        else:
            del self.by_name[name]
        return limit

    def covering(self, queue: str, task: str, key: str) -> Iterator[Limit]:
        """The rules in force that such messages are under. Costs four look-ups, and a step each."""
        by_scope = self._by_scope
        if by_scope:
            for scope in dict.fromkeys(((queue, task), (queue, ""), ("", task), ("", ""))):
                for limit in by_scope.get(scope, ()):
                    if key or not limit.rule.per_key:
                        yield limit

    def refuses(self, queue: str, task: str, wants: LaneKeys) -> str:
        """Why such messages could never be handed out, and by which rule; empty if they can."""
        if wants.weight > 1:
            for limit in self.covering(queue, task, wants.limit):
                why = limit.rule.refuses(wants.weight)
                if why:
                    return f"limit {limit.name}: {why}"
        return ""

    def now(self, now: Now) -> Now:
        """The moment by the limits' clock, which goes on from what the buckets remember."""
        if not self.clock.mono_ms:
            for limit in self.by_name.values():
                for gate in limit.gates.values():
                    self.clock.told(gate.bucket.at_ms)
        return Now(self.clock.read(now), now.mono_ms)

    # Places that are new, or gone.

    def fit_queue(self, queue: Queue) -> None:
        """A new queue is under the rules for all of it."""
        for limit in self.covering(queue.name, "", ""):
            limit.join(queue, "")

    def fit_shelf(self, shelf: Shelf) -> None:
        """A new shelf is under the rules for its task."""
        for limit in self.covering(shelf.queue.name, shelf.task, ""):
            if limit.rule.task:
                limit.join(shelf, "")

    def fit_lane(self, lane: Lane) -> None:
        """A new lane is under the rules per key, if it has one."""
        key = lane.wants.limit
        if key:
            for limit in self.covering(lane.queue.name, lane.task, key):
                if limit.rule.per_key:
                    limit.join(lane, key)

    def leave(self, lane: Lane) -> None:
        """A lane is closed; nothing of it is out."""
        for gate in lane.gates:
            if isinstance(gate, LimitGate):
                gate.places -= 1
                self.fades(gate)

    def fades(self, gate: LimitGate) -> None:
        """If no place has the gate, it is forgotten once it is as good as new."""
        if not gate.places and gate.rule:
            full_ms = gate.bucket.opens_ms(gate.rule, gate.rule.burst)
            heappush(self._fading, (full_ms, gate.limit.name, gate.key))

    def forget(self, at_ms: int, most: int) -> None:
        """Gates that no place has, and that are full by then, are gone; so many at most."""
        fading = self._fading
        while fading and fading[0][0] <= at_ms and most > 0:
            _, name, key = heappop(fading)
            limit = self.by_name.get(name)
            gate = limit.gates.get(key) if limit else None
            if limit and gate and not gate.places and gate.bucket.is_idle(limit.rule, at_ms):
                del limit.gates[key]
            most -= 1


def weight_out(place: Place) -> int:
    """The weight of what the place has leased. Costs a step a lane of its queue."""
    if not place.leased:
        return 0
    if isinstance(place, Lane):
        return place.leased * place.weight
    assert isinstance(place, Queue | Shelf), place
    return sum(lane.leased * lane.weight for lane in place.lanes)

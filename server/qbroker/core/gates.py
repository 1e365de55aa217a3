"""Gates: what lets only so many messages of some lanes be out, or through in a time.

    a lane has    its own gates (a key's), those of its shelf (a task's in a queue), its queue's
    dispatch      asks each for room; a message goes if all have some
    leased        each is charged: live when it is taken, in a replay by the record of the grant
    settled, returned, lost, cancelled, claimed by another: each is credited
    no room       the lane is parked, or the whole shelf or queue if the gate is theirs and shut;
                  nobody looks at what is parked until the gate opens

Rule 1. A kind of gate is a subclass of Gate that says room, charge and credit. ``charge`` and
        ``credit`` run live and in replays, so they use their arguments alone; what a gate keeps
        beyond what is leased now (tokens, the time of the last) is saved by its kind.
Rule 2. Grants of lanes with gates are logged with their time, and their delivery waits for that
        (GrantedExactly): a start knows each slot and token exactly.
Rule 3. A gate that may have room again says ``open``. That costs a step for each task whose
        lanes are parked. Dispatch then takes back as many lanes as there is room for, the best
        first, when a consumer is there to take them: no room is left unused, and a million
        messages behind a gate cost the others nothing.

Weights: ``room`` and all counts are messages of that lane, which may be worth more than one each.
"""

from abc import ABC, abstractmethod
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from qbroker.core.lanes import Lane
from qbroker.core.moment import Now
from qbroker.core.settings import PARK_LANES_MAX

if TYPE_CHECKING:
    from qbroker.core.queues import Queue
    from qbroker.core.shelves import Selection, Shelf


class Place(Protocol):
    """What has gates, and can be parked at one: a lane, a shelf, a queue."""

    gates: "tuple[Gate, ...]"
    parked: "Gate | None"
    leased: int
    """Messages of it that are out."""

    @property
    def queue(self) -> "Queue":
        """The queue that it is, or is in."""

    def park(self, gate: "Gate") -> None:
        """Its messages are out of sight."""

    def unpark(self) -> None:
        """They may be handed out again."""


# What a gate has at which nothing waits: one for all, and never changed.
_NO_PLACES: dict[Place, None] = {}
_NO_LANES: "dict[Shelf, dict[int, list[tuple[int, int, int, Lane]]]]" = {}


class Gate(ABC):
    """One limit, shared by every lane, shelf and queue that has it among its ``gates``."""

    __slots__ = ("_lanes", "_whole", "alarm_ms")
    reason: ClassVar[str] = "limit"
    """Why a message waits that is parked here: a word for people."""

    def __init__(self) -> None:
        # Volatile.
        self._whole = _NO_PLACES
        """Shelves and queues that are parked here."""
        self._lanes = _NO_LANES
        """Lanes that are parked here, by shelf and heft: heaps of (-priority, head, number, lane).

        True is ``lane.parked``; the entry of one that is not parked is dropped when it comes up.
        """
        self.alarm_ms = 0
        """When the gatekeeper wakes it, monotonic; 0 if it does not."""

    # Each kind says these.

    @abstractmethod
    def room(self, lane: Lane, now: Now) -> int:
        """How many messages of the lane may be handed out now; 0 or less is none.

        Is asked at any time, also of lanes that are parked.
        """

    @abstractmethod
    def charge(self, lane: Lane, count: int, wall_ms: int) -> None:
        """So many of the lane's messages were leased, at that time.

        More than there was room for, too: a worker that comes back keeps what it runs.
        """

    @abstractmethod
    def credit(self, lane: Lane, count: int) -> None:
        """So many are not leased any more. If there may be room now, the kind calls ``open``."""

    def is_shut(self, _now: Now) -> bool:
        """Whether no lane finds room, whatever its heft. Asked when one found none.

        If so, a gate of a queue or shelf parks the whole of it; else only the lane is parked,
        and lighter ones go on.
        """
        return True

    def opens_ms(self, _lane: Lane, _now: Now) -> int:
        """When time alone makes room for the lane: monotonic. 0: it does not, a credit does."""
        return 0

    def heft(self, _lane: Lane) -> int:
        """Lanes of the same heft always find the same room: their weight, for most kinds."""
        return 1

    def why(self, lane: Lane, now: Now) -> dict[str, Any]:
        """What keeps a message of the lane here, for people and programs: ``reason`` and more."""
        opens_ms = self.opens_ms(lane, now)
        in_ms = max(0, opens_ms - now.mono_ms) if opens_ms else None
        return {"reason": self.reason, "opens_in_ms": in_ms, "leased": lane.leased}

    def rank(self, lane: Lane) -> tuple[int, int]:
        """Which of the lanes that wait here goes first: the lowest."""
        return lane.rank()

    # The same for all kinds.

    def open(self) -> None:
        """There may be room again."""
        whole, self._whole = self._whole, _NO_PLACES
        for place in whole:
            if place.parked is self:
                place.unpark()
        for shelf in self._lanes:
            shelf.queue.gate_opened(shelf, self)

    def park(self, place: Place) -> None:
        """The place waits here; a lane that does already may have got a better rank."""
        if isinstance(place, Lane):
            if self._lanes is _NO_LANES:
                self._lanes = {}
            heap = self._lanes.setdefault(place.shelf, {}).setdefault(self.heft(place), [])
            heappush(heap, (*self.rank(place), place.number, place))
        else:
            if self._whole is _NO_PLACES:
                self._whole = {}
            self._whole[place] = None

    def admit(self, shelf: "Shelf", most: int, now: Now) -> "Admitted":
        """Up to ``most`` of the shelf's lanes that find room go on, the best first."""
        count, short, more = 0, None, False
        by_heft = self._lanes.get(shelf, {})
        for heft, heap in list(by_heft.items()):
            room = -1
            while heap:
                lane = heap[0][-1]
                if lane.parked is self and lane.waiting:
                    if room < 0:
                        room = self.room(lane, now)
                        if room <= 0:
                            short = lane
                            break
                    if room == 0 or count == most:
                        more = True
                        break
                    room, count = room - 1, count + 1
                heappop(heap)
                if lane.parked is self:
                    lane.unpark()
            if not heap:
                del by_heft[heft]
        if not by_heft:
            self._lanes.pop(shelf, None)
        return Admitted(count, short, more)


class Admitted(NamedTuple):
    """What came of an opened gate."""

    lanes: int
    """How many go on."""
    short: Lane | None
    """One of those that found no room, if any."""
    more: bool
    """There may be room for more once these have taken theirs."""


class Gatekeeper:
    """Asks the gates on behalf of dispatch, and wakes those that open by time. All volatile."""

    __slots__ = ("_alarms", "_count", "admits", "parks")

    def __init__(self) -> None:
        self.parks = self.admits = PARK_LANES_MAX
        """How many may still be parked, and go on, in this turn."""
        self._alarms: list[tuple[int, int, Gate]] = []
        """A heap of (when, count, gate); true if that is its ``alarm_ms``."""
        self._count = 0

    def begin(self) -> None:
        """A turn's hand-out begins."""
        self.parks = self.admits = PARK_LANES_MAX

    @property
    def is_tired(self) -> bool:
        """Whether the rest is for the next turn."""
        return self.parks <= 0 or self.admits <= 0

    @property
    def steps(self) -> int:
        """Rises with all that it does."""
        return -self.parks - self.admits

    def room(self, lane: Lane, most: int, now: Now) -> int:
        """How many of the lane's messages may go, up to ``most``.

        With 0, it is parked now, or what is around it.
        """
        places: tuple[Place, ...] = (lane.queue, lane.shelf, lane)
        for place in places:
            for gate in place.gates:
                room = gate.room(lane, now)
                if room <= 0:
                    parked = place if gate.is_shut(now) else lane
                    parked.park(gate)
                    gate.park(parked)
                    self._note(gate, lane, now)
                    self.parks -= 1
                    return 0
                most = min(most, room)
        return most

    def admit(self, selection: "Selection", now: Now) -> None:
        """Parked lanes that these consumers know go on, where a gate has opened for them."""
        opened = selection.queue.opened
        for shelf in [each for each in opened if selection.knows(each.task)]:
            for gate in list(opened[shelf]):
                if self.admits <= 0:
                    return
                admitted = gate.admit(shelf, self.admits, now)
                self.admits -= admitted.lanes
                if not admitted.more:
                    del opened[shelf][gate]
                    if admitted.short:
                        self._note(gate, admitted.short, now)
            if not opened[shelf]:
                del opened[shelf]

    def _note(self, gate: Gate, lane: Lane, now: Now) -> None:
        """See that the gate is woken when time makes room for the lane."""
        opens_ms = gate.opens_ms(lane, now)
        if opens_ms and not 0 < gate.alarm_ms <= opens_ms:
            gate.alarm_ms = opens_ms
            self._count += 1
            heappush(self._alarms, (opens_ms, self._count, gate))

    def wake(self, now: Now) -> None:
        """Gates whose time has come open."""
        alarms = self._alarms
        while alarms and alarms[0][0] <= now.mono_ms:
            at, _, gate = heappop(alarms)
            if at == gate.alarm_ms:
                gate.alarm_ms = 0
                gate.open()

    def wake_all(self) -> None:
        """The wall clock was set forward: no gate's time is what it was."""
        alarms, self._alarms = self._alarms, []
        for at, _, gate in alarms:
            if at == gate.alarm_ms:
                gate.alarm_ms = 0
                gate.open()

    def next_ms(self) -> int:
        """When a gate opens by time, monotonic; 0 if none does."""
        return self._alarms[0][0] if self._alarms else 0


def around(lane: Lane) -> tuple[Gate, ...]:
    """Every gate that a message of the lane goes through."""
    if lane.queue.gates or lane.shelf.gates:
        return (*lane.queue.gates, *lane.shelf.gates, *lane.gates)
    return lane.gates


def charge(lane: Lane, count: int, wall_ms: int) -> None:
    """So many messages of the lane are leased."""
    for gate in around(lane):
        gate.charge(lane, count, wall_ms)


def credit(lane: Lane, count: int) -> None:
    """So many messages of the lane are not leased any more."""
    for gate in around(lane):
        gate.credit(lane, count)


def attach(place: Place, gates: tuple[Gate, ...]) -> None:
    """The place has these gates from now on, asked in that order, and no others.

    A gate that counts what is out must have been told of what the place has leased:
    ``place.leased``. What was parked is not any more; the next dispatch asks the new gates.
    """
    place.queue.gated += bool(gates) - bool(place.gates)
    place.gates = gates
    place.unpark()

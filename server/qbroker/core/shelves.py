"""What may be handed out next: shelves, their levels, and the selections that consumers see.

    selection (consumers that know the same tasks, in one queue)
      priority, highest first
        level (one task at that priority) whose head is oldest;
        where tenants share the queue, of the tenant that has spent least
          run whose head is oldest

A consumer sees only the shelves of tasks that it knows: what nobody knows costs nobody a look.
All of it is volatile or follows from the runs; it is made again at a start.
"""

from bisect import insort
from collections.abc import Sequence
from heapq import heappop, heappush, heapreplace
from typing import TYPE_CHECKING

from qbroker.core.gates import Gatekeeper, charge
from qbroker.core.levels import Level, number_of
from qbroker.core.moment import Now
from qbroker.core.rounds import Entry, Rounds
from qbroker.core.runs import END, Run
from qbroker.core.tenants import Tenant

if TYPE_CHECKING:
    from qbroker.core.gates import Gate
    from qbroker.core.lanes import Lane
    from qbroker.core.queues import Queue

_NEVER = 1 << 256
"""Behind every place in a heap."""
_NO_LANES: "dict[bytes, Lane]" = {}
"""Of a shelf without keys; never changed."""
_NO_LEVELS: "dict[int, Level]" = {}
"""Of a shelf with no more than one; never changed."""


class Shelf:
    """What waits of one task in one queue."""

    __slots__ = (
        "_level",
        "_others",
        "gates",
        "keyed",
        "lane",
        "leased",
        "life",
        "open",
        "parked",
        "queue",
        "task",
    )

    def __init__(self, queue: "Queue", task: str) -> None:
        self.queue = queue
        self.task = task
        self.lane: Lane | None = None
        """The lane of messages without keys."""
        self.keyed = _NO_LANES
        """Those with keys, by these."""
        self._level: Level | None = None
        """One of the levels, the only one of most shelves."""
        self._others = _NO_LEVELS
        """By number: priority, and tenant. Of the queue's life once ``renew`` was called."""
        self.life = queue.life
        """The life of its queue that the levels belong to."""
        self.open = 0
        """Messages that wait, those of parked lanes left out."""
        self.leased = 0
        self.gates: tuple[Gate, ...] = ()
        """Of the task in this queue. Set by gates.attach alone."""
        self.parked: Gate | None = None
        """The gate that keeps all of it."""

    @property
    def lanes(self) -> "list[Lane]":
        """Costs a step each."""
        return [*((self.lane,) if self.lane else ()), *self.keyed.values()]

    def find(self, keys: bytes) -> "Lane | None":
        """The lane of messages with these keys, if it is open."""
        return self.keyed.get(keys) if keys else self.lane

    def place(self, lane: "Lane") -> None:
        """The lane is open from now on."""
        if not lane.keys:
            self.lane = lane
            return
        if self.keyed is _NO_LANES:
            self.keyed = {}
        self.keyed[lane.keys] = lane

    def remove(self, lane: "Lane") -> None:
        """The lane is closed. Lists that its runs are in lose them, once those are many."""
        shares = self.queue.shares
        tenant = shares.tenants.get(lane.fair) if shares else None
        for run in lane.runs:
            if run.key >= 0:
                level = self.find_level(number_of(run.priority, tenant))
                run.key = -1
                if level:
                    level.lose()
        if not lane.keys:
            self.lane = None
        else:
            del self.keyed[lane.keys]

    def renew(self) -> None:
        """After a purge nothing waits on it."""
        if self.life != self.queue.life:
            self.life, self.open, self.parked = self.queue.life, 0, None
            self._level, self._others = None, _NO_LEVELS

    @property
    def levels(self) -> list[Level]:
        """Of the queue's life once ``renew`` was called. Costs a step each."""
        return [*((self._level,) if self._level else ()), *self._others.values()]

    def find_level(self, number: int) -> Level | None:
        """The level with that number, if it was made."""
        level = self._level
        return level if level and level.number == number else self._others.get(number)

    def level(self, priority: int, tenant: Tenant | None) -> Level:
        """The level of that priority, and tenant, made on first use."""
        number = number_of(priority, tenant) if tenant else priority
        found = self._level
        if found is None or found.number != number:
            found = self._others.get(number)
            if found is None:
                found = Level(self, priority, tenant)
                if self._level is None:
                    self._level = found
                else:
                    self._others = self._others or {}
                    self._others[number] = found
        return found

    def drop(self, level: Level) -> None:
        """The level is closed."""
        if self._level is level:
            self._level = None
        elif self._others.get(level.number) is level:
            del self._others[level.number]

    def park(self, gate: "Gate") -> None:
        """All of it is out of sight. Its levels leave the selections when they come up there."""
        self.parked = gate
        self.queue.count(self, -self.open)

    def unpark(self) -> None:
        """It may be handed out again."""
        self.renew()
        if self.parked:
            self.parked = None
            self.queue.count(self, self.open)
            for selection in self.queue.selections.values():
                selection.add(self)
            self.queue.stir()


def second(heap: Sequence[tuple[int, object]], least: int) -> int:
    """The key behind the first of a heap, or ``least`` if that is lower."""
    size = len(heap)
    if size > 1:
        key = heap[1][0]
        if size > 2 and heap[2][0] < key:
            key = heap[2][0]
        if key < least:
            return key
    return least


class Selection:
    """What consumers that know the same tasks may be handed out of one queue."""

    __slots__ = ("consumers", "keys", "known", "levels", "open", "passed", "priorities", "queue")

    def __init__(self, queue: "Queue", known: frozenset[str] | None) -> None:
        self.queue = queue
        self.known = known
        """Names of tasks; None is all, and plain messages."""
        self.consumers = 0
        self.open = 0
        """Messages that wait on shelves that are known and not parked."""
        self.levels: dict[int, list[tuple[int, Level]]] = {}
        """Priority to a heap of (head, level) of its levels that are not empty.

        What is true is in ``keys``; an entry with another head is dropped when it comes up.
        """
        self.keys: dict[Level, int] = {}
        self.priorities: list[int] = []
        """The priorities that have such levels, highest last."""
        self.passed = 0
        """Messages that were handed out, while several priorities had some, since the last turn of
        the oldest.
        """

    def knows(self, task: str) -> bool:
        """Whether its consumers run that task."""
        return self.known is None or task in self.known

    def clear(self) -> None:
        """Nothing waits."""
        self.open, self.levels, self.keys, self.priorities = 0, {}, {}, []

    def add(self, shelf: Shelf) -> None:
        """List the levels of a shelf, which is not parked, if it is known."""
        if self.knows(shelf.task):
            for level in shelf.levels:
                run = level.leading()
                if run:
                    self.enlist(level, run.key)

    def enlist(self, level: Level, head: int) -> None:
        """See that the level is listed under its head, or an earlier one."""
        if level.tenant:
            head = level.tenant.listed(head)
        if self.keys.get(level, _NEVER) <= head:
            return
        self.keys[level] = head
        heap = self.levels.get(level.priority)
        if heap is None:
            heap = self.levels[level.priority] = []
            insort(self.priorities, level.priority)
        heappush(heap, (head, level))

    def _leading(self, heap: list[tuple[int, Level]]) -> Run | None:
        """The run whose head is oldest, if one is not empty; the top of the heap is true then."""
        while heap:
            key, level = heap[0]
            if key == self.keys.get(level):
                run = None if level.shelf.parked else level.leading()
                if run:
                    true = level.tenant.listed(run.key) if level.tenant else run.key
                    if true == key:
                        return run
                    self.keys[level] = true
                    heapreplace(heap, (true, level))
                    if heap[0] == (true, level):  # and not an older entry of it
                        return run
                    continue
                del self.keys[level]
                if level.tenant and not level.heap:
                    level.close()
            heappop(heap)
        return None

    def take(self, limit: int, keeper: Gatekeeper, now: Now) -> list[Entry]:
        """Up to ``limit`` messages out, best first; their gates are charged.

        The last are those that go because they are the oldest, if several priorities wait. None,
        though some are open, if their gates had no room: they are parked now.
        """
        rounds, queue, asked = Rounds(), self.queue, limit
        every = queue.options.oldest_every if self._are_several() else 0
        owed = min(limit, (self.passed + limit) // every) if every else 0
        self.passed += limit if every else 0
        # Open, and yet in no list, is what an order hides until its turn comes.
        while limit and self.open and self.priorities and queue.parked is None and keeper.parks > 0:
            if limit > owed:
                priority, last, most = self.priorities[-1], END, limit - owed
            else:
                (priority, last), most = self._oldest(), limit
            heap = self.levels[priority]
            run = self._leading(heap)
            if run is None:
                self._drop(priority)
                continue
            room = keeper.room(run.lane, most, now) if queue.gated else most
            if not room:
                continue
            ordering = run.lane.ordering
            if ordering and ordering.next_run() is not run:
                ordering.hide(heappop(heap[0][1].heap)[1])
                continue
            level = heap[0][1]
            before = second(level.heap, last)
            if level.tenant is None:
                before = second(heap, before)
            else:
                rounds.turn(run, level.tenant)
                if not ordering:
                    room, before = self._turn(heap, room, before, asked)
            taken = 0
            for first, count in ordering.take(run) if ordering else run.take(room, before):
                rounds.add(run, first, count)
                taken += count
            limit -= taken
            if queue.shares and level.tenant:
                queue.shares.hand_out(level.tenant, taken)
            queue.less(run.lane, taken)
            if queue.gated:
                charge(run.lane, taken, now.wall_ms)
        if every:
            self.passed = (self.passed - limit) % every
        if queue.shares and not self.open:
            self._forget_empty()
        rounds.end()
        return rounds.out

    def _turn(
        self, heap: list[tuple[int, Level]], room: int, before: int, limit: int
    ) -> tuple[int, int]:
        """How many messages of the first level's tenant, and up to where, until another's turn."""
        level = heap[0][1]
        tenant, shares = level.tenant, self.queue.shares
        following = second(heap, _NEVER)
        if following == _NEVER or tenant is None or shares is None:
            return room, before
        spent, head = divmod(following, END)
        if spent == tenant.spent and not tenant.cost_us:
            before = min(before, head)  # of equals the older go first, while they have no turns
        elif len(tenant.levels) > 1:
            before = min(before, level.before_others())  # and its own do so always
        return min(room, shares.turn(tenant, limit, spent - tenant.spent)), before

    def _forget_empty(self) -> None:
        """Priorities, and with them levels, that have nothing are dropped."""
        for priority in [each for each in self.priorities if not self._leads(each)]:
            self._drop(priority)

    def _are_several(self) -> bool:
        """Whether messages of several priorities wait. Priorities that have none are dropped."""
        if len(self.priorities) > 1:
            self._forget_empty()
        return len(self.priorities) > 1

    def _leads(self, priority: int) -> Run | None:
        return self._leading(self.levels[priority])

    def _drop(self, priority: int) -> None:
        del self.levels[priority]
        self.priorities.remove(priority)

    def _oldest(self) -> tuple[int, int]:
        """The priority whose next message is the oldest; where the next one of another begins."""
        leading = ((self._leads(priority), priority) for priority in self.priorities)
        heads = sorted((run.key if run else END, priority) for run, priority in leading)
        return heads[0][1], heads[1][0] if len(heads) > 1 else END

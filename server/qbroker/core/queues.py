"""A queue: its lanes, what waits in them, who may be handed that.

    queue --> what its consumers know --> priority --> the run whose head is oldest --> positions

Invariant: a message is in exactly one of: a run, the timers, the leases.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter
from typing import TYPE_CHECKING

from qbroker.core.lanes import Lane
from qbroker.core.policies import Terms
from qbroker.core.runs import Run
from qbroker.core.shelves import Selection, Shelf
from qbroker.core.tenants import Shares
from qbroker.core.timers import Tree
from qprotocol.options import QueueOptions, is_dead_queue

if TYPE_CHECKING:
    from qbroker.core.gates import Gate


# What a queue has that needs little: one for all, and never changed.
_NO_POSITIONS: set[int] = set()
_NO_RUNS: list[Run] = []
_NOBODY: Counter[str] = Counter()
_NO_SHELVES: "dict[Shelf, dict[Gate, None]]" = {}
_NO_SELECTIONS: dict[frozenset[str] | None, Selection] = {}


class Queue:
    """Lanes, and what is ready in them, by task for those who know it."""

    __slots__ = (
        "_dirty",
        "behind",
        "counts",
        "delayed",
        "gated",
        "gates",
        "held",
        "holds_letters",
        "leased",
        "life",
        "name",
        "nodes",
        "number",
        "opened",
        "options",
        "parked",
        "ready",
        "retired",
        "scheduled",
        "selections",
        "shares",
        "shelves",
        "synced",
        "terms",
    )

    def __init__(
        self,
        number: int,
        name: str,
        options: QueueOptions,
        *,
        synced: bool,
        dirty: "dict[int, Queue] | None" = None,
    ) -> None:
        # Durable: set by apply.
        self.number, self.name = number, name
        self.holds_letters = is_dead_queue(name)
        """It is a queue of dead letters: they fail there, and stay."""
        self.options = options
        self.terms = Terms()
        self.synced = synced
        """Whether a confirm waits for stable storage, or for the kernel only."""
        self.ready = 0
        """Messages that wait and are due, parked or not."""
        self.scheduled = 0
        self.delayed = _NO_POSITIONS
        """Positions in the timers that also have an expiry; ``delay`` adds to it."""
        self.leased = 0
        self.counts: Counter[str] = Counter()
        """What happened here, for metrics."""
        self.life = 0
        """How often it was purged."""
        self.nodes = 0  # of graphs that are held, and will wait here: follows from the graphs
        # Follows from the runs, the rules and what is leased.
        self.held = 0
        """For how many reasons nothing is handed out; not saved, it follows from those."""
        self.shelves: dict[str, Shelf] = {}
        """By task."""
        self.gates: tuple[Gate, ...] = ()
        """Of the whole queue. Set by gates.attach alone."""
        self.gated = 0
        """How many have gates: lanes, shelves and the queue itself. 0 spares the look."""
        # Volatile.
        self.retired: list[Run] = _NO_RUNS
        """Runs of earlier lives, to be swept."""
        self.selections = _NO_SELECTIONS
        """By what they know: one for all consumers that know the same tasks."""
        self.shares: Shares | None = None  # while no lane has a fair key
        self.behind = _NOBODY
        """Messages that wait in parked lanes, by their gates' reasons."""
        self.opened = _NO_SHELVES
        """Gates that may have room again for lanes that are parked, by shelf."""
        self.parked: Gate | None = None
        """The gate that keeps all of it."""
        self._dirty = {} if dirty is None else dirty

    @property
    def queue(self) -> "Queue":
        """Itself, as for lanes and shelves."""
        return self

    @property
    def lanes(self) -> list[Lane]:
        """Those that are open. Costs some nanoseconds each: not for what is done for messages."""
        return [lane for shelf in self.shelves.values() for lane in shelf.lanes]

    @property
    def messages(self) -> int:
        """All that is in it: what waits and what is handed out."""
        return self.ready + self.scheduled + self.leased

    def lane(self, task: str, keys: bytes) -> Lane | None:
        """The lane of such messages, if it is open."""
        shelf = self.shelves.get(task)
        return shelf.find(keys) if shelf else None

    def shelf_of(self, task: str) -> Shelf:
        """The shelf of a task, made on first use."""
        found = self.shelves.get(task)
        if found is None:
            found = self.shelves[task] = Shelf(self, task)
        return found

    def begin_anew(self) -> None:
        """Nothing waits; runs made until now are dead."""
        self.life += 1
        self.ready = self.scheduled = 0
        self.delayed, self.behind, self.opened = _NO_POSITIONS, _NOBODY, _NO_SHELVES
        for selection in self.selections.values():
            selection.clear()
        if self.shares:
            self.shares = Shares(self.options.shares)

    def share_out(self) -> None:
        """A lane has a fair key, the first of the queue: what waits is the empty key's."""
        self.shares = Shares(self.options.shares)
        for shelf in self.shelves.values():
            shelf.renew()
            tenant = self.shares.offered("", shelf.open)
            for level in shelf.levels:
                level.tenant = tenant
                tenant.levels[level] = None

    def settle_shares(self) -> None:
        """What is known since of how long messages took counts from now on."""
        for level in self.shares.settle() if self.shares else ():
            run = None if level.shelf.parked else level.leading()
            for selection in self.selections.values() if run else ():
                if run and selection.knows(level.shelf.task):
                    selection.enlist(level, run.key)

    def stir(self) -> None:
        """There may be something to hand out: dispatch looks at the queue."""
        self._dirty[self.number] = self

    def stir_last(self) -> None:
        """As ``stir``, and behind all others."""
        self._dirty.pop(self.number, None)
        self._dirty[self.number] = self

    def delay(self, positions: set[int]) -> None:
        """These are in the timers, and have an expiry. Costs a step for each of the fewer."""
        if len(positions) > len(self.delayed):
            positions, self.delayed = self.delayed, positions
        self.delayed |= positions

    def retire(self, runs: tuple[Run, ...]) -> None:
        """These were purged, and are to be swept."""
        if runs and self.retired is _NO_RUNS:
            self.retired = []
        self.retired += runs

    def gate_opened(self, shelf: Shelf, gate: "Gate") -> None:
        """The gate may have room again for lanes of the shelf."""
        if self.opened is _NO_SHELVES:
            self.opened = {}
        self.opened.setdefault(shelf, {})[gate] = None
        self.stir()

    # What waits.

    def offer(self, run: Run, count: int) -> None:
        """``count`` more messages wait in the run, and may be handed out unless it is parked."""
        lane = run.lane
        if lane.parked:
            self.hold(lane.parked, count)
            if run.size == count:
                lane.parked.park(lane)
            return
        shelf = lane.shelf
        if shelf.life != self.life:
            shelf.renew()
        shelf.open += count
        tenant = self.shares.offered(lane.fair, count) if self.shares else None
        level = shelf.level(run.priority, tenant)
        head = level.offer(run)
        if shelf.parked:
            return
        for known, selection in self.selections.items():
            if known is None or shelf.task in known:
                selection.open += count
                if head >= 0:
                    selection.enlist(level, head)

    def less(self, lane: Lane, count: int) -> None:
        """So many of the lane's messages do not wait any more: leased, or over."""
        self.ready -= count
        if lane.parked:
            self.hold(lane.parked, -count)
            return
        shelf = lane.shelf
        shelf.open -= count
        if self.shares:
            self.shares.less(lane.fair, count)
        if not shelf.parked:
            for known, selection in self.selections.items():
                if known is None or shelf.task in known:
                    selection.open -= count

    def count(self, shelf: Shelf, more: int) -> None:
        """So many more messages on the shelf are open to those who know its task."""
        for selection in self.selections.values():
            if selection.knows(shelf.task):
                selection.open += more

    def hold(self, gate: "Gate", more: int) -> None:
        """So many more messages wait in lanes that are parked at such a gate."""
        if self.behind is _NOBODY:
            self.behind = Counter()
        self.behind[gate.reason] += more

    def hide(self, lane: Lane, gate: "Gate") -> None:
        """The lane was parked."""
        waiting = lane.waiting
        self.ready += waiting
        self.less(lane, waiting)
        self.hold(gate, waiting)
        lane.parked = gate

    def show(self, lane: Lane, gate: "Gate") -> None:
        """The lane is not parked any more."""
        self.hold(gate, -lane.waiting)
        for run in lane.runs:
            if run.size:
                self.offer(run, run.size)
        self.stir()

    def park(self, gate: "Gate") -> None:
        """Nobody is handed anything of it."""
        self.parked = gate

    def unpark(self) -> None:
        """It may be handed out again."""
        self.parked = None
        self.stir()

    # Who listens.

    def select(self, known: frozenset[str] | None) -> frozenset[str] | None:
        """One more consumer listens that knows these tasks; the set that it shares with others.

        Costs a step for each task that is known here.
        """
        selection = self.selections.get(known)
        if selection is None:
            selection = Selection(self, known)
            self.selections = {**self.selections, known: selection}
            shelves = self.shelves
            names = shelves if known is None or len(shelves) < len(known) else known
            for name in [name for name in names if name in shelves and selection.knows(name)]:
                shelf = shelves[name]
                shelf.renew()
                if not shelf.parked:
                    selection.open += shelf.open
                    selection.add(shelf)
        selection.consumers += 1
        return selection.known

    def deselect(self, known: frozenset[str] | None) -> None:
        """One of them listens no more."""
        selection = self.selections[known]
        selection.consumers -= 1
        if not selection.consumers:
            left = {each: other for each, other in self.selections.items() if each != known}
            self.selections = left or _NO_SELECTIONS

    def reason(self, shelf: Shelf) -> str:
        """Why messages on the shelf wait, in one word; empty if they may be handed out."""
        for place in (self, shelf):
            if place.parked:
                return place.parked.reason
        if self.held:
            return "paused"
        if not self.selections:
            return "no_consumer"
        knows = any(selection.knows(shelf.task) for selection in self.selections.values())
        return "" if knows else "no_worker_knows"

    def waiting(self, runs: Iterable[Run] | None = None) -> Iterator[tuple[Run, int]]:
        """Ready messages in the order they would leave, of these runs or all; changes nothing."""
        levels: dict[int, list[Run]] = {}
        if runs is None:
            runs = (run for lane in self.lanes for run in lane.runs)
        for run in runs:
            if run.size:
                levels.setdefault(run.priority, []).append(run)
        for priority in sorted(levels, reverse=True):
            for _, position, run in merge(*map(_entries, levels[priority]), key=itemgetter(0)):
                yield run, position

    def oldest(self, shelves: Iterable[Shelf]) -> int:
        """The lowest turn of a run of these, or 0 if nothing may be handed out."""
        leading = []
        for shelf in shelves:
            shelf.renew()
            leading += [level.leading() for level in shelf.levels]
        return min((run.turn() for run in leading if run), default=0)


def _entries(run: Run) -> Iterator[tuple[int, int, Run]]:
    for turn, position in run.turns():
        yield turn, position, run


@dataclass(slots=True)
class Remains:
    """What a purge has left to be swept. All volatile."""

    queue: Queue
    trees: list[Tree]
    delayed: set[int]
    lanes: list[Lane]
    """Those that have not been walked."""

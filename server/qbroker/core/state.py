"""All that the broker knows, under two headings: durable and volatile.

Durable state is what ``apply`` makes of the log, the same live and at start-up.
Volatile state is about connections and is gone after a crash.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qbroker.core.catalogue import Catalogue
from qbroker.core.chunks import Producer
from qbroker.core.closing import Idle
from qbroker.core.effects import Effect, Tell
from qbroker.core.exchanges import Exchanges
from qbroker.core.gates import Gatekeeper
from qbroker.core.graphs import LETTER, Graph
from qbroker.core.graphtable import Graphs
from qbroker.core.keys import Keys
from qbroker.core.lanes import Lane
from qbroker.core.leases import (
    UNTOUCHED,
    Attempts,
    Consumer,
    Grant,
    Leaving,
    Member,
    Session,
    get_back,
)
from qbroker.core.letters import Letters
from qbroker.core.limits import Limits
from qbroker.core.notices import Notices
from qbroker.core.ordering import Ordering
from qbroker.core.pauses import Pauses
from qbroker.core.policies import options_of
from qbroker.core.queues import Queue, Remains
from qbroker.core.results import Finished, Results
from qbroker.core.runs import Run
from qbroker.core.settings import Settings
from qbroker.core.timers import Timers
from qbroker.core.uploads import Arrival, Upload
from qprotocol.options import FSYNC_MODES, TRANSIENT, QueueOptions
from qprotocol.states import State


@dataclass(slots=True)
class BrokerState:
    """Everything ``decide`` reads and ``apply`` writes."""

    settings: Settings
    synced: bool = field(init=False)
    """What an answer waits for that belongs to no queue."""
    # Durable.
    epoch: int = 0
    boots: dict[int, int] = field(default_factory=dict)
    """Epoch to the position of its first record."""
    granted: dict[int, int] = field(default_factory=dict)
    """Epoch to how many grants of it are known."""
    queues: dict[str, Queue] = field(default_factory=dict)
    numbered: list[Queue] = field(default_factory=list)
    """The same queues, by number."""
    lanes: list[Lane] = field(default_factory=list)
    """By number; ``no_lane`` in the place of one that was closed."""
    closed: dict[int, None] = field(default_factory=dict)
    """Numbers of lanes that were closed, the next to be used anew last."""
    timers: Timers = field(default_factory=Timers)
    """Messages that wait for their time, by queue number."""
    expiries: Timers = field(default_factory=Timers)
    """When a message may not begin any more, by queue number."""
    late: set[int] = field(default_factory=set)
    """Leased messages whose time to begin is over, should they come back."""
    leases: dict[int, Grant] = field(default_factory=dict)
    sessions: dict[bytes, Session] = field(default_factory=dict)
    attempts: dict[int, Attempts] = field(default_factory=dict)
    moved: dict[int, int] = field(default_factory=dict)
    """The first position of a message that was replaced, to its latest."""
    origin: dict[int, int] = field(default_factory=dict)
    """The other way round."""
    cancelled: set[int] = field(default_factory=set)
    """Entries still in the timers whose message is over."""
    named: dict[bytes, int] = field(default_factory=dict)
    """Ids chosen by callers, of live messages, to positions."""
    names: dict[int, bytes] = field(default_factory=dict)
    continued: dict[int, list[int]] = field(default_factory=dict)
    quarantined: dict[int, tuple[int, int, str, str]] = field(default_factory=dict)
    """Positions set aside: (lane number, since when in ms, why, file of evidence)."""
    letters: Letters = field(default_factory=Letters)
    producers: dict[int, Producer] = field(default_factory=dict)
    catalogue: Catalogue = field(default_factory=Catalogue)
    """The policies; and, made of them and the queues' terms, what is to be looked after."""
    pauses: Pauses = field(default_factory=Pauses)
    exchanges: Exchanges = field(default_factory=Exchanges)
    limits: Limits = field(default_factory=Limits)
    orderings: dict[tuple[int, str], Ordering] = field(default_factory=dict)
    """(queue number, ordering key) to who holds it."""
    keys: Keys = field(default_factory=Keys)
    notices: Notices = field(default_factory=Notices)
    graphs: Graphs = field(default_factory=Graphs)
    results: Results = field(init=False)
    # Durable until the next start, which makes them void.
    uploads: dict[tuple[int, int], Upload] = field(default_factory=dict)
    # Volatile.
    members: dict[int, Member] = field(default_factory=dict)
    """By connection."""
    roles: dict[int, str] = field(default_factory=dict)
    """Of connections that said Hello."""
    consumers: dict[tuple[int, int], Consumer] = field(default_factory=dict)
    """(connection, subscription number)"""
    leaving: dict[Member, Leaving] = field(default_factory=dict)
    """Those who are gone and still hold leases, the next to give some back first."""
    listening: dict[int, list[Consumer]] = field(default_factory=dict)
    """Queue number to its consumers, the next to be served first."""
    remains: deque[Remains] = field(default_factory=deque)
    """Of purges, the next to be swept first."""
    arrivals: dict[tuple[int, int], Arrival] = field(default_factory=dict)
    """(connection, correlation) to a frame whose parts are coming."""
    routes: dict[bytes, Lane] = field(default_factory=dict)
    """Packed routes already understood."""
    dirty: dict[int, Queue] = field(default_factory=dict)
    """Queues that may have something to hand out."""
    keeper: Gatekeeper = field(default_factory=Gatekeeper)
    idle: Idle = field(default_factory=Idle)
    no_lane: Lane = field(init=False)  # where there is none
    effects: list[Effect] = field(default_factory=list)
    """What apply wants sent; the engine takes it after each command."""
    closed_to_publishes: str = ""
    """Why nothing new is taken in; empty if it is."""
    lease_lost: int = 0
    duplicates: int = 0
    next_sweep_ms: int = 0
    looked_ms: int = 0
    """Monotonic: when it was last looked for what is due."""
    head: int = 0
    """The first position behind the last record."""
    orders: deque[Any] = field(default_factory=deque)
    """Large orders under way (orders.Order), the next to go on first."""
    peeks: deque[Any] = field(default_factory=deque)
    """Peeks under way (peeking.Peeking), the next to go on first."""

    def __post_init__(self) -> None:
        self.synced = self.settings.fsync == "always"
        self.results = Results(self.settings.results_max)
        self.no_lane = Lane(-1, Queue(-1, "", QueueOptions(), synced=True), "", b"")

    # Queues and lanes.

    def open_queue(self, number: int, name: str, options: QueueOptions) -> Queue:
        """Make the queue true."""
        assert number == len(self.numbered), (number, name)
        queue = Queue(number, name, options, synced=self.synced_by(options), dirty=self.dirty)
        self.queues[name] = queue
        self.numbered.append(queue)
        self.listening[number] = []
        self.limits.fit_queue(queue)
        return queue

    def synced_by(self, options: QueueOptions) -> bool:
        """Whether a confirm of a queue with these options waits for stable storage."""
        mode = options.fsync or self.settings.fsync
        assert mode in FSYNC_MODES, mode
        return mode == "always" and options.durability != TRANSIENT

    def synced_by_name(self, name: str) -> bool:
        """The same of a queue that will be made on first use."""
        catalogue = self.catalogue
        return self.synced_by(catalogue.options_for(name)) if catalogue.policies else self.synced

    def refresh(self, queue: Queue) -> None:
        """The queue's terms or the policies are new: its options are what these come to."""
        options = queue.options = options_of(self.catalogue.given(queue))
        queue.synced = self.synced_by(options)
        if queue.shares:
            queue.shares.weigh(options.shares)
        self.catalogue.note(queue)
        if queue.ready:
            self.dirty[queue.number] = queue

    def lane_numbered(self, number: int) -> Lane | None:
        """The lane with that number; None if none is open that has it."""
        lane = self.lanes[number] if number < len(self.lanes) else self.no_lane
        return None if lane is self.no_lane else lane

    def run_numbered(self, number: int) -> Run:
        """The run with that number."""
        return self.lanes[number >> 8].run((number & 0xFF) - 128)

    # Messages in their places.

    def ready(self, run: Run, positions: Sequence[int]) -> None:
        """New messages wait at the end of ``run``, by ascending positions."""
        run.put(positions)
        self.offered(run, len(positions))

    def ready_again(self, run: Run, first: int, count: int) -> None:
        """Neighbours that were handed out wait in front, and keep their ordering key."""
        self.in_front(run, first, count)
        if run.lane.ordering:
            run.lane.ordering.waits(run, first, is_ready=True)

    def due_again(self, run: Run, position: int) -> None:
        """A message that was handed out before has waited for its time: it is in front now."""
        self.in_front(run, position, 1)
        if run.lane.ordering:
            run.lane.ordering.is_due(run, position)

    def in_front(self, run: Run, first: int, count: int) -> None:
        """Neighbours go before all that were never handed out."""
        run.give_back(first, count)
        self.offered(run, count)

    def offered(self, run: Run, count: int) -> None:
        """``run`` has ``count`` more messages to hand out."""
        queue = run.lane.queue
        queue.ready += count
        queue.offer(run, count)
        elders = self.catalogue.elders
        if elders and queue.number in elders:
            elders[queue.number].offer(run)
        self.dirty[queue.number] = queue

    def let_out(self, queue: Queue) -> None:
        """One reason less to hand out nothing of the queue."""
        queue.held -= 1
        if not queue.held and queue.ready:
            self.dirty[queue.number] = queue

    def later(self, run: Run, position: int, due_ms: int) -> None:
        """The message waits for ``due_ms``; it holds no ordering key, but for ``later_again``."""
        queue = run.lane.queue
        self.timers.push(queue.number, due_ms, position, run.number)
        queue.scheduled += 1
        run.lane.scheduled += 1

    def later_again(self, run: Run, position: int, due_ms: int) -> None:
        """A message that was handed out waits for ``due_ms``, and keeps its ordering key."""
        self.later(run, position, due_ms)
        if run.lane.ordering:
            run.lane.ordering.waits(run, position, is_ready=False)

    def unlease(self, position: int) -> Run:
        """The message is not leased any more; it is in no place now. Where it came from."""
        grant = self.leases[position]
        return self.unlease_neighbours(grant, position, 1)[0][0]

    def unlease_neighbours(
        self, grant: Grant, first: int, count: int
    ) -> list[tuple[Run, int, int]]:
        """All these are not leased any more; by the runs they came from: (run, first, count)."""
        leases, late = self.leases, self.late
        for position in range(first, first + count):
            del leases[position]
        pieces = [(run.current, start, size) for run, start, size in grant.split(first, count)]
        get_back(pieces)
        for run, start, length in pieces if late else ():
            for position in late.intersection(range(start, start + length)):
                late.discard(position)
                self.expiries.push(run.lane.queue.number, 1, position, run.number)
        self.let_go(grant, count)
        return pieces

    def let_go(self, grant: Grant, count: int) -> None:
        """So many of the grant's messages are not its any more; its subscription may have room."""
        grant.remaining -= count
        if not grant.remaining:
            del grant.member.grants[grant.number]
        consumer = grant.consumer
        if consumer:
            consumer.unsettled -= count
            self.listen_again(consumer)

    def withdraw(self, run: Run, position: int, due_ms: int = 0) -> None:
        """A message that waits, ready, for its time or held, is in no place now. Of one not over
        the time must be said: its old entry would be taken for one that is made later.
        """
        if self.graphs.is_held(position):
            return
        attempts = self.attempts.get(position)
        if due_ms or (attempts.waits if attempts else position not in run):
            if due_ms:
                self.timers.remove(run.lane.queue.number, [(due_ms, position, run.number)])
            else:
                self.cancelled.add(position)
            run.lane.undelay(position)
        else:
            run.remove(position, 1)
            run.lane.queue.less(run.lane, 1)
        if run.lane.ordering:
            run.lane.ordering.is_left(position)

    def is_waiting(self, run: Run, position: int, due_ms: int) -> bool:
        """Whether a message that was never handed out waits in ``run``, or for its time.

        One that is held does not: whoever runs it has what a power cut took.
        """
        if position in run:
            return True
        held = self.timers.holds(run.lane.queue.number, due_ms, position)
        return held and position not in self.cancelled

    def listen_again(self, consumer: Consumer) -> None:
        """The consumer may have room: look at the queue whose turn it is."""
        number = consumer.next_queue
        if number >= 0 and (consumer.contest or self.numbered[number].ready):
            self.dirty[number] = self.numbered[number]

    def touched(self, position: int) -> Attempts | None:
        """The counters of a message that was handed out before and is not over."""
        found = self.attempts.get(position)
        return None if found and found.run and found.run.is_purged else found

    def known(self, position: int) -> Attempts:
        """The message's counters, once it was handed out."""
        return self.attempts.get(position, UNTOUCHED)

    def parts_of(self, positions: Iterable[int]) -> dict[int, list[int]]:
        """Those of the messages that go on in later parts, to the positions of these."""
        if not self.continued:
            return {}
        return {p: self.continued[p] for p in positions if p in self.continued}

    def forget(self, position: int) -> None:
        """The message is over: drop what is kept beside the runs."""
        known = self.attempts.pop(position, None)
        if known and known.reason:
            self.letter_gone(position)
        self.continued.pop(position, None)
        self.late.discard(position)
        self.keys.end(position)
        name = self.names.pop(position, None)
        if name is not None and self.named.get(name) == position:
            del self.named[name]

    def letter_gone(self, position: int) -> None:
        """The message is no dead letter any more, if it was one."""
        self.letters.gone(position)
        for place in self.places_of(position) if self.graphs.owners else ():
            self.graph_gone(self.graphs.letter_gone(place))

    def graph_gone(self, graph: Graph | None) -> None:
        """If a graph is gone: nobody will ask for what was kept of its nodes."""
        for position in graph.kept() if graph else ():
            self.letter_gone(position)
            self.forget(position)

    # Ends.

    def finish(self, position: int, entry: Finished, *, keep: bool, synced: bool) -> None:
        """The task is finished: tell who waits, and keep the entry if it is to be kept."""
        if self.graphs.owners:
            known = self.attempts.get(position)
            again = (known and known.reason) or self.graphs.failure_of(position) is not None
            status = entry.state | (LETTER if again and entry.state is State.FAILURE else 0)
            for place in self.places_of(position):
                number = self.graphs.ended(place, status, entry.record, entry.content)
                if number >= 0:
                    self.run_numbered(number).lane.queue.nodes -= 1
        if keep:
            entry.name = self.names.get(position, b"")
            self.drop_move(self.results.store(position, entry))
        elif position not in self.results.finished:
            self.drop_move(position)
        for waiter in self.results.woken(position):
            self.effects.append(
                Tell(
                    waiter.connection, waiter.correlation, waiter.id, position, entry, synced=synced
                )
            )

    def places_of(self, position: int) -> tuple[int, ...]:
        """Where a message is, and, if it replaced others, where the first of them was."""
        first = self.origin.get(position)
        return (position,) if first is None else (position, first)

    def current(self, position: int) -> int:
        """The position that stands for ``position`` now, if its message was replaced."""
        return self.moved.get(position, position)

    def replace(self, position: int, after: int) -> None:
        """``after`` stands for ``position`` now: counters and waiters go with it."""
        first = self.origin.pop(position, position)
        if first != position:  # the last node of a graph that it went on as has nobody behind it
            self.graphs.ended(position, State.SUCCESS, 0, 0)
        self.moved[first] = after
        self.origin[after] = first
        self.results.move(position, after)
        self.keys.move(position, after)
        self.attempts[after] = self.attempts.pop(position)
        self.letters.rename(position, after)

    def drop_move(self, position: int) -> None:
        """Nobody will ask for the message any more, unless it is a dead letter."""
        if position in self.letters.by_position or self.graphs.failure_of(position) is not None:
            return
        first = self.origin.pop(position, None)
        if first is not None:
            self.moved.pop(first, None)
